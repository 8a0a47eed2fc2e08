"""What people said of verdicts: RUN/audit/marks.jsonl, one line for each mark, only ever appended to.

A person says what a response is (its outcome), not whether the checker was right; both follow from the other. The last mark of
a response counts. Knows nothing about pages.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from mixpo.errors import RecordError, RunError
from mixpo.types import Outcome

MARKS = "audit/marks.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a person says of response `index` to a question in a round. time: UTC, ISO 8601."""

    question: str
    round: int
    index: int
    outcome: Outcome
    by: str
    time: str


def append_mark(root: Path, mark: Mark) -> None:
    """Add one line; it is on the disk when this returns. A line that a crash left torn, which says nothing, is taken away first.

    Raises RunError when the run cannot be written.
    """
    path = root / MARKS
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


def read_marks(root: Path) -> dict[tuple[int, str, int], Mark]:
    """The last mark of each response, by (round, question, index). A last line without its end is still being written.

    Raises RecordError for a whole line that is no mark.
    """
    path = root / MARKS
    marks: dict[tuple[int, str, int], Mark] = {}
    if not path.exists():
        return marks
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        mark = _mark(line)
        if mark is None:
            raise RecordError(f"{path}:{number}: not a mark (question, round, index, outcome, by, time); correct the line or remove it")
        marks[mark.round, mark.question, mark.index] = mark
    return marks


def _mark(line: str) -> Mark | None:
    try:
        mark = Mark(**json.loads(line))
    except (ValueError, TypeError):
        return None
    whole = isinstance(mark.round, int) and isinstance(mark.index, int)
    words = all(isinstance(word, str) for word in (mark.question, mark.by, mark.time))
    return mark if whole and words and mark.outcome in get_args(Outcome) else None
