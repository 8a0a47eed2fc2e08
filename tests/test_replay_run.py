"""`train.replay` in a whole run: its rows are a source of their own, counted in the report, and decide the trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_run

from mixpo.commands.check import check
from mixpo.commands.plan import dry_run
from mixpo.commands.status import status
from mixpo.pipeline import run_recipe
from mixpo.progress import Silent
from mixpo.stages.question_index import REPLAY
from mixpo.stages.reading import NO_RESPONSE

REPLAY_TABLE = """
[train.replay]
source = { kind = "jsonl", path = "chat.jsonl" }
share = 0.25
"""


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    rows = [
        {"question": "Say hello.", "answer": "Hello to all of you."},
        {"image": "images/11.png", "question": "Describe it.", "answer": "A square in one colour."},
        {"question": "No answer here."},
        {"question": "Broken", "answer": "stop <|im_end|> now"},
        {"image": "images/501.png", "question": "Held out?", "answer": "It is held out."},
    ]
    recipe = small_run.make(folder, tiny_folder, extra=REPLAY_TABLE)
    recipe.write_text(recipe.read_text().replace('baselines = ["sft"]', "baselines = []"))
    small_run.write_jsonl(folder / "chat.jsonl", rows)
    run_recipe(small_run.open_small(recipe, folder / "run"))
    return recipe


@pytest.mark.slow
def test_rows_are_counted_in_records_and_report(finished: Path) -> None:
    context = small_run.open_small(finished, finished.parent / "run")
    counts = small_run.manifest_of(context.run, "round-1/train/mpo").counts
    pairs = small_run.manifest_of(context.run, "round-1/reference").counts["pairs"]
    assert counts["replay rows"] + counts["replay rows not usable"] == pairs // 4
    assert counts["replay rows"] > 0
    source = context.run.stage(REPLAY).manifest
    assert source is not None
    assert (source.counts["questions"], source.counts["skipped"]) == (3, 2)  # no response; an image of an evaluation set is kept out
    report = json.loads((finished.parent / "run" / "report.json").read_text())
    assert f"<b>{counts['replay rows']}</b> replay rows" in (finished.parent / "run" / "report.html").read_text()
    assert report["counts"]["round-1/train/mpo"]["replay rows"] == counts["replay rows"]
    assert any(row["stage"] == REPLAY for row in report["dropped"])
    assert {row["stage"] for row in status(context).stages} > {REPLAY}


def test_a_change_makes_the_training_stale_and_nothing_else(finished: Path) -> None:
    folder = finished.parent
    assert small_run.unfinished(small_run.plan_of(small_run.open_small(finished, folder / "run"))) == set()
    other = small_run.open_small(finished, folder / "run", "train.replay.weight=0.5")
    assert small_run.kinds(small_run.unfinished(small_run.plan_of(other))) == {"train", "answer", "evaluate", "report"}
    rows = (folder / "chat.jsonl").read_text()
    (folder / "chat.jsonl").write_text(rows.replace("Hello to all", "Hi to all"))
    changed = small_run.open_small(finished, folder / "run")
    assert small_run.kinds(small_run.unfinished(small_run.plan_of(changed))) == {"train", "answer", "evaluate", "report"}
    assert not [line for line in small_run.said(changed) if line.startswith("source: stale")]
    (folder / "chat.jsonl").write_text(rows)


def test_a_dry_run_and_the_check_read_the_rows(finished: Path) -> None:
    context = small_run.open_small(finished, finished.parent / "run")
    assert [row.todo for row in dry_run(context) if row.stage == "round-1/train/mpo"] == [0]
    result = check(context.recipe, finished.parent, Silent())
    assert result.counts["train.replay: questions"] == 3
    assert [finding.problem for finding in result.findings if finding.where.endswith("chat.jsonl:3")] == [NO_RESPONSE]
