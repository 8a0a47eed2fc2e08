"""What the marks of people change: verdicts, and which shards of pairs are stale. The file itself is `mixpo.human_labels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mixpo.human_labels import HumanLabel, read_labels
from mixpo.records import Judged, read_column
from mixpo.stages.job import Plan
from mixpo.types import Question, content_id

Marks = dict[str, dict[int, HumanLabel]]
"""By question and index of the answer."""


def marks_of(root: Path, number: int) -> Marks:
    """The marks of round `number`; empty without a file. Raises RecordError naming the line that is no mark."""
    marks: Marks = {}
    for (of_round, question, index), mark in read_labels(root).items():
        if of_round == number:
            marks.setdefault(question, {})[index] = mark
    return marks


def digests(plan: Plan, marks: Marks) -> tuple[str, ...]:
    """For each question shard a digest of the marks in it, "" for none; so a mark makes stale only its own shard."""
    shards = plan.shards("source")
    if not marks:
        return ("",) * len(shards)
    stage = plan.run.stage("source")
    found = []
    for shard in shards:
        path = stage.path(shard)
        names = read_column(path, Question, "id") if path.exists() else []
        of_shard = [[name, *_plain(marks[name])] for name in names if name in marks]
        found.append(content_id(of_shard) if of_shard else "")
    return tuple(found)


def corrected(judged: Judged, marks: Marks) -> tuple[Judged, int]:
    """The verdicts as the marks have them, and how many answers are marked."""
    of_question = marks.get(judged.question)
    if not of_question:
        return judged, 0
    verdicts = tuple(
        replace(verdict, outcome=mark.outcome, reason=f"marked by {mark.by or 'a person'}")
        if (mark := of_question.get(verdict.index)) is not None
        else verdict
        for verdict in judged.verdicts
    )
    return replace(judged, verdicts=verdicts), sum(verdict.index in of_question for verdict in verdicts)


def _plain(marks: Mapping[int, HumanLabel]) -> list[list[object]]:
    """What decides the pairs; who marked when does not."""
    return [[index, mark.outcome] for index, mark in sorted(marks.items())]
