"""Responses that another tool sampled, matched to questions by id, or by text and images. Needs no torch.

One JSON object per line, recognised by its keys: `responses` (plain), `outputs` (vLLM's RequestOutput), `response.body.choices`
(`vllm run-batch`, OpenAI batches), `response` (one text, of `swift infer`), and `resps` or `filtered_resps` (lmms-eval's samples).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from mixpo.engines.base import Request, SamplingParams, same_images
from mixpo.engines.responses import Choice, response_of
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.prompts import DIRECT_ENDINGS
from mixpo.records import Sampled, storable
from mixpo.types import IMAGE_TOKEN, ImageRef, Question, Skipped

KEYS = ("responses", "outputs", "response", "resps", "filtered_resps")
"""What a row may hold its responses under. lmms-eval writes no `resps` where its filters changed nothing."""


class _RowError(Exception):
    """A line that holds no responses; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRow:
    """One line of a file.

    id: a question's id, or that of its row in the source. text: the question or the whole prompt, "" where the row has none.
    images: paths or SHA-256 digests, None where the row names none. repeats: other lines of this tool may hold the same responses.
    """

    id: str
    text: str
    images: tuple[str, ...] | None
    choices: tuple[Choice, ...]
    repeats: bool = False


START = 48
"""Characters of a question that are compared when a row with its id has a text too."""


# --- matching -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A question as rows are matched with it. texts: digests of its text and of its prompt. start: how its text begins."""

    id: str
    images: tuple[ImageRef, ...]
    texts: frozenset[int]
    start: str

    def agrees(self, text: str) -> bool:
        """Whether a text can be this question or a prompt around it; options may follow it here or there."""
        return not text or self.start in (plain := _plain_text(text)) or plain[:START] in self.start


class SavedResponses:
    """The responses in JSONL files by question; only their places are in memory.

    unmatched: rows that were not used, with the reason. counts: rows, and how many were matched, ambiguous, superfluous, broken or
    repeated; questions without responses; responses beyond the wanted number.
    """

    def __init__(self, path: Path, questions: Iterable[tuple[Question, str]], wanted: int) -> None:
        """path: a file, or a folder of *.jsonl. questions: all of the run, with their prompts. wanted: responses per question.

        Raises SourceError when there is no such file, or when it holds no row of a known format.
        """
        self._files = _files(path)
        self._wanted = wanted
        self._by_id: dict[str, list[_Candidate]] = {}
        self._by_text: dict[int, list[_Candidate]] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}
        self.unmatched: list[Skipped] = []
        self.counts: Counter[str] = Counter(rows=0, matched=0, ambiguous=0, superfluous=0, broken=0)
        known = self._index(questions)
        self._match()
        self.counts["missing questions"] = known - len(self._places)
        if not self.counts["rows"] - self.counts["broken"]:
            reason = self.unmatched[0].reason if self.unmatched else "it is empty"
            raise SourceError(
                f"{path}: holds no saved responses ({reason}); write one JSON object per line with id and responses",
                code="saved-responses-unusable",
                path=path,
            )

    def choices(self, question: str) -> tuple[Choice, ...]:
        """The responses to a question in the order of the files; () where there are none."""
        return tuple(chain.from_iterable(self._read(place).choices for place in self._places.get(question, ())))[: self._wanted]

    def __contains__(self, question: str) -> bool:
        """Whether there are responses to a question."""
        return question in self._places

    @property
    def summary(self) -> str:
        """What was not matched, in one sentence; "" if all rows and questions were."""
        names = {
            "missing questions": ("question without saved responses", "questions without saved responses"),
            "ambiguous": ("ambiguous row", "ambiguous rows"),
            "superfluous": ("row for no question", "rows for no question"),
            "broken": ("broken row", "broken rows"),
            "superfluous responses": ("response beyond sample.n", "responses beyond sample.n"),
        }
        return ", ".join(amount(self.counts[key], *forms) for key, forms in names.items() if self.counts[key])

    def _index(self, questions: Iterable[tuple[Question, str]]) -> int:
        """Make every question findable; returns their number."""
        known = 0
        for question, prompt in questions:
            known += 1
            candidate = _Candidate(
                question.id, question.images, frozenset({_digest(question.text), _digest(prompt)}), _plain_text(question.text)[:START]
            )
            for name in {question.id, question.row_id} - {""}:
                self._by_id.setdefault(name, []).append(candidate)
            for text in candidate.texts:
                self._by_text.setdefault(text, []).append(candidate)
        return known

    def _match(self) -> None:
        sizes: Counter[str] = Counter()
        for number, path in enumerate(self._files):
            for line, offset, content in _lines(path):
                self.counts["rows"] += 1
                try:
                    row = parse_row(content)
                    candidate = self._question_of(row)
                except _RowError as reason:
                    self._skip("broken", path, line, str(reason))
                    continue
                if isinstance(candidate, tuple):
                    self._skip(candidate[0], path, line, candidate[1])
                elif row.repeats and candidate.id in self._places:
                    self.counts["repeated"] += 1
                else:
                    self.counts["matched"] += 1
                    self._places.setdefault(candidate.id, []).append((number, offset))
                    sizes[candidate.id] += len(row.choices)
        beyond = sum(max(0, size - self._wanted) for size in sizes.values())
        if beyond:
            self.counts["superfluous responses"] = beyond

    def _question_of(self, row: SavedRow) -> _Candidate | tuple[str, str]:
        """The one question of a row, or what is wrong with it and why. An id decides; text alone only if it stands with one image."""
        named = self._by_id.get(row.id, []) if row.id else []
        if len(named) == 1:
            return named[0] if named[0].agrees(row.text) else ("ambiguous", f"id {row.id!r} is that of another question than its text")
        candidates = named or self._with_text(row.text)
        if named and row.text:
            candidates = [one for one in named if _digest(row.text) in one.texts]
        if row.images is not None and candidates:
            candidates = [one for one in candidates if same_images(one.images, row.images)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            what = f"id {row.id!r} stands" if named else "the question stands"
            return "ambiguous", f"{what} {len(candidates)} times, with other images or answers; give the id of one, or question and image"
        if row.id or row.text:
            return "superfluous", f"no question of this run has {f'the id {row.id!r}' if row.id else 'this text and these images'}"
        return "ambiguous", "the row has neither id nor question"

    def _with_text(self, text: str) -> list[_Candidate]:
        """The questions with a text, or with what precedes a request for a short answer in it, which other tools append."""
        texts = (text, *(text.rstrip().removesuffix(ending) for ending in DIRECT_ENDINGS if text.rstrip().endswith(ending)))
        return next((candidates for one in texts if one.strip() and (candidates := self._by_text.get(_digest(one)))), [])

    def _skip(self, kind: str, path: Path, line: int, reason: str) -> None:
        self.counts[kind] += 1
        self.unmatched.append(Skipped(where=f"{path}:{line}", reason=reason, stage="sample"))

    def _read(self, place: tuple[int, int]) -> SavedRow:
        number, offset = place
        with self._files[number].open("rb") as stream:
            stream.seek(offset)
            return parse_row(stream.readline())


class FileEngine:
    """Hands out saved responses; ignores seeds and sampling parameters, and continues nothing."""

    name = "file"

    def __init__(self, saved: SavedResponses, codec: TokenCodec | None) -> None:
        self._saved, self._codec = saved, codec
        self.facts: dict[str, Any] = {"saved": dict(saved.counts)}

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. A question with fewer saved responses than were wanted has fewer; one with none fails alone."""
        for request in requests:
            choices = self._saved.choices(request.key)
            slots = [slot for slot, index in enumerate(request.indices) if index < len(choices)]
            if request.prefixes:
                raise ValueError("saved responses cannot be continued")
            if not slots:
                yield Sampled(question=request.key, error="no saved responses for this question")
                continue
            made = (response_of(request, slot, choices[request.indices[slot]], self._codec, self.name) for slot in slots)
            yield Sampled(question=request.key, responses=tuple(made))

    def close(self) -> None:
        """Nothing to release."""


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(_plain_text(text).encode(errors="replace"), digest_size=8).digest())


def _plain_text(text: str) -> str:
    """A question or prompt without image tokens and differences of spacing."""
    return " ".join(text.replace(IMAGE_TOKEN, " ").split())


# --- reading ------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        what = "is a folder without *.jsonl files" if path.is_dir() else "no such file"
        raise SourceError(f"sample.responses: {path}: {what}", code="saved-responses-missing", path=path, key="sample.responses")
    return files


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of every line that is not blank."""
    offset = 0
    try:
        with path.open("rb") as stream:
            for number, content in enumerate(stream, start=1):
                if content.strip():
                    yield number, offset, content
                offset += len(content)
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(f"{path}: cannot be read ({reason})", code="saved-responses-unreadable", path=path) from None


def parse_row(content: bytes) -> SavedRow:
    """One line of a known format. Raises _RowError with the reason."""
    try:
        row = json.loads(content.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _RowError(f"not valid JSON ({str(error)[:80]})") from None
    if not isinstance(row, dict):
        raise _RowError("not an object; write one JSON object per line")
    key = next((key for key in KEYS if row.get(key) is not None), "")
    if not key:
        failed = f"the request failed ({str(row['error'])[:80]})" if row.get("error") else ""
        raise _RowError(failed or f"has none of {', '.join(KEYS)}; its keys are {', '.join(map(repr, row))}")
    return _FORMATS[key](row)


def _plain(row: Mapping[str, Any]) -> SavedRow:
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise _RowError("responses must be a list that is not empty")
    return SavedRow(id=_id(row, "id"), text=_text(row, "question", "prompt"), images=_images(row), choices=tuple(map(_choice, responses)))


def _vllm(row: Mapping[str, Any]) -> SavedRow:
    if not isinstance(row["outputs"], list) or not row["outputs"]:
        raise _RowError("outputs must be a list that is not empty")
    outputs = tuple(map(_choice, row["outputs"]))
    return SavedRow(id=_id(row, "id", "request_id"), text=_text(row, "question", "prompt"), images=_images(row), choices=outputs)


def _one(row: Mapping[str, Any]) -> SavedRow:
    """A line with one response; its question may be the last user turn of `messages`."""
    turns = [turn for turn in row.get("messages") or () if isinstance(turn, dict) and turn.get("role") == "user"]
    text = _text(row, "question", "prompt", "query") or (_text(turns[-1], "content") if turns else "")
    return SavedRow(id=_id(row, "id"), text=text, images=_images(row), choices=(_choice({**row, "text": row["response"]}),))


def _batch(row: Mapping[str, Any]) -> SavedRow:
    if isinstance(row["response"], str):
        return _one(row)
    body = row["response"].get("body") if isinstance(row["response"], dict) else None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _RowError(f"the request failed or has no choices ({str(row.get('error'))[:80]})")
    made = []
    for choice in (choice if isinstance(choice, dict) else {} for choice in choices):
        message = choice.get("message")
        made.append(_choice({**choice, "text": message.get("content") if isinstance(message, dict) else choice.get("text")}))
    return SavedRow(id=_id(row, "custom_id"), text="", images=_images(row), choices=tuple(made))


def _lmms_eval(row: Mapping[str, Any]) -> SavedRow:
    """A line of `*_samples_*.jsonl`: `input` is the prompt; earlier versions wrote `doc`, the row of the data set, instead."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    responses = row["resps"] if row.get("resps") is not None else row["filtered_resps"]
    if not isinstance(responses, (str, list)):
        raise _RowError("resps must be text or a list")
    parts = responses if isinstance(responses, list) else [responses]
    flat = [text for part in parts for text in (part if isinstance(part, list) else [part])]
    if not flat:
        raise _RowError("resps is empty")
    own, text = _id(doc, "id", "question_id") or _id(row, "doc_id"), _text(doc, "question") or _text(row, "input")
    return SavedRow(id=own, text=text, images=_images(doc), choices=tuple(map(_choice, flat)), repeats=True)


_FORMATS = {"responses": _plain, "outputs": _vllm, "response": _batch, "resps": _lmms_eval, "filtered_resps": _lmms_eval}


def _id(row: Mapping[str, Any], *names: str) -> str:
    value = next((row[name] for name in names if row.get(name) not in (None, "")), "")
    if not isinstance(value, (str, int)):
        raise _RowError(f"{names[0]} must be text or a number")
    return str(value)


def _text(row: Mapping[str, Any], *names: str) -> str:
    value = next((row[name] for name in names if row.get(name)), "")
    return value if isinstance(value, str) else ""


def _images(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = next((row[name] for name in ("image", "images") if row.get(name) is not None), None)
    values: list[Any] = [one.get("path") if isinstance(one, dict) else one for one in (value if isinstance(value, list) else [value])]
    return tuple(values) if value is not None and all(isinstance(name, str) for name in values) else None


def _choice(value: Any) -> Choice:
    """A text, or an object with text and, if known, token_ids and finish (finish_reason). Anything but "stop" counts as truncated."""
    fields = {"text": value} if isinstance(value, str) else value
    text = fields.get("text") if isinstance(fields, dict) else None
    if not isinstance(text, str) or not storable(text):
        raise _RowError("a response is a text, or an object with text")
    ids = fields.get("token_ids") or []
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
        raise _RowError("token_ids must be a list of numbers from 0")
    finish = fields.get("finish", fields.get("finish_reason"))
    return Choice(text=text, stopped=finish in (None, "stop"), ids=tuple(ids))
