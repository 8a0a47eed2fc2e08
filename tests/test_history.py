"""The history of benchmarks: one line per run, and what changed between the last two on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compare import changes, numbers
from history import emit


def test_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    emit("client", {"cases": [{"name": "64 KiB", "ratio": 6.5}]}, show=False, path=path)
    assert capsys.readouterr().out == ""
    emit("client", {"ratio": 7}, show=True, path=path)
    assert json.loads(capsys.readouterr().out) == {"ratio": 7}
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["figures"]["cases"][0]["ratio"] == 6.5
    assert first["machine"] == second["machine"] != ""
    assert set(first) == {"date", "benchmark", "commit", "machine", "figures"}


def test_the_last_two_runs_on_one_machine_are_compared() -> None:
    lines = [
        {"benchmark": "a", "machine": "m", "figures": {"time": 9.0}},
        {"benchmark": "a", "machine": "m", "figures": {"time": 2.0, "cases": [{"name": "x", "ok": True, "ratio": 4}]}},
        {"benchmark": "a", "machine": "other", "figures": {"time": 50.0}},
        {"benchmark": "a", "machine": "m", "figures": {"time": 3.0, "cases": [{"name": "x", "ok": False, "ratio": 2}], "new": 1}},
        {"benchmark": "b", "machine": "m", "figures": {"time": 1.0}},
    ]
    assert {(c.benchmark, c.figure): c.ratio for c in changes(lines)} == {("a", "time"): 1.5, ("a", "cases.x.ratio"): 0.5}


def test_figures_are_numbered_by_name() -> None:
    assert dict(numbers({"a": [1, {"case": "big", "v": 2.5, "text": "no"}], "flag": True})) == {"a.0": 1.0, "a.big.v": 2.5}
