"""The stages of a run: what is done, what is done again, and why. A scripted engine writes the answers; the rest is real."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_run
from failures import fails
from PIL import Image
from small_run import kinds, make, manifest_of, open_small, plan_of, said, unfinished
from spying import spy
from torch import Tensor

from mixpo.cli import main
from mixpo.commands.plan import dry_run
from mixpo.commands.status import status
from mixpo.errors import EngineError, RecipeError, SourceError, TrainError
from mixpo.pipeline import open_run, run_recipe, run_stage
from mixpo.records import Prediction, Sampled
from mixpo.run import Manifest
from mixpo.stages.models import Models
from mixpo.stages.names import kind_of
from mixpo.stages.pair import check_pairs
from mixpo.stages.reference import check_scored
from mixpo.stages.report import load_report
from mixpo.stages.responses import seed_of
from mixpo.stages.train import published
from mixpo.types import Response
from mixpo.vlm import prompt
from mixpo.vlm.load import Vlm

# --- a whole run ---------------------------------------------------------------------------------------------------------


def test_everything_is_made(finished_run: Path) -> None:
    context = open_small(finished_run / "recipe.toml", finished_run / "run")
    plan = plan_of(context)
    assert not unfinished(plan)
    names = list(plan.planned)
    assert names[:5] == [f"round-1/{kind}" for kind in ("sample", "continue", "verify", "pair", "reference")]
    assert names[5:7] == ["round-1/train/sft", "round-1/train/mpo"]
    assert names[7:19] == [
        f"{kind}/held-out/{model}/{mode}"
        for model in ("base", "sft", "mpo")
        for mode in ("cot", "direct")
        for kind in ("answer", "evaluate")
    ]
    assert json.loads((finished_run / "run" / "round-1" / "reference" / "manifest.json").read_text())["facts"] == {"layout": "tree"}
    report = json.loads((finished_run / "run" / "report.json").read_text())
    assert report["models"]["base"]["cot"]["n"] == 6
    assert report["counts"]["round-1/pair"]["pairs"] == 40
    assert report["training"].keys() == {"sft", "mpo"}
    assert len(report["examples"]) == 4
    assert "<html" in (finished_run / "run" / "report.html").read_text()


@pytest.mark.slow
def test_trained_models_have_a_name_that_stays(own_run: Path) -> None:
    root = own_run / "run"
    links = {path.name: path for path in (root / "models").iterdir()}
    assert set(links) == {"mpo", "sft"}
    assert all(link.is_symlink() and not Path(os.readlink(link)).is_absolute() for link in links.values())
    assert (links["mpo"] / "model.safetensors").read_bytes() != (links["sft"] / "model.safetensors").read_bytes()
    report = json.loads((root / "report.json").read_text())
    assert report["trained"] == {"mpo": "models/mpo", "sft": "models/sft"}
    # Another recipe: the old model no longer goes by the name, and the new one does.
    changed = ("train.learning_rate=2e-3", "train.baselines=[]")
    before = links["mpo"].resolve()
    (root / "models" / "mpo").unlink()
    run_recipe(open_small(own_run / "recipe.toml", root))
    assert links["mpo"].resolve() == before
    run_stage(open_small(own_run / "recipe.toml", root, *changed), ("verify",))
    assert not any(link.is_symlink() for link in links.values())
    run_recipe(open_small(own_run / "recipe.toml", root, *changed))
    assert [path.name for path in (root / "models").iterdir()] == ["mpo"]
    assert links["mpo"].resolve() != before


@pytest.mark.slow
def test_each_round_has_its_model(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = make(tmp_path, tiny_folder)
    context = open_small(recipe, tmp_path / "run", "train.rounds=2", "train.baselines=[]", "evaluate.sets=[]")
    plan = run_recipe(context)
    found = published(context, plan)
    assert set(found) == {"mpo", "mpo-round-1"}
    assert found["mpo"].resolve().parent == tmp_path / "run/round-2/train/mpo"
    assert found["mpo-round-1"].resolve().parent == tmp_path / "run/round-1/train/mpo"


@pytest.mark.slow
def test_evaluation_leaves_out_questions_without_an_answer(tmp_path: Path, tiny_folder: Path) -> None:
    """They would count as not right, and lower every accuracy."""
    recipe = make(tmp_path, tiny_folder)
    with (tmp_path / "held_out.jsonl").open("a") as file:
        file.write('{"question": "Describe it.", "image": "images/501.png"}\n')
    context = open_small(recipe, tmp_path / "run", "train.baselines=[]")
    run_recipe(context)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["models"]["mpo"]["cot"]["n"] == 6
    (dropped,) = [row for row in report["dropped"] if row["stage"] == "evaluate/held-out/source"]
    assert (dropped["count"], "cannot be evaluated" in dropped["reason"]) == (1, True)
    assert dropped["where"].endswith("held_out.jsonl:7")


def test_shards_of_all_stages_are_aligned(finished_run: Path) -> None:
    plan = plan_of(open_small(finished_run / "recipe.toml", finished_run / "run"))
    for number in range(3):
        ids = [question.id for question in plan.rows("source", number)]
        assert len(ids) == (4 if number < 2 else 2)
        for kind in ("sample", "continue", "verify", "pair", "reference"):
            assert [row.question for row in plan.rows(f"round-1/{kind}", number)] == ids


def test_manifests_say_what_was_done(finished_run: Path) -> None:
    context = open_small(finished_run / "recipe.toml", finished_run / "run")
    manifest = context.run.stage("round-1/sample").manifest
    assert manifest is not None
    assert manifest.finished
    assert manifest.settings["seed"] == 7
    assert manifest.settings["sample"]["n"] == 4
    assert manifest.counts["answers"] == 40
    assert manifest.seconds > 0
    assert manifest.versions["transformers"][0].isdigit()


def test_answers_have_the_tokens_of_the_model(finished_run: Path) -> None:
    plan = plan_of(open_small(finished_run / "recipe.toml", finished_run / "run"))
    answers = [response for row in plan.rows("round-1/sample", 0) for response in row.responses]
    assert all(response.token_ids for response in answers)
    continued = [response for number in range(3) for row in plan.rows("round-1/continue", number) for response in row.responses]
    assert len(continued) == 8
    assert all(0 < response.prefix_len < len(response.token_ids) for response in continued)


def test_a_second_run_does_nothing_and_loads_no_model(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Models, "fresh", forbidden)
    before = {path: path.stat().st_mtime_ns for path in (finished_run / "run").rglob("*.parquet")}
    context = open_small(finished_run / "recipe.toml", finished_run / "run")
    run_recipe(context)
    assert {path: path.stat().st_mtime_ns for path in (finished_run / "run").rglob("*.parquet")} == before
    assert said(context) == []


@pytest.mark.slow
def test_one_model_at_a_time(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages of a round share one load; each training has one of its own."""
    loads: list[str] = []
    spy(monkeypatch, Models, "fresh", lambda _self, ref, **_: loads.append(ref.name))
    context = open_small(finished_run / "recipe.toml", tmp_path / "run")
    run_recipe(context)
    # For the reference and the two trainings; the scripted engine needs the model's tokens only, and loads no weights.
    assert loads == ["base", "base", "base"]
    assert context.models._held is None


# --- resume ----------------------------------------------------------------------------------------------------------------


def test_only_the_missing_shard_is_made(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from mixpo.engines.scripted import ScriptedEngine

    spy(monkeypatch, ScriptedEngine, "sample", lambda _self, requests, _params: asked.extend(request.key for request in requests))
    context = open_small(own_run / "recipe.toml", own_run / "run")
    planned = plan_of(context).planned["round-1/sample"]
    path = planned.stage.path(planned.names()[1])
    before, seconds = planned.stage.read(planned.names()[1], Sampled), planned.stage.manifest
    path.unlink()
    run_recipe(context)
    assert asked == [row.question for row in before]
    assert planned.stage.read(planned.names()[1], Sampled) == before
    after = planned.stage.manifest
    assert after is not None
    assert seconds is not None
    assert after.counts == seconds.counts
    assert after.seconds > seconds.seconds


def test_a_lost_model_is_trained_again(own_run: Path) -> None:
    (folder,) = (own_run / "run" / "round-1" / "train" / "mpo").glob("model-*")
    shutil.rmtree(folder)
    context = open_small(own_run / "recipe.toml", own_run / "run")
    assert unfinished(plan_of(context)) == {"round-1/train/mpo", "report"}
    run_recipe(context)
    assert (folder / "config.json").exists()


@pytest.mark.parametrize("name", ["report.html", "report.json"])
@pytest.mark.parametrize("command", ["run", "report"])
def test_a_lost_report_is_written_again(own_run: Path, name: str, command: str) -> None:
    (own_run / "run" / name).unlink()
    assert main([command, str(own_run / "recipe.toml"), "--dir", str(own_run / "run")]) == 0
    assert (own_run / "run" / name).exists()


def test_a_broken_report_is_written_again(own_run: Path) -> None:
    whole = (own_run / "run" / "report.json").read_text()
    (own_run / "run" / "report.json").write_text(whole.replace("0", "1", 1))
    assert main(["report", str(own_run / "recipe.toml"), "--dir", str(own_run / "run")]) == 0
    assert load_report(own_run / "run")


@pytest.mark.slow
def test_a_look_at_a_few_rows_loses_nothing(own_run: Path) -> None:
    few = open_small(own_run / "recipe.toml", own_run / "run", limit=5)
    run_recipe(few)
    assert plan_of(few).planned["round-1/sample"].job.sizes == (4, 1)
    manifest = few.run.stage("evaluate/held-out/mpo/cot").manifest
    assert manifest is not None
    assert manifest.counts["answers"] == 5
    whole = open_small(own_run / "recipe.toml", own_run / "run")
    work = [planned.work() for planned in plan_of(whole).planned.values() if planned.job.kind != "report"]
    assert not any(one.missing for one in work)


@pytest.mark.slow
def test_finished_stages_leave_no_stale_shards(own_run: Path) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "pairs.max_per_question=1")
    run_recipe(context)
    for kind in ("pair", "reference"):
        assert len(list((own_run / "run" / "round-1" / kind).glob("*.parquet"))) == 3
    assert len(list((own_run / "run" / "round-1" / "train" / "mpo").glob("model-*"))) == 1


@pytest.mark.slow
def test_force_forgets_the_stage_and_what_follows(own_run: Path) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run")
    run_recipe(context, ["pair"])
    forgotten = {line.split(":")[0] for line in said(context) if "forgotten" in line}
    assert kinds(forgotten) == {"pair", "reference", "train", "answer", "evaluate", "report"}
    assert not unfinished(plan_of(context))
    with pytest.raises(RecipeError, match="no such stage"):
        run_recipe(context, ["pairs"])


# --- what goes wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_too_many_failed_questions_end_the_run_and_are_listed(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    broken = [{"question": f"What is number {number}?", "error": "the picture is torn"} for number in (11, 12)]
    small_run.write_jsonl(tmp_path / "script.jsonl", [*broken, *small_run.script([*range(13, 21), *range(501, 507)])])
    context = open_small(recipe, tmp_path / "run")
    with pytest.raises(EngineError, match=r"2 of 10 questions failed.*max_error_rate = 0\.05.*the picture is torn"):
        run_recipe(context)
    with pytest.raises(EngineError, match="2 of 10 questions failed"):
        run_recipe(context)
    run_recipe(open_small(recipe, tmp_path / "run", "max_error_rate=0.5"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "the picture is torn" in json.dumps(report["dropped"])


@pytest.mark.parametrize(("answer", "message"), [("right", "8 have all answers right and 0 all wrong"), ("wrong", "0 have all")])
def test_no_pairs_are_explained_and_the_start_can_be_measured(tmp_path: Path, tiny_folder: Path, answer: str, message: str) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    lines = small_run.script([*range(11, 21), *range(501, 507)])
    for line, number in zip(lines, [*range(11, 21), *range(501, 507)], strict=True):
        line["responses"] = [f"Final answer: {number if answer == 'right' else 88}"]
    small_run.write_jsonl(tmp_path / "script.jsonl", lines)
    context = open_small(recipe, tmp_path / "run", "pairs.dropout_ntp=false")
    with pytest.raises(TrainError, match=message):
        run_recipe(context)
    run_stage(context, ("answer", "evaluate"))
    run_stage(context, ("report",))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["models"]["base"]["cot"]["accuracy"] == (1.0 if answer == "right" else 0.0)


def test_the_dry_run_counts_what_would_be_left_out(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = make(tmp_path, tiny_folder)
    with (tmp_path / "held_out.jsonl").open("a") as file:
        file.write('{"question": "Describe it.", "image": "images/501.png"}\n')
    (row,) = [row for row in dry_run(open_small(recipe, tmp_path / "run")) if row.stage == "evaluate/held-out/source"]
    assert (row.total, row.why) == (6, "read at every start; 1 row skipped, `mixpo check` lists them")


def test_nothing_to_evaluate_is_said(own_run: Path) -> None:
    """Exit status 0 after doing nothing would look like success."""
    with pytest.raises(RecipeError, match=r"nothing to evaluate: the recipe names no evaluation set; add a table \[\[evaluate.sets\]\]"):
        run_stage(open_small(own_run / "recipe.toml", own_run / "run", "evaluate.sets=[]"), ("answer", "evaluate"))


def test_no_pairs_in_a_later_round_names_the_round(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = make(tmp_path, tiny_folder)
    context = open_small(recipe, tmp_path / "run", "train.rounds=2", "train.baselines=[]", "evaluate.sets=[]")
    manifest = Manifest(stage="round-2/pair", settings={}, inputs=[], shards=[], counts={"questions": 9})
    with pytest.raises(TrainError, match=r"round 2: no pairs: of 9 questions") as caught:
        check_pairs(context, manifest, 2)
    assert "mixpo evaluate" not in str(caught.value)


def test_a_prompt_longer_than_the_limit_is_named(own_run: Path) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "train.max_length=20")
    message = r"question .*: its prompt of \d+ tokens \(with images\) leaves no room for a response in 20; raise train\.max_length"
    with pytest.raises(TrainError, match=message):
        run_recipe(context)


def test_pairs_longer_than_the_limit_are_named(own_run: Path) -> None:
    counts = {"pairs": 0, "dropped: longer than the limit of tokens (20)": 5}
    manifest = Manifest(stage="reference", settings={}, inputs=[], shards=[], counts=counts)
    context = open_small(own_run / "recipe.toml", own_run / "run", "train.max_length=20")
    with pytest.raises(TrainError, match=r"no pair can be trained on \(5 longer than the limit.*train\.max_length is 20"):
        check_scored(context, manifest)


def test_an_image_that_the_model_refuses_costs_its_question(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script has answered it all the same; only the reference stage shows it to the model."""
    process = prompt._process

    def refusing(vlm: Vlm, text: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        if any(image.height > 200 * image.width for image in images):
            raise SourceError("the model's processor refuses this question: too narrow", code="processor-refuses-question")
        return process(vlm, text, images)

    monkeypatch.setattr(prompt, "_process", refusing)
    recipe, steps = make(tmp_path, tiny_folder), ("sample", "continue", "verify", "pair", "reference")
    Image.new("RGB", (2, 900)).save(tmp_path / "images" / "13.png")
    with fails("too-many-refused", TrainError, key="max_error_rate") as failure:
        run_stage(open_small(recipe, tmp_path / "run"), steps)
    assert failure.parts[1:4] == ("1", "10 questions", "0.05")
    assert str(tmp_path / "images" / "13.png") in failure.parts[-1]
    context = open_small(recipe, tmp_path / "run", "max_error_rate=0.2")
    plan = run_stage(context, steps)
    assert plan.planned["round-1/reference"].finished()
    counts = manifest_of(context.run, "round-1/reference").counts
    assert (counts["questions"], counts["refused"], counts["dropped: the prompt cannot be used"]) == (9, 1, 4)
    assert any("dropped 1 question whose prompt cannot be used" in line and "13.png" in line for line in said(context))


# --- the transformers engine in the pipeline -------------------------------------------------------------------------------


def test_sampling_with_the_model_itself(tmp_path: Path, tiny_folder: Path) -> None:
    """Batch size, shard size and resume change no answer."""
    recipe = small_run.make(tmp_path, tiny_folder, count=5)
    settings = ["sample.engine=transformers", "sample.max_new_tokens=5", "evaluate.max_new_tokens=5", "evaluate.samples=2"]

    def answers(root: str, *more: str) -> tuple[dict[str, tuple[Response, ...]], set[tuple[str, int, str]]]:
        context = open_small(recipe, tmp_path / root, *settings, *more)
        plan = run_stage(context, ("sample", "answer", "evaluate"))
        rows = [row for number in range(len(plan.shards("source"))) for row in plan.rows("round-1/sample", number)]
        sampled = context.run.stage("evaluate/held-out/base/sampled").read_all(Prediction)
        return {row.question: row.responses for row in rows}, {(row.question, row.index, row.text) for row in sampled}

    one, sampled = answers("one")
    two, again = answers("two", "sample.batch_size=1", "shard_size=2", "evaluate.batch_size=2")
    assert len(sampled) == 12
    assert sampled == again
    ids = [{key: [r.token_ids for r in value] for key, value in answered.items()} for answered in (one, two)]
    assert ids[0] == ids[1]
    assert len({tuple(r.token_ids for r in value) for value in one.values()}) == 5


# --- small parts -----------------------------------------------------------------------------------------------------------


def test_seeds_depend_on_what_they_decide() -> None:
    seeds = {seed_of(seed, "sample", number, question, i) for seed in (0, 1) for number in (1, 2) for question in "ab" for i in range(4)}
    assert len(seeds) == 32
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "sample", 1, "a", 0) == seed_of(0, "sample", 1, "a", 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("source", "source"),
        ("evaluate/x/source", "source"),
        ("round-1/sample", "sample"),
        ("round-2/train/mpo", "train"),
        ("answer/x/base/cot", "answer"),
        ("evaluate/x/base/cot", "evaluate"),
        ("report", "report"),
    ],
)
def test_kind_of(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_status_reads_only_the_run_directory(own_run: Path) -> None:
    shutil.rmtree(own_run / "images")
    (own_run / "questions.jsonl").unlink()
    rows = {row["stage"]: row for row in status(open_run(own_run / "run")).stages}
    assert {row["state"] for row in rows.values()} == {"done"}
    next((own_run / "run" / "round-1" / "sample").glob("00001-*")).unlink()
    rows = {row["stage"]: row for row in status(open_run(own_run / "run")).stages}
    assert rows["round-1/sample"]["state"] == "part"
    assert rows["round-1/sample"]["why"] == ["1 shard is gone"]
