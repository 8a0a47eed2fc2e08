"""Keep what is evaluated out of what is trained on: questions that share an image with an evaluation set, or are the same question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mixpo.recipe import EvaluateTable
from mixpo.types import IMAGE_MARK, Question, content_id
from mixpo.verify.text import normal_text

Block = list[Question]


@dataclass(kw_only=True)
class Barred:
    """What the evaluation sets hold, as numbers from digests: 100,000 questions take some 10 MB.

    mode: "image" bars every question with an image of an evaluation set, and one without images whose text is there; "question" only
    those of which both text and images are there.
    """

    mode: str
    images: dict[int, str] = field(default_factory=dict)
    questions: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, question: Question) -> None:
        """Take a question of an evaluation set into account."""
        for image in question.images:
            self.images.setdefault(int(image.digest[:16], 16), name)
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
        name = next((name for name in found if name is not None), None)
        return None if name is None else f"its image is in the evaluation set {name!r}"

    def digest(self) -> str:
        """Names what is barred; it changes with the evaluation sets only."""
        return content_id(self.mode, sorted(self.images), sorted(self.questions))


def open_barred(table: EvaluateTable) -> Barred | None:
    """What an [evaluate] table bars, still empty; None where it bars nothing."""
    return Barred(mode=table.decontaminate) if table.sets and table.decontaminate != "off" else None


def _identity(question: Question) -> int:
    """Text without case, spacing, punctuation and marks, and the images in any order."""
    text = normal_text(question.text.replace(IMAGE_MARK, " "))
    return int(content_id(text, sorted(image.digest for image in question.images)), 16)
