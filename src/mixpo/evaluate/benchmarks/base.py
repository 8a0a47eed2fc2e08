"""What every benchmark is made of: how a row becomes a question, how an answer is checked or judged, how a table comes of it.

Pure values and functions. Knows nothing about models, runs or particular benchmarks.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mixpo.errors import SourceError
from mixpo.evaluate.statistics import Term
from mixpo.sources.images import Pictures
from mixpo.types import IMAGE_TOKEN, AnswerKind, ImageRef, Outcome, Question, Skipped, content_id
from mixpo.verify.judgement import Judgement, Options

SHORTEST_BASE64 = 64
"""Base64 text of an image is longer than this; shorter text is a path."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")

Fields = Mapping[str, Any]
"""A row of a file, or the facts of a question."""
Place = tuple[str, Fields]
"""Location of a row (file:line), and the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a result table. group: "" for what is published as the score, else the breakdown (task, skill, category).

    unit: "%" for percentages (value 0 to 100), "" for judge scores. low, high: 95 % interval, or None where there is none to give.
    n: rows (or groups of rows) that count. excluded: rows excluded because the judge's reply could not be read.
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    unit: str = "%"
    group: str = ""
    excluded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedRow:
    """An answered row as the tables of metrics read it. extracted: the final answer. reply: the judge's reply, "" for rules.

    unread: the judge's reply could not be parsed; the row is excluded.
    """

    question: Question
    facts: Fields
    outcome: Outcome
    extracted: str | None = None
    reply: str = ""
    unread: bool = False

    @property
    def right(self) -> bool:
        """Whether it counts as correct."""
        return self.outcome == "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A published figure: scale times the mean over parts of sum(top) / sum(base).

    terms: what answered rows add to it, and how many rows or groups of rows could not count. most: the largest value before scaling.
    """

    name: str
    terms: Callable[[Sequence[GradedRow]], tuple[list[Term], int]]
    scale: float = 100.0
    unit: str = "%"
    most: float | None = 1.0


Check = Callable[[str, Question, Fields, Options], Judgement]
"""(extracted answer, question, facts, how to compare) -> judgement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """How a judge grades an answer. prompt: with {question}, {reference}, {answer} and {context} slots.

    part: the part of a response that the judge sees. read: the scores in a reply, or None where it cannot be read.
    share: the scores as a share of the maximum, 0 to 1. passes: whether they count as correct where only that can be shown.
    """

    prompt: str
    system: str = ""
    part: Callable[[str, str], str] = field(default=lambda text, mode: text.strip())
    read: Callable[[str], tuple[float, ...] | None]
    share: Callable[[tuple[float, ...]], float]
    passes: Callable[[tuple[float, ...]], bool]


def without_reasoning(reply: str) -> str:
    """A judge's reply without the reasoning in front, whose numbers are no scores; "" if the reasoning never ends."""
    _, closed, rest = reply.rpartition("</think>")
    return rest.strip() if closed else "" if "<think>" in reply else reply


class ReadShort(Protocol):
    """The short answer in a judge's reply."""

    def __call__(self, reply: str, question: Question, facts: Fields) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """How a judge finds the short answer in a response. prompt: with {question} and {answer} slots, the latter for the response.

    quick: the answer where no judge is needed, else None. read: the answer in a reply, "" where the judge says that there is none,
    or None where the reply cannot be read.
    """

    prompt: str
    system: str = ""
    quick: Callable[[str, Question, Fields], str | None]
    read: ReadShort


Join = Callable[[Iterable[Place | Skipped], Path, Path | None], Iterable[Place | Skipped]]
"""(rows, folder of the data, the recipe's second file) -> rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A published benchmark.

    splits: file names to look for in a folder, alternatives in order. files: official names of its file. row: a Draft of one row.
    joined: adds fields of other files. direct, cot: prompts with a {question} slot; cot "" takes the recipe's.
    Either checks (by extractor) or a rubric. extraction: how the authors let a judge find the answer; then checks has "judge" too.
    A check "given" grades short answers of predictions where "judge" or "official" would extract once more.
    measures: the published figures, the main one first. breakdown: figures of parts.
    """

    name: str
    title: str
    row: Callable[[Fields], Draft]
    measures: tuple[Measure, ...]
    breakdown: Callable[[Sequence[GradedRow]], list[Figure]]
    splits: tuple[tuple[str, ...], ...] = ()
    files: tuple[str, ...] = ()
    joined: Join = field(default=lambda places, folder, answers: places)
    direct: str = "{question}"
    cot: str = ""
    checks: Mapping[str, Check] = field(default_factory=dict)
    rubric: Rubric | None = None
    extraction: Extraction | None = None

    @property
    def rules(self) -> tuple[str, ...]:
        """The extractors that need no judge."""
        return tuple(name for name in self.checks if name not in ("judge", "given"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row before its images are found. images: values as in the file. facts: at least "id"; JSON values only.

    image_hint: how to get an image that is missing, for the reason of a skipped row.
    """

    text: str
    images: Sequence[object]
    answer: str
    kind: AnswerKind
    facts: Mapping[str, Any]
    choices: tuple[str, ...] = ()
    domain: str = ""
    image_hint: str = ""


def make(draft: Draft, pictures: Pictures, name: str) -> Question:
    """A draft as a question of benchmark `name`. Raises SourceError for an image that cannot be used."""
    try:
        images = tuple(refer(value, pictures) for value in draft.images)
    except SourceError as error:
        if error.code != "image-missing" or not draft.image_hint:
            raise
        raise SourceError(f"{error}; {draft.image_hint}", code="image-missing", path=error.path) from None
    text = with_image_tokens(draft.text, len(images))
    facts = json.dumps({"benchmark": name, **draft.facts}, ensure_ascii=False, sort_keys=True)
    return Question(
        id=content_id(text, [image.digest for image in images], draft.answer, list(draft.choices), facts),
        text=text,
        images=images,
        answer=draft.answer,
        kind=draft.kind,
        choices=draft.choices,
        domain=draft.domain,
        source=name,
        facts=facts,
    )


def with_image_tokens(text: str, images: int) -> str:
    """Images stand first, each on a line of its own, unless the text has a token for each of them."""
    text = text.strip()
    if images and text.count(IMAGE_TOKEN) == images:
        return text
    return f"{IMAGE_TOKEN}\n" * images + text.replace(IMAGE_TOKEN, "").strip()


def facts_of(question: Question) -> dict[str, Any]:
    """What a benchmark knows of a question; {} for questions of other sources."""
    return dict(json.loads(question.facts)) if question.facts else {}


# --- images of a row: paths below the root, bytes, data URIs, base64 text -------------------------------------------------


def refer(value: object, pictures: Pictures) -> ImageRef:
    """The image that a field stands for. Raises SourceError or ImageError with the reason."""
    if isinstance(value, str):
        content = encoded(value)
        return pictures.find(value) if content is None else pictures.one(content)
    return pictures.one(value)


def encoded(text: str) -> bytes | None:
    """The bytes behind a data URI or base64 text, or None for a path. Raises SourceError for base64 that is none."""
    head, comma, body = text.partition(",")
    if text[:5].casefold() == "data:":
        if not comma or not head.casefold().endswith(";base64"):
            raise SourceError("image is a data URI without base64 content", code="image-encoding")
        text = body
    elif len(text) <= SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceError(f"image is not valid base64 ({error}); the file may be truncated", code="image-encoding") from None
