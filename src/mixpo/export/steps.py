"""Export of step-scored responses in TRL's stepwise supervision format, for process reward models.

    FOLDER/steps.jsonl            one response that was cut a line
    FOLDER/images/ab/ab..ef.png   copies of the images, named by content

"completions" are the steps of the response, joined again its text. "values" are the shares of continuations from the end of each step that
end right, "continuations" their numbers; "labels" are true where at least one did. Of the last step, behind which nothing is continued,
both tell whether the response is right; one without a decided verdict is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mixpo.errors import RunError
from mixpo.export.base import ExportCount, ImageCopies, write_lines
from mixpo.pairs.branches import Step
from mixpo.types import IMAGE_TOKEN, Question


class ScoredResponse(NamedTuple):
    """A response that was cut. prompt: the user message it was sampled under. response: its `Response.index`."""

    question: Question
    prompt: str
    response: int
    steps: list[Step]


def export_steps(rows: Iterable[ScoredResponse], folder: Path) -> ExportCount:
    """Write the responses; those that hold `<image>`, or whose question has earlier turns, are skipped: the format cannot hold them.

    Raises RunError when there are none.
    """
    copies, counts = ImageCopies(folder / "images"), [0, 0]

    def lines() -> Iterator[dict[str, Any]]:
        for row in rows:
            unfit = row.question.history or any(IMAGE_TOKEN in step.text for step in row.steps) or row.steps[-1].value is None
            counts[bool(unfit)] += 1
            if not unfit:
                yield _line(row, [*map(copies.absolute, row.question.images)])
        if not counts[0]:
            raise RunError("there are no responses with values to export; `mixpo status` shows how many places have any", code="no-steps")

    write_lines(folder / "steps.jsonl", lines())
    return ExportCount(counts[0], counts[1])


def _line(row: ScoredResponse, images: list[str]) -> dict[str, Any]:
    return {
        "images": images,
        "prompt": row.prompt,
        "completions": [step.text for step in row.steps],
        "labels": [bool(step.value) for step in row.steps],
        "values": [step.value for step in row.steps],
        "continuations": [step.n for step in row.steps],
        "question_id": row.question.id,
        "index": row.response,
    }
