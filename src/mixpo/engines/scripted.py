"""Answers from a file instead of a model: for tests, demonstrations and answers that were made elsewhere. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.tokens import Codec
from mixpo.errors import SourceError
from mixpo.records import Sampled, storable
from mixpo.types import Finish, Response


class ByteCodec:
    """Token ids are UTF-8 bytes, and 256 ends the turn: enough to cut and continue answers without any model."""

    END = 256

    def encode(self, text: str) -> tuple[int, ...]:
        """The bytes of `text` and END."""
        return (*text.encode(), self.END)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes; an incomplete character becomes U+FFFD."""
        return bytes(token for token in ids if token != self.END).decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of a script. question: an id, or text that the prompt contains; empty serves every other question.

    responses: text and finish of each answer. error: the question fails with this reason instead.
    """

    question: str = ""
    responses: tuple[tuple[str, Finish], ...] = ()
    error: str = ""


class ScriptedEngine:
    """Gives answer number `index` of the row that fits a question, starting over behind the last. Ignores seeds and temperature.

    A continuation is its prefix followed by the scripted answer. An answer longer than max_new_tokens is cut, as a model's would be.
    """

    name = "scripted"

    def __init__(self, script: Path | Sequence[str | Line], codec: Codec | None = None) -> None:
        """script: a JSONL file, lines, or plain answers for every question. codec: the model's, so that answers can be trained on."""
        self._codec = codec or ByteCodec()
        lines = _read(script) if isinstance(script, Path) else _lines(script)
        self._by_question = {line.question: line for line in lines if line.question}
        rest = [line for line in lines if not line.question]
        self._default = Line(
            responses=tuple(r for line in rest for r in line.responses), error=next((r.error for r in rest if r.error), "")
        )

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`; a question that no row fits is an error of that question."""
        for request in requests:
            line = self._line(request)
            if line.error or not line.responses:
                yield Sampled(question=request.key, error=line.error or "the script has no answer for this question; add a row for it")
            else:
                slots = range(len(request.seeds))
                yield Sampled(question=request.key, responses=tuple(self._response(request, line, slot, params) for slot in slots))

    def close(self) -> None:
        """Nothing is held."""

    def _line(self, request: Request) -> Line:
        if request.key in self._by_question:
            return self._by_question[request.key]
        contained = [question for question in self._by_question if question in request.prompt]
        return self._by_question[max(contained, key=len)] if contained else self._default

    def _response(self, request: Request, line: Line, slot: int, params: SamplingParams) -> Response:
        text, finish = line.responses[request.indices[slot] % len(line.responses)]
        prefix = request.prefixes[slot] if request.prefixes else ()
        ids = self._codec.encode(text)
        if finish == "length":
            ids = ids[:-1]
        if len(ids) > params.max_new_tokens:
            ids, finish = ids[: params.max_new_tokens], "length"
        return Response(
            question=request.key,
            index=request.indices[slot],
            text=self._codec.decode(prefix + ids),
            token_ids=prefix + ids,
            finish=finish,
            engine=self.name,
            seed=request.seeds[slot],
            prefix_len=len(prefix),
        )


# --- reading a script -------------------------------------------------------------------------------------------------


def _lines(script: Sequence[str | Line]) -> list[Line]:
    return [line if isinstance(line, Line) else Line(responses=((line, "stop"),)) for line in script]


def _read(path: Path) -> list[Line]:
    """Raises SourceError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: the script cannot be read ({error}); set sample.script to a JSONL file") from None
    # Not splitlines: what JSON leaves in a text as it is may end a line for Python.
    lines = [_parse(raw, f"{path}:{number}") for number, raw in enumerate(text.split("\n"), start=1) if raw.strip()]
    if not lines:
        raise SourceError(f"{path}: the script is empty; write one JSON object with responses to a line")
    return lines


def _parse(raw: str, where: str) -> Line:
    try:
        row = json.loads(raw)
    except ValueError as error:
        raise SourceError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict) or row.keys() - {"question", "responses", "error"}:
        raise SourceError(f"{where}: a row is an object with question (optional) and responses or error")
    question, failure, responses = row.get("question", ""), row.get("error", ""), row.get("responses", [])
    if not isinstance(question, str) or not isinstance(failure, str) or not isinstance(responses, list):
        raise SourceError(f"{where}: question and error are texts, responses is a list")
    if bool(failure) == bool(responses):
        raise SourceError(f"{where}: give either responses or error")
    return Line(question=question, responses=tuple(_answer(value, where) for value in responses), error=failure)


def _answer(value: Any, where: str) -> tuple[str, Finish]:
    row = {"text": value} if isinstance(value, str) else value
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("finish", "stop") not in ("stop", "length"):
        raise SourceError(f'{where}: a response is a text, or an object with text and finish ("stop" or "length")')
    if not storable(row["text"]):
        raise SourceError(f"{where}: a response holds half of a surrogate pair, which is not text; repair it")
    return row["text"], row.get("finish", "stop")
