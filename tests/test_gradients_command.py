"""`mixpo gradients`: measures the pairs of a run and changes nothing in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from failures import fails
from typer.testing import CliRunner

from mixpo.cli import app
from mixpo.commands.gradients import gradients
from mixpo.errors import RunError, TrainError
from mixpo.integrity import FileRecord
from mixpo.pipeline import open_run


def test_a_run_is_measured_and_left_as_it_is(finished_run: Path) -> None:
    run = finished_run / "run"
    before = {path: FileRecord.of(path) for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["gradients", str(run), "--json", "--questions", "12"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    whole, *kinds = measured["kinds"]
    assert (whole["kind"], whole["questions"]) == ("all pairs", measured["questions"])
    assert measured["questions"] == min(12, measured["of"])
    assert sum(kind["pairs"] for kind in kinds if ":" not in kind["kind"]) == whole["pairs"]
    assert {path: FileRecord.of(path) for path in run.rglob("*") if path.is_file()} == before
    table = CliRunner().invoke(app, ["gradients", str(run), "--questions", "12"])
    assert "(train.batch_size)" in table.stdout


def test_settings_are_those_given(finished_run: Path) -> None:
    context = open_run(finished_run / "run", ("train.batch_size=3",))
    assert gradients(context, 4).batch_size == 3
    with fails("objective-without-comparison", TrainError):
        gradients(open_run(finished_run / "run", ("train.objective=sft", "train.baselines=[]")), 4)


def test_a_round_without_reference_is_named(own_run: Path) -> None:
    folder = own_run / "run" / "round-1" / "reference"
    shutil.rmtree(folder)
    with fails("round-unfinished", RunError, path=folder):
        gradients(open_run(own_run / "run"), 4)
    with fails("unknown-round", RunError, key="--round"):
        gradients(open_run(own_run / "run"), 4, 2)
