"""Filters training questions that are in an evaluation set, or share an identical or similar image with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mixpo.recipe import EvaluateTable
from mixpo.sources.image_similarity import FingerprintCache, Gallery
from mixpo.types import IMAGE_TOKEN, Question, content_id
from mixpo.verify.text import normal_text

Block = list[Question]


@dataclass(kw_only=True)
class ContaminationFilter:
    """Digests of the evaluation sets: 100,000 questions take some 10 MB, their fingerprints as much again.

    mode: "image" filters questions with an image of an evaluation set, and those without images whose text is in one; "question" only
    those of which both text and images are in one; "similar" also those with an image similar to one of them.
    fingerprints, gallery: for "similar" alone.
    """

    mode: str
    images: dict[int, str] = field(default_factory=dict)
    questions: dict[int, str] = field(default_factory=dict)
    fingerprints: FingerprintCache | None = None
    gallery: Gallery = field(default_factory=lambda: Gallery(0))

    def add(self, name: str, question: Question) -> None:
        """Add a question of an evaluation set."""
        for image in question.images:
            self.images.setdefault(int(image.digest[:16], 16), name)
            if self.fingerprints is not None and (fingerprint := self.fingerprints.of(image)) is not None:
                self.gallery.add(fingerprint, name)
        self.questions.setdefault(_identity(question), name)

    def watch(self, name: str, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass the blocks of an evaluation set through, adding their questions."""
        for block in blocks:
            for question in block:
                self.add(name, question)
            yield block

    def reason(self, question: Question) -> str | None:
        """Why a question is filtered from training, or None."""
        if (name := self.questions.get(_identity(question))) is not None:
            return f"the same question is in the evaluation set {name!r}"
        if self.mode == "question":
            return None
        sets = (self.images.get(int(image.digest[:16], 16)) for image in question.images)
        if (name := next(filter(None, sets), None)) is not None:
            return f"its image is in the evaluation set {name!r}"
        return None if self.fingerprints is None else self._resembles(question, self.fingerprints)

    def _resembles(self, question: Question, fingerprints: FingerprintCache) -> str | None:
        for image in question.images:
            if (fingerprint := fingerprints.of(image)) is not None and (name := self.gallery.find(fingerprint)) is not None:
                return f"its image looks like one of the evaluation set {name!r}"
        return None

    def digest(self) -> str:
        """Identifies the filter; changes with the evaluation sets only."""
        similar = [] if self.fingerprints is None else [self.gallery.max_bits, self.gallery.fingerprints()]
        return content_id(self.mode, sorted(self.images), sorted(self.questions), *similar)


def open_filter(table: EvaluateTable, cache: Path | None = None) -> ContaminationFilter | None:
    """The empty filter of an [evaluate] table, None if it filters nothing. cache: file of cached fingerprints, None for no cache."""
    if not table.sets or table.decontaminate == "off":
        return None
    if table.decontaminate != "similar":
        return ContaminationFilter(mode=table.decontaminate)
    return ContaminationFilter(mode="similar", fingerprints=FingerprintCache(cache), gallery=Gallery(table.similar_bits))


def _identity(question: Question) -> int:
    """Text without case, spacing, punctuation and marks, and the images in any order."""
    text = normal_text(question.text.replace(IMAGE_TOKEN, " "))
    return int(content_id(text, sorted(image.digest for image in question.images)), 16)
