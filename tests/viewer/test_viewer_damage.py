"""Damaged files of a run, as the pages show them: refused by name, or rebuilt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mixpo.integrity import FileRecord
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.run import Manifest, Run
from mixpo.viewer.app import create_app
from mixpo.viewer.index import RunIndex
from mixpo.viewer.views import Views

TABLES = ("block", "question", "judged", "dropped", "pair")


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def middle(path: Path) -> int:
    return path.stat().st_size * 4


def rows(index: RunIndex) -> dict[str, list[tuple[object, ...]]]:
    return {table: index.rows(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES}


@pytest.mark.parametrize("stage", ["source", "round-1/verify", "round-1/pair"])
def test_a_flipped_shard_is_named_and_not_indexed(own: Path, stage: str) -> None:
    shard = min((own / stage).glob("*.parquet"))
    flip(shard, middle(shard))
    views = None
    try:
        with pytest.raises(Exception, match="fails its checksum") as failure:
            views = Views(open_run(own))
        assert str(shard) in str(failure.value)
    finally:
        if views is not None:
            views.index.close()


@pytest.mark.parametrize("stage", ["source", "round-1/pair"])
def test_a_search_reads_no_flipped_shard(own: Path, own_client: TestClient, stage: str) -> None:
    assert own_client.get("/pairs?text=the").status_code == 200
    shard = min((own / stage).glob("*.parquet"))
    flip(shard, middle(shard))
    page = own_client.get("/pairs?text=other")
    assert page.status_code == 500
    assert f"{shard.name}: not a readable record file" in page.text


def test_a_damaged_index_is_rebuilt(own: Path) -> None:
    """The attack of a hundred flips is in benchmarks/chaos_flips.py."""
    index = RunIndex(Run(own))
    whole = rows(index)
    index.close()
    path, rng = own / ".view" / "index.duckdb", random.Random(0)
    content, notices = path.read_bytes(), 0
    for _ in range(6):
        path.write_bytes(content)
        flip(path, rng.randrange(len(content) * 8))
        progress = Silent()
        index = RunIndex(Run(own), progress)
        assert rows(index) == whole
        index.close()
        notices += progress.lines == [f"{path}: damaged, rebuilding it"]
    assert notices > 2  # DuckDB does not read all bits of a file


def test_a_damaged_report_is_not_shown(own: Path) -> None:
    page = own / "report.html"
    page.write_text("<p>Scores: 58.3</p>")
    Run(own).stage("report").save_manifest(
        Manifest(stage="report", settings={}, inputs=[], shards=[], finished=True, files={"../report.html": str(FileRecord.of(page))})
    )
    views = Views(open_run(own))
    client = TestClient(create_app(views, "token"), base_url="http://127.0.0.1:8765")
    assert "58.3" in client.get("/report").text
    page.write_text("<p>Scores: 66.7</p>")
    shown = client.get("/report")
    views.index.close()
    assert "66.7" not in shown.text
    assert "fails its checksum" in shown.text
