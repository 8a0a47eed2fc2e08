"""Human labels of responses: RUN/audit/labels.jsonl, one line per label, only ever appended to.

A label says what a response is (its outcome), not whether the verifier was right; the last label of a response counts.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from mixpo import sealed
from mixpo.errors import RecordError, RunError
from mixpo.types import Outcome

LABELS = "audit/labels.jsonl"
OUTCOMES: tuple[str, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabel:
    """The outcome that a person gives response `index` to a question in a round. time: UTC, ISO 8601."""

    question: str
    index: int
    outcome: Outcome
    by: str = ""
    time: str = ""
    round: int = 1


def append_label(root: Path, label: HumanLabel) -> None:
    """Append one line, on the disk when this returns. A torn last line of a crash is removed first.

    Raises RunError when the file cannot be written.
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
            os.write(handle, sealed.dumps(asdict(label)).encode())
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror}); free some space, or make the run writable"
        raise RunError(message, code="labels-unwritable", path=path) from None


def read_labels(root: Path) -> dict[tuple[int, str, int], HumanLabel]:
    """The last label of each response, by (round, question, index). A last line without its end is still being written.

    Lines written by hand may omit by, time and round, and have no checksum. Raises RecordError for a complete line that is not a label.
    """
    path = root / LABELS
    labels: dict[tuple[int, str, int], HumanLabel] = {}
    if not path.exists():
        return labels
    for number, line in enumerate(sealed.complete_lines(path.read_text(encoding="utf-8", errors="replace")), start=1):
        label = _parse(line, path, number)
        labels[label.round, label.question, label.index] = label
    return labels


def _parse(text: str, path: Path, line: int) -> HumanLabel:
    def invalid(why: str, key: str | None = None) -> RecordError:
        return RecordError(f"{path}:{line}: {why}; correct or remove the line", code="invalid-label", path=path, line=line, key=key)

    try:
        row: Any = json.loads(text)
        if isinstance(row, dict) and sealed.CHECKSUM in row:
            row = sealed.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"not valid JSON, or damaged ({error})") from None
    if isinstance(row, dict) and (unknown := sorted(row.keys() - HumanLabel.__dataclass_fields__.keys())):
        raise invalid(f"a label has no {unknown[0]!r}", unknown[0])
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or row.get("outcome") not in OUTCOMES:
        raise invalid(f"a label has question (an id), index and outcome ({', '.join(OUTCOMES)})")
    index: Any = row.get("index")
    of_round: Any = row.get("round", 1)
    for key, value in (("index", index), ("round", of_round)):
        if type(value) is not int:
            raise invalid(f"{key} must be a whole number (got {value!r})", key)
    outcome: Outcome = row["outcome"]
    by, when = (str(row.get(name, "")) for name in ("by", "time"))
    return HumanLabel(question=row["question"], round=of_round, index=index, outcome=outcome, by=by, time=when)
