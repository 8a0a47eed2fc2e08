"""What a person says about verdicts: RUN/audit/marks.jsonl, one object a line, the last one for an answer wins.

    {"question": id, "index": 0, "outcome": "correct", "by": "name", "time": "2026-01-31T12:00:00Z", "round": 1}

`by`, `time` and `round` (1) may be absent. The file is only ever appended to; a last line without its line break is still being
written and does not count yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from mixpo.errors import RunError
from mixpo.records import Judged, read_column
from mixpo.stages.base import Plan
from mixpo.types import Outcome, Question, content_id

FILE = Path("audit") / "marks.jsonl"

Marks = dict[str, dict[int, "Mark"]]
"""By question and index of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A person's verdict on one answer. time: UTC, ISO 8601, as it stands in the file."""

    outcome: Outcome
    by: str = ""
    time: str = ""


def read_marks(root: Path, number: int) -> Marks:
    """The marks of round `number`; empty without a file. Raises RunError naming the line that is no mark."""
    path = root / FILE
    marks: Marks = {}
    if not path.exists():
        return marks
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.strip() or not line.endswith("\n"):
            continue
        question, index, of_round, mark = _parse(line, f"{path}:{place}")
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


def _plain(marks: Mapping[int, Mark]) -> list[list[object]]:
    """What decides the pairs; who marked when does not."""
    return [[index, mark.outcome] for index, mark in sorted(marks.items())]


def _parse(line: str, where: str) -> tuple[str, int, int, Mark]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON ({error}); remove the line") from None
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or row.get("outcome") not in get_args(Outcome):
        raise RunError(f"{where}: a mark has question (an id), index and outcome ({', '.join(get_args(Outcome))}); correct the line")
    index, of_round = row.get("index"), row.get("round", 1)
    if type(index) is not int or type(of_round) is not int:
        raise RunError(f"{where}: index and round must be whole numbers (got {index!r}, {of_round!r}); correct the line")
    mark = Mark(outcome=cast(Outcome, row["outcome"]), by=str(row.get("by", "")), time=str(row.get("time", "")))
    return row["question"], index, of_round, mark
