"""Imported pairs from end to end: decontamination, statistics, report, viewer and exports; beside sampled ones too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_run
from imported_pairs import content, read_pairs
from table_files import jsonl

from mixpo.export.run import FORMATS, export, pair_rows
from mixpo.pipeline import open_run, run_recipe
from mixpo.preferences import Imported
from mixpo.recipe import load
from mixpo.stages.imported import PairImport

ROOT = Path(__file__).parent.parent.parent


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def model(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TALK = [{"role": "system", "content": "Be brief."}, user("<image>What is <image>?"), model("A ball."), user("And <image> now?")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run: four sampled questions, and pairs of which two share a question and one an image with the evaluation set."""
    folder = tmp_path_factory.mktemp("flow")
    recipe = small_run.make(folder, tiny_folder, count=4)
    images = [f"images/{number}.png" for number in (11, 12, 13)]
    jsonl(folder / "pairs.jsonl", [
        {"messages": [user("<image>What color?"), model("Red.")], "rejected_response": "Blue <b>.", "images": images[:1]},
        {"messages": [*TALK, model("Green.")], "rejected_response": "Blue.", "images": images},
        {"messages": [user("<image>Which color?"), model("Red.")], "rejected_response": "Blue.", "images": ["images/501.png"]},
        {"messages": [user("<image>What color?"), model("It is red.")], "rejected_response": "Yellow.", "images": images[:1]},
        {"messages": [user("1 + 1?"), model("2")], "rejected_response": "3"},
    ])  # fmt: skip
    table = '[[preferences]]\npath = "pairs.jsonl"\ndomain = "talk"\n[model]\n'
    recipe.write_text(recipe.read_text().replace("[model]\n", table))
    run_recipe(small_run.open_small(recipe, folder / "run", "train.baselines=[]", "evaluate.modes=['cot']", "report.examples=20"))
    return folder / "run"


def test_pairs_of_both_kinds(run: Path) -> None:
    context = open_run(run)
    rows = list(pair_rows(context))
    origins = [pair.origin for _, pair in rows]
    assert origins.count("imported") == 4
    assert origins.count("correctness") > 0
    assert [pair.provenance for _, pair in rows if pair.origin == "imported"] == [f"pairs.jsonl:{line}" for line in (1, 4, 2, 5)]
    assert {question.domain for question, pair in rows if pair.origin == "imported"} == {"talk"}
    assert all(pair.chosen_ids and pair.rejected_ids for _, pair in rows)


def test_evaluation_sets_are_kept_out(run: Path) -> None:
    (skipped,) = (json.loads(line) for line in (run / "preferences" / "skipped.jsonl").read_text().splitlines())
    assert skipped["where"].endswith("pairs.jsonl:3")
    assert skipped["reason"] == "its image is in the evaluation set 'held-out'"


def test_released_prompts_do_not_hide_a_question(tmp_path: Path, tiny_folder: Path) -> None:
    """The question of an evaluation set with the released prompt around it, without an image."""
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    jsonl(tmp_path / "held_out.jsonl", [{"question": "What is 1 + 1?", "answer": "2"}])
    prompt = (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready to "
        'answer, please use the format "Final answer: .."\n\nQuestion:\n\n{}'
    )
    rows = [{"question": prompt.format(f"What is 1 + {n}?"), "chosen": "a", "rejected": "b"} for n in (1, 2)]
    jsonl(tmp_path / "pairs.jsonl", rows)
    recipe.write_text(recipe.read_text().replace("[model]\n", '[[preferences]]\npath = "pairs.jsonl"\n[model]\n'))
    context = small_run.open_small(recipe, tmp_path / "run")
    small_run.plan_of(context)
    assert "the same question is in the evaluation set 'held-out'" in "\n".join(small_run.said(context))
    assert small_run.manifest_of(context.run, "preferences").counts["pairs"] == 1


def test_statistics_and_report(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["pairs"]["origins"]["imported"] == 4
    (talk,) = (e for e in report["examples"] if e["question"].get("history"))
    assert [turn["role"] for turn in talk["question"]["history"]] == ["system", "user", "assistant"]
    page = (run / "report.html").read_text()
    assert "And [image 3]" in page
    assert "What is [image 2]" in page


def test_the_viewer(run: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from mixpo.viewer.app import create_app
    from mixpo.viewer.views import Views

    context = open_run(run)
    views = Views(context)
    client = TestClient(create_app(views, "token"), base_url="http://127.0.0.1:8765")
    imported = [(question, pair) for question, pair in pair_rows(context) if pair.origin == "imported"]
    for question, pair in imported:
        text = client.get(f"/pairs/{pair.id}").text
        assert f"<code>{pair.provenance}</code>" in text
        assert ("Be brief." in text) == bool(question.history)
        assert client.get(f"/questions/{question.id}").status_code == 200
        for number in range(len(question.images)):
            assert client.get(f"/image/{question.id}/{number}").headers["content-type"].startswith("image/")
    assert "<b>." not in client.get(f"/pairs/{imported[0][1].id}").text
    listed = client.get("/pairs?origin=imported").text
    assert all(f"/pairs/{pair.id}" in listed for _, pair in imported)
    assert client.get("/statistics").status_code == 200
    views.index.close()


@pytest.mark.parametrize("form", FORMATS)
def test_exports(run: Path, tmp_path: Path, form: str) -> None:
    context = open_run(run)
    rows = [row for row in pair_rows(context) if form != "mmpr" or not row[0].history]
    assert export(context, tmp_path, form) == (len(rows), form == "mmpr")
    path = {"mmpr": tmp_path / "meta.json", "llama-factory": tmp_path / "dataset_info.json", "datasets": tmp_path}
    back = {content(*row)[1:] for row in read_pairs(path.get(form, tmp_path / "pairs.jsonl"))}
    assert {content(*row)[1:] for row in rows if row[1].origin == "imported"} <= back


def test_the_committed_recipe(tmp_path: Path) -> None:
    """recipes/preferences.toml and its small MMPR folder: every row is usable."""
    recipe = load(ROOT / "recipes" / "preferences.toml")
    context = small_run.open_small(ROOT / "recipes" / "preferences.toml", tmp_path / "run")
    items = list(PairImport(context).items())
    assert sum(isinstance(item, Imported) for item in items) == 18
    assert not [item for item in items if not isinstance(item, Imported) and hasattr(item, "reason")]
    assert recipe.source is None


@pytest.mark.slow
def test_the_committed_recipe_trains(tmp_path: Path) -> None:
    run_recipe(small_run.open_small(ROOT / "recipes" / "preferences.toml", tmp_path / "run"))
    assert (tmp_path / "run" / "models" / "mpo" / "config.json").exists()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["pairs"]["origins"]["imported"] == 18
