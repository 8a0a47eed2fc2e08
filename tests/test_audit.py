"""The audit finds verdicts that are planted wrong, and nothing where all checks agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import small_run
from failures import fails
from small_run import open_small, plan_of

from mixpo.cli import main
from mixpo.commands.audit import audit
from mixpo.errors import RunError
from mixpo.integrity import records_of
from mixpo.pipeline import run_stage
from mixpo.records import Judged
from mixpo.run import Stage


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    made = small_run.make(tmp_path, tiny_folder)
    for kinds in (["sample"], ["verify"]):
        run_stage(open_small(made, tmp_path / "run"), kinds)
    return made


def rewrite(stage: Stage, shard: str, rows: list[Judged]) -> None:
    """Write a shard as if the stage had."""
    stage.write(shard, Judged, rows)
    manifest = stage.manifest
    assert manifest is not None
    stage.save_manifest(replace(manifest, files={**manifest.files, **records_of(stage.folder, [stage.path(shard)])}))


@pytest.mark.slow
def test_a_planted_verdict_is_found(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "run"
    context = open_small(recipe, run)
    assert audit(context, 5).doubtful == {}
    plan = plan_of(context)
    stage, shard = context.run.stage("round-1/verify"), plan.shards("round-1/verify")[0]
    rows: list[Judged] = plan.rows("round-1/verify", 0)
    wrong = replace(rows[1].verdicts[2], outcome="wrong")
    rows[1] = replace(rows[1], verdicts=(*rows[1].verdicts[:2], wrong, rows[1].verdicts[3]))
    rewrite(stage, shard, rows)
    found = audit(open_small(recipe, run), 5)
    assert (found.verdicts, found.doubtful) == (32, {"last sentence": 1})
    [row] = found.rows
    assert (row.question, row.index, row.outcome, row.gold) == (rows[1].question, 2, "wrong", "12")
    assert row.why == "called wrong, but its last sentence holds the right answer"
    capsys.readouterr()
    assert main(["audit", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["index"] == 2
    assert main(["audit", str(run), "-n", "1"]) == 0
    assert "1 of 32 verdicts needs review: last sentence 1" in capsys.readouterr().out
    rows[1] = replace(rows[1], verdicts=(*rows[1].verdicts[:2], replace(wrong, extracted="that " * 900), rows[1].verdicts[3]))
    rewrite(stage, shard, rows)
    assert main(["audit", str(run)]) == 0
    assert "\N{HORIZONTAL ELLIPSIS}" in (shown := capsys.readouterr().out)
    assert shown.count("that") < 100  # an answer without an end does not fill the screen


def test_verdicts_that_are_not_there(recipe: Path) -> None:
    with fails("unknown-round", RunError):
        audit(open_small(recipe, recipe.parent / "run"), 5, 2)
