"""Files of preference pairs, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def picture(folder: Path, number: int) -> dict[str, object]:
    """An image as Parquet files of the Hub hold it."""
    return {"bytes": (folder / f"{number}.png").read_bytes(), "path": f"{number}.png"}


def meta(folder: Path, rows: Sequence[object], **entry: object) -> Path:
    """An MMPR collection of one annotation."""
    jsonl(folder / "annotations" / "set.jsonl", rows)
    path = folder / "meta.json"
    path.write_text(json.dumps({"set": {"root": ".", "annotation": "annotations/set.jsonl", "repeat_time": 1, **entry}}))
    return path
