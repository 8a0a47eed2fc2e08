"""What people said of verdicts: RUN/audit/labels.jsonl, one line for each mark, only ever appended to.

A person says what a response is (its outcome), not whether the checker was right; both follow from the other. The last mark of
a response counts. Knows nothing about pages.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from mixpo.errors import RecordError, RunError
from mixpo.types import Outcome

LABELS = "audit/labels.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabel:
    """What a person says of response `index` to a question in a round. time: UTC, ISO 8601, as it stands in the file."""

    question: str
    index: int
    outcome: Outcome
    by: str = ""
    time: str = ""
    round: int = 1


def append_label(root: Path, mark: HumanLabel) -> None:
    """Add one line; it is on the disk when this returns. A line that a crash left torn, which says nothing, is taken away first.

    Raises RunError when the run cannot be written.
    """
    path = root / LABELS
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            content = os.pread(handle, os.fstat(handle).st_size, 0)
            if not content.endswith(b"\n"):
                os.ftruncate(handle, content.rfind(b"\n") + 1)
            os.write(handle, json.dumps(asdict(mark), ensure_ascii=False).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); free some space, or make the run writable") from None


def read_labels(root: Path) -> dict[tuple[int, str, int], HumanLabel]:
    """The last mark of each response, by (round, question, index). A last line without its end is still being written.

    Lines written by hand may leave out by, time and round. Raises RecordError for a whole line that is no mark.
    """
    path = root / LABELS
    marks: dict[tuple[int, str, int], HumanLabel] = {}
    if not path.exists():
        return marks
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        mark = _mark(line, f"{path}:{number}")
        marks[mark.round, mark.question, mark.index] = mark
    return marks


def _mark(line: str, where: str) -> HumanLabel:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where}: not valid JSON ({error}); remove the line") from None
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or row.get("outcome") not in get_args(Outcome):
        raise RecordError(f"{where}: a mark has question (an id), index and outcome ({', '.join(get_args(Outcome))}); correct the line")
    index, of_round = row.get("index"), row.get("round", 1)
    if type(index) is not int or type(of_round) is not int:
        raise RecordError(f"{where}: index and round must be whole numbers (got {index!r}, {of_round!r}); correct the line")
    outcome: Outcome = row["outcome"]
    by, when = (str(row.get(name, "")) for name in ("by", "time"))
    return HumanLabel(question=row["question"], round=of_round, index=index, outcome=outcome, by=by, time=when)
