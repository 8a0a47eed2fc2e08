"""Responses from a file instead of a model: for tests, demonstrations and responses sampled elsewhere. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpo.engines.base import Request, SamplingParams, same_images
from mixpo.engines.tokens import Codec
from mixpo.errors import SourceError
from mixpo.records import Sampled, storable
from mixpo.types import Finish, Response


class ByteCodec:
    """Token ids are UTF-8 bytes, and 256 ends the turn: enough to truncate and continue responses without a model."""

    END = 256

    def encode(self, text: str) -> tuple[int, ...]:
        """The bytes of `text` and END."""
        return (*text.encode(), self.END)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes; an incomplete character becomes U+FFFD."""
        return bytes(token for token in ids if token != self.END).decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRow:
    """One row of a script. question: an id, or text that the prompt contains; "" matches every other question.

    image: paths or digests of the images that the question must have; empty matches any.
    responses: text and finish of each. error: the question fails with this reason instead.
    """

    question: str = ""
    image: tuple[str, ...] = ()
    responses: tuple[tuple[str, Finish], ...] = ()
    error: str = ""


class ScriptedEngine:
    """Gives response number `index` (modulo their number) of the row that matches a question. Ignores seeds and temperature.

    A continuation is its prefix followed by the scripted response. Responses are truncated at max_new_tokens.
    """

    name = "scripted"

    def __init__(self, script: Path | Sequence[str | ScriptRow], codec: Codec | None = None) -> None:
        """script: a JSONL file, rows, or plain responses for every question. codec: the model's, so that responses can be trained on."""
        self._codec = codec or ByteCodec()
        rows = _read(script) if isinstance(script, Path) else _rows(script)
        self._by_question: dict[str, list[ScriptRow]] = {}
        for row in (row for row in rows if row.question):
            same = self._by_question.setdefault(row.question, [])
            if any(not row.image or not other.image or row.image == other.image for other in same):
                message = f"the script has two rows for {row.question[:60]!r}; give the image of each, or the ids of the questions"
                raise SourceError(message, code="script-ambiguous", path=script if isinstance(script, Path) else None)
            same.append(row)
        rest = [row for row in rows if not row.question]
        self._default = ScriptRow(
            responses=tuple(r for row in rest for r in row.responses), error=next((r.error for r in rest if r.error), "")
        )

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`; a question without a matching row fails alone."""
        for request in requests:
            row = self._row(request)
            if row.error or not row.responses:
                yield Sampled(question=request.key, error=row.error or "the script has no answer for this question; add a row for it")
            else:
                slots = range(len(request.seeds))
                yield Sampled(question=request.key, responses=tuple(self._response(request, row, slot, params) for slot in slots))

    def close(self) -> None:
        """Nothing to release."""

    def _row(self, request: Request) -> ScriptRow:
        names = [name for name in self._by_question if name in request.prompt]
        if request.key in self._by_question:
            names = [request.key]
        fitting = [row for name in names for row in self._by_question[name] if not row.image or same_images(request.images, row.image)]
        return max(fitting, key=lambda row: len(row.question)) if fitting else self._default

    def _response(self, request: Request, row: ScriptRow, slot: int, params: SamplingParams) -> Response:
        text, finish = row.responses[request.indices[slot] % len(row.responses)]
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


def _rows(script: Sequence[str | ScriptRow]) -> list[ScriptRow]:
    return [row if isinstance(row, ScriptRow) else ScriptRow(responses=((row, "stop"),)) for row in script]


def _read(path: Path) -> list[ScriptRow]:
    """Raises SourceError with path and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: the script cannot be read ({error}); set sample.script to a JSONL file"
        raise SourceError(message, code="script-unreadable", path=path) from None
    # Not splitlines: JSON texts may contain characters that end a line for Python.
    rows = [_parse(raw, path, number) for number, raw in enumerate(text.split("\n"), start=1) if raw.strip()]
    if not rows:
        raise SourceError(f"{path}: the script is empty; write one JSON object with responses per line", code="script-empty", path=path)
    return rows


def _parse(raw: str, path: Path, line: int) -> ScriptRow:
    def bad_row(reason: str) -> SourceError:
        return SourceError(f"{path}:{line}: {reason}", code="script-row", path=path, line=line)

    def response(value: Any) -> tuple[str, Finish]:
        row = {"text": value} if isinstance(value, str) else value
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("finish", "stop") not in ("stop", "length"):
            raise bad_row('a response is a text, or an object with text and finish ("stop" or "length")')
        if not storable(row["text"]):
            raise bad_row("a response holds half of a surrogate pair, which is not text; repair it")
        return row["text"], row.get("finish", "stop")

    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_row(f"not valid JSON ({error})") from None
    if not isinstance(row, dict) or row.keys() - {"question", "image", "responses", "error"}:
        raise bad_row("a row is an object with question and image (both optional) and responses or error")
    question, failure, responses = row.get("question", ""), row.get("error", ""), row.get("responses", [])
    if not isinstance(question, str) or not isinstance(failure, str) or not isinstance(responses, list):
        raise bad_row("question and error are texts, responses is a list")
    if bool(failure) == bool(responses):
        raise bad_row("give either responses or error")
    image = row.get("image", [])
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise bad_row("image is a path or a list of paths")
    return ScriptRow(question=question, image=tuple(images), responses=tuple(map(response, responses)), error=failure)
