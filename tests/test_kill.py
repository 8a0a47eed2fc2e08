"""SIGKILL at random moments: run again, and everything is as if nothing had happened; nothing finished is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import small_run

from mixpo.pipeline import build_plan, known_sources, open_run
from mixpo.stages.base import Plan

KILLS = 20
CLOCKS = {"seconds", "tokens_per_second", "pairs_per_second"}
"""Figures of training that differ from run to run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """An undisturbed run, several killed ones, and the log of all."""
    folder = tmp_path_factory.mktemp("kill")
    recipe = small_run.make(folder / "data", tiny_folder)
    command = [sys.executable, str(Path(__file__).parent / "kill_loop.py"), str(recipe), str(folder), str(KILLS), "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr + (folder / "log.jsonl").read_text()[-2000:]
    return folder


def plan_of(root: Path) -> Plan:
    context = open_run(root)
    return build_plan(context, known_sources(context.run, context.recipe))


def records(plan: Plan, name: str) -> list[dict[str, Any]]:
    """All records of a stage, without the time that was measured."""
    rows = [asdict(row) for number in range(len(plan.shards(name))) for row in plan.rows(name, number)]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def test_the_records_are_those_of_an_undisturbed_run(folder: Path) -> None:
    expected = plan_of(folder / "undisturbed")
    killed = sorted(folder.glob("killed-*"))
    assert killed
    for root in killed:
        plan = plan_of(root)
        assert [name for name in plan.planned if not plan.planned[name].finished()] == []
        for name, planned in plan.planned.items():
            if planned.job.kind != "report":
                assert records(plan, name) == records(expected, name), f"{root}: {name}"


def test_no_question_is_there_twice(folder: Path) -> None:
    for root in folder.glob("killed-*"):
        plan = plan_of(root)
        ids = [row["question"] for row in records(plan, "round-1/sample")]
        assert len(ids) == len(set(ids)) == 10


def test_the_models_are_those_of_an_undisturbed_run(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    expected = {path.relative_to(folder / "undisturbed"): path for path in (folder / "undisturbed").rglob("*.safetensors")}
    assert len(expected) == 2
    for root in folder.glob("killed-*"):
        for relative, path in expected.items():
            one, other = load_file(path), load_file(root / relative)
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_finished_is_done_twice(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum("killed" in line for line in lines) == KILLS
    begun = [line for line in lines if "shard" in line]
    assert len(begun) > 50
    assert not [line for line in begun if line["there"]]
    assert not [line for line in lines if "error" in line]


def test_kills_left_no_temporary_files(folder: Path) -> None:
    left = [path for root in folder.glob("killed-*") for path in root.rglob("*.tmp")]
    assert not left
