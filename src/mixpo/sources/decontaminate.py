"""Keep what is evaluated out of what is trained on: questions that share an image with an evaluation set, look like it, or are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mixpo.recipe import EvaluateTable
from mixpo.sources.image_similarity import Gallery, Looks
from mixpo.types import IMAGE_TOKEN, Question, content_id
from mixpo.verify.text import normal_text

Block = list[Question]


@dataclass(kw_only=True)
class Barred:
    """What the evaluation sets hold, as numbers from digests: 100,000 questions take some 10 MB, their looks as much again.

    mode: "image" bars every question with an image of an evaluation set, and one without images whose text is there; "question" only
    those of which both text and images are there; "similar" also every question with an image that looks like one of them.
    looks, gallery: for "similar" alone.
    """

    mode: str
    images: dict[int, str] = field(default_factory=dict)
    questions: dict[int, str] = field(default_factory=dict)
    looks: Looks | None = None
    gallery: Gallery = field(default_factory=lambda: Gallery(0))

    def add(self, name: str, question: Question) -> None:
        """Take a question of an evaluation set into account."""
        for image in question.images:
            self.images.setdefault(int(image.digest[:16], 16), name)
            if self.looks is not None and (look := self.looks.of(image)) is not None:
                self.gallery.add(look, name)
        self.questions.setdefault(_identity(question), name)

    def watch(self, name: str, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks of an evaluation set as they are, taken into account as they pass."""
        for block in blocks:
            for question in block:
                self.add(name, question)
            yield block

    def reason(self, question: Question) -> str | None:
        """Why a question must not be trained on, or None."""
        if (name := self.questions.get(_identity(question))) is not None:
            return f"the same question is in the evaluation set {name!r}"
        if self.mode == "question":
            return None
        found = (self.images.get(int(image.digest[:16], 16)) for image in question.images)
        if (name := next(filter(None, found), None)) is not None:
            return f"its image is in the evaluation set {name!r}"
        return None if self.looks is None else self._resembles(question, self.looks)

    def _resembles(self, question: Question, looks: Looks) -> str | None:
        for image in question.images:
            if (look := looks.of(image)) is not None and (name := self.gallery.find(look)) is not None:
                return f"its image looks like one of the evaluation set {name!r}"
        return None

    def digest(self) -> str:
        """Names what is barred; it changes with the evaluation sets only."""
        similar = [] if self.looks is None else [self.gallery.max_bits, self.gallery.looks()]
        return content_id(self.mode, sorted(self.images), sorted(self.questions), *similar)


def open_barred(table: EvaluateTable, cache: Path | None = None) -> Barred | None:
    """What an [evaluate] table bars, still empty; None where it bars nothing. cache: where looks of images are kept, None for nowhere."""
    if not table.sets or table.decontaminate == "off":
        return None
    if table.decontaminate != "similar":
        return Barred(mode=table.decontaminate)
    return Barred(mode="similar", looks=Looks(cache), gallery=Gallery(table.similar_bits))


def _identity(question: Question) -> int:
    """Text without case, spacing, punctuation and marks, and the images in any order."""
    text = normal_text(question.text.replace(IMAGE_TOKEN, " "))
    return int(content_id(text, sorted(image.digest for image in question.images)), 16)
