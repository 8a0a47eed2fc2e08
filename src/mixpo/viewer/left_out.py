"""What each stage left out and why, as the report lists it."""

from __future__ import annotations

from typing import Any

from mixpo.report.build import PLACES, left_out, skipped_rows
from mixpo.stages.source import load_skipped
from mixpo.viewer.index import Index

FAILED = ("sample", "continue", "answer")
"""Kinds of stages in which a question may fail."""


def dropped(index: Index) -> list[dict[str, Any]]:
    """Rows of sources, questions that failed, and what was counted."""
    stages = index.layout.stages()
    skipped = (row for name in stages if name.rpartition("/")[2] == "source" for row in load_skipped(index.run.stage(name)))
    failed = (row for name, manifest in stages.items() if manifest.counts.get("failed") for row in _failed(index, name))
    return [*skipped_rows(skipped), *failed, *left_out(stages)]


def _failed(index: Index, stage: str) -> list[dict[str, Any]]:
    """The questions that failed in a stage, those of one reason together."""
    if not set(stage.split("/")) & set(FAILED):
        return []
    files = [str(path) for path in index.layout.shards(stage) if path is not None]
    query = f"SELECT error, count(*), min(question, {PLACES}) FROM read_parquet(?) WHERE error != '' GROUP BY error ORDER BY 2 DESC, 1"
    return [
        {"stage": stage, "where": ", ".join(places), "reason": reason, "count": count, "unit": "questions"}
        for reason, count, places in index.rows(query, files)
    ]
