"""The stages of a run: what is done, what is done again, and why. A scripted engine writes the answers; the rest is real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small_run
from small_run import open_small, said

from mixpo.errors import EngineError, RunError, TrainError
from mixpo.pipeline import build_plan, kind_of, read_sources, run_recipe, run_stage
from mixpo.records import Prediction, Sampled
from mixpo.stages.base import Context, Plan
from mixpo.stages.models import Models
from mixpo.stages.sample import seed_of
from mixpo.status import open_run, status

AFTER_SAMPLE = {"continue", "verify", "pair", "reference", "train", "evaluate", "report"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a recipe and a finished run; leave it as it is."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = small_run.make(folder, tiny_folder)
    run_recipe(open_small(recipe, folder / "run"))
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def plan_of(context: Context) -> Plan:
    return build_plan(context, read_sources(context))


def unfinished(plan: Plan) -> set[str]:
    return {name for name, planned in plan.planned.items() if not planned.finished()}


def kinds(names: set[str]) -> set[str]:
    return {kind_of(name) for name in names}


# --- a whole run ---------------------------------------------------------------------------------------------------------


def test_everything_is_made(done: Path) -> None:
    context = open_small(done / "recipe.toml", done / "run")
    plan = plan_of(context)
    assert not unfinished(plan)
    names = list(plan.planned)
    assert names[:5] == [f"round-1/{kind}" for kind in ("sample", "continue", "verify", "pair", "reference")]
    assert names[5:7] == ["round-1/train/sft", "round-1/train/mpo"]
    assert [name.removeprefix("evaluate/held-out/") for name in names[7:13]] == [
        f"{model}/{mode}" for model in ("start", "sft", "mpo") for mode in ("cot", "direct")
    ]
    report = json.loads((done / "run" / "report.json").read_text())
    assert report["models"]["start"]["cot"]["n"] == 6
    assert report["counts"]["round-1/pair"]["pairs"] == 40
    assert report["training"].keys() == {"sft", "mpo"}
    assert len(report["examples"]) == 4
    assert "<html" in (done / "run" / "report.html").read_text()


def test_shards_of_all_stages_are_aligned(done: Path) -> None:
    plan = plan_of(open_small(done / "recipe.toml", done / "run"))
    for number in range(3):
        ids = [question.id for question in plan.rows("source", number)]
        assert len(ids) == (4 if number < 2 else 2)
        for kind in ("sample", "continue", "verify", "pair", "reference"):
            assert [row.question for row in plan.rows(f"round-1/{kind}", number)] == ids


def test_manifests_say_what_was_done(done: Path) -> None:
    context = open_small(done / "recipe.toml", done / "run")
    manifest = context.run.stage("round-1/sample").manifest
    assert manifest is not None
    assert manifest.finished
    assert manifest.settings["seed"] == 7
    assert manifest.settings["sample"]["n"] == 4
    assert manifest.counts["answers"] == 40
    assert manifest.seconds > 0
    assert manifest.versions["transformers"][0].isdigit()


def test_answers_have_the_tokens_of_the_model(done: Path) -> None:
    plan = plan_of(open_small(done / "recipe.toml", done / "run"))
    answers = [response for row in plan.rows("round-1/sample", 0) for response in row.responses]
    assert all(response.token_ids for response in answers)
    continued = [response for number in range(3) for row in plan.rows("round-1/continue", number) for response in row.responses]
    assert len(continued) == 8
    assert all(0 < response.prefix_len < len(response.token_ids) for response in continued)


def test_a_second_run_does_nothing_and_loads_no_model(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Models, "fresh", forbidden)
    before = {path: path.stat().st_mtime_ns for path in (done / "run").rglob("*.parquet")}
    context = open_small(done / "recipe.toml", done / "run")
    run_recipe(context)
    assert {path: path.stat().st_mtime_ns for path in (done / "run").rglob("*.parquet")} == before
    assert said(context) == []


def test_one_model_at_a_time(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, continuing and scoring share one load; each training has one of its own; each model is loaded once to evaluate."""
    loads: list[str] = []
    real = Models.fresh
    monkeypatch.setattr(Models, "fresh", lambda self, ref: (loads.append(ref.name), real(self, ref))[1])
    context = open_small(done / "recipe.toml", tmp_path / "run")
    run_recipe(context)
    assert loads == ["start", "start", "start", "start", "sft", "mpo"]
    assert context.models._held is None


# --- what is stale, and why ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("sample.temperature=0.5", {"sample", *AFTER_SAMPLE}),
        ("sample.n=3", {"sample", *AFTER_SAMPLE}),
        ("prompt.cot=boxed", {"sample", *AFTER_SAMPLE}),
        ("image.max_pixels=1000", {"sample", *AFTER_SAMPLE}),
        ("seed=8", {"sample", *AFTER_SAMPLE}),
        ("model.dtype=bfloat16", {"sample", *AFTER_SAMPLE}),
        ("pairs.dropout_ratio=0.4", AFTER_SAMPLE - {"verify"}),
        ("pairs.max_dropout_per_question=1", AFTER_SAMPLE - {"verify"}),
        ("verify.tolerance=0.1", AFTER_SAMPLE - {"continue"}),
        ("pairs.max_per_question=2", AFTER_SAMPLE - {"continue", "verify"}),
        ("train.max_length=300", {"reference", "train", "evaluate", "report"}),
        ("train.learning_rate=1e-4", {"train", "evaluate", "report"}),
        ("evaluate.max_new_tokens=16", {"evaluate", "report"}),
        ("prompt.direct=plain", {"evaluate", "report"}),
        ("report.title=other", {"report"}),
        ("sample.batch_size=5", {"report"}),
        ("verify.workers=2", {"report"}),
        ("evaluate.batch_size=3", {"report"}),
        ("train.tokens_per_batch=999", {"report"}),
        ("train.save_every=7", {"report"}),
    ],
)
def test_a_changed_setting_makes_stale_exactly_what_depends_on_it(done: Path, override: str, stale: set[str]) -> None:
    context = open_small(done / "recipe.toml", done / "run", override)
    assert kinds(unfinished(plan_of(context))) == stale


@pytest.mark.parametrize(
    ("override", "trained", "evaluated"),
    [
        ("train.loss.quality=0.5", {"mpo"}, {"mpo"}),
        ("train.loss.beta=0.5", {"mpo"}, {"mpo"}),
        ('train.baselines=["sft", "dpo"]', {"dpo"}, {"dpo"}),
        ("prompt.direct=plain", set(), {"start", "sft", "mpo"}),
    ],
)
def test_only_the_models_concerned_are_stale(done: Path, override: str, trained: set[str], evaluated: set[str]) -> None:
    names = unfinished(plan_of(open_small(done / "recipe.toml", done / "run", override)))
    assert {name.split("/")[-1] for name in names if "/train/" in name} == trained
    assert {name.split("/")[2] for name in names if name.startswith("evaluate/")} == evaluated


def test_staleness_is_said_with_the_reason(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run", "sample.temperature=0.5")
    run_stage(context, ("sample",))
    assert "sample: stale, 3 of 3 shards are made again (sample.temperature: 1.0 -> 0.5)" in said(context)


def test_another_pairing_rule_samples_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was sampled")

    monkeypatch.setattr("mixpo.stages.sample.create", forbidden)
    context = open_small(copy / "recipe.toml", copy / "run", "pairs.max_per_question=1")
    run_stage(context, ("sample", "continue", "verify", "pair"))
    assert said(context) == ["pair: stale, 3 of 3 shards are made again (pairs.max_per_question: 15 -> 1)"]


def test_changed_bytes_under_the_same_path_concern_one_shard(copy: Path) -> None:
    small_run.picture(copy / "images" / "15.png", 200)
    context = open_small(copy / "recipe.toml", copy / "run")
    plan = plan_of(context)
    for kind in ("sample", "continue", "verify", "pair", "reference"):
        work = plan.planned[f"round-1/{kind}"].work()
        assert [shard[:5] for shard in work.missing] == ["00001"]
    assert "source: 1 of 3 question shards are new or changed" in said(context)
    run_stage(context, ("sample",))
    assert "sample: stale, 1 of 3 shards are made again (1 of 3 input shards are new or changed)" in said(context)


def test_a_moved_folder_of_images_costs_nothing(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy / "images", tmp_path / "moved" / "images")
    shutil.rmtree(copy / "images")
    context = open_small(copy / "recipe.toml", copy / "run", f"source.root={tmp_path / 'moved'}")
    plan = build_plan(context, read_sources_of_training(context))
    assert not [name for name in unfinished(plan) if name.startswith("round-1")]
    assert all(Path(q.images[0].path).exists() for number in range(3) for q in plan.rows("source", number))


def read_sources_of_training(context: Context) -> object:
    from mixpo.pipeline import Sources
    from mixpo.stages.source import refresh

    return Sources(train=refresh(context, "source", context.recipe.source), sets={})


def test_another_way_to_compare_answers_samples_nothing(done: Path) -> None:
    context = open_small(done / "recipe.toml", done / "run", "source.answer_kind=text")
    names = {name for name in unfinished(plan_of(context)) if name.startswith("round-1")}
    assert kinds(names) == {"verify", "pair", "reference", "train"}
    run_stage(open_small(done / "recipe.toml", done / "run"), ())


def test_more_rounds_keep_the_first(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run", "train.rounds=2")
    names = unfinished(plan_of(context))
    assert not [name for name in names if name.startswith("round-1")]
    assert {name for name in names if name.startswith("round-2")} == {
        "round-2/sample", "round-2/continue", "round-2/verify", "round-2/pair", "round-2/reference", "round-2/train/mpo",
    }  # fmt: skip
    assert {name.split("/")[2] for name in names if name.startswith("evaluate")} == {"mpo"}


def test_the_second_round_starts_from_the_model_of_the_first(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run", "train.rounds=2")
    folders: list[Path | None] = []
    real = context.models.fresh
    context.models.fresh = lambda ref: (folders.append(ref.folder), real(ref))[1]  # type: ignore[method-assign]
    plan = run_recipe(context)
    (first,) = (copy / "run" / "round-1" / "train" / "mpo").glob("model-*")
    (second,) = (copy / "run" / "round-2" / "train" / "mpo").glob("model-*")
    assert folders == [first, first, second]
    one, two = (plan.rows(f"round-{number}/sample", 0)[0].responses[0].seed for number in (1, 2))
    assert one != two
    one, two = (plan.rows(f"round-{number}/reference", 0)[0].logps for number in (1, 2))
    assert one != two


# --- resume ----------------------------------------------------------------------------------------------------------------


def test_only_the_missing_shard_is_made(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from mixpo.engines.scripted import ScriptedEngine

    real = ScriptedEngine.sample
    monkeypatch.setattr(ScriptedEngine, "sample", lambda s, r, p: (asked.extend(x.key for x in r), real(s, r, p))[1])
    context = open_small(copy / "recipe.toml", copy / "run")
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


def test_a_lost_model_is_trained_again(copy: Path) -> None:
    (folder,) = (copy / "run" / "round-1" / "train" / "mpo").glob("model-*")
    shutil.rmtree(folder)
    context = open_small(copy / "recipe.toml", copy / "run")
    assert unfinished(plan_of(context)) == {"round-1/train/mpo", "report"}
    run_recipe(context)
    assert (folder / "config.json").exists()


def test_a_lost_report_is_written_again(copy: Path) -> None:
    (copy / "run" / "report.html").unlink()
    run_recipe(open_small(copy / "recipe.toml", copy / "run"))
    assert (copy / "run" / "report.html").exists()


def test_a_look_at_a_few_rows_loses_nothing(copy: Path) -> None:
    few = open_small(copy / "recipe.toml", copy / "run", limit=5)
    run_recipe(few)
    assert plan_of(few).planned["round-1/sample"].job.sizes == (4, 1)
    manifest = few.run.stage("evaluate/held-out/mpo/cot").manifest
    assert manifest is not None
    assert manifest.counts["answers"] == 5
    whole = open_small(copy / "recipe.toml", copy / "run")
    work = [planned.work() for planned in plan_of(whole).planned.values() if planned.job.kind != "report"]
    assert not any(one.missing for one in work)


def test_finished_stages_leave_no_stale_shards(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run", "pairs.max_per_question=1")
    run_recipe(context)
    for kind in ("pair", "reference"):
        assert len(list((copy / "run" / "round-1" / kind).glob("*.parquet"))) == 3
    assert len(list((copy / "run" / "round-1" / "train" / "mpo").glob("model-*"))) == 1


def test_force_forgets_the_stage_and_what_follows(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run")
    run_recipe(context, ["pair"])
    forgotten = {line.split(":")[0] for line in said(context) if "forgotten" in line}
    assert kinds(forgotten) == {"pair", "reference", "train", "evaluate", "report"}
    assert not unfinished(plan_of(context))
    with pytest.raises(RunError, match="no such stage"):
        run_recipe(context, ["pairs"])


# --- what goes wrong -------------------------------------------------------------------------------------------------------


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
    run_stage(context, ("evaluate",))
    run_stage(context, ("report",))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["models"]["start"]["cot"]["accuracy"] == (1.0 if answer == "right" else 0.0)


def test_pairs_longer_than_the_limit_are_named(copy: Path) -> None:
    context = open_small(copy / "recipe.toml", copy / "run", "train.max_length=20")
    with pytest.raises(TrainError, match=r"no pair can be trained on.*longer than the limit.*train\.max_length is 20"):
        run_recipe(context)


# --- the transformers engine in the pipeline -------------------------------------------------------------------------------


def test_sampling_with_the_model_itself(tmp_path: Path, tiny_folder: Path) -> None:
    """Batch size, shard size and resume change no answer."""
    recipe = small_run.make(tmp_path, tiny_folder, count=5)
    settings = ["sample.engine=transformers", "sample.max_new_tokens=5", "evaluate.max_new_tokens=5", "evaluate.samples=2"]

    def answers(root: str, *more: str) -> tuple[dict[str, object], set[tuple[str, int, str]]]:
        context = open_small(recipe, tmp_path / root, *settings, *more)
        plan = run_stage(context, ("sample", "evaluate"))
        rows = [row for number in range(len(plan.shards("source"))) for row in plan.rows("round-1/sample", number)]
        sampled = context.run.stage("evaluate/held-out/start/sampled").read_all(Prediction)
        return {row.question: row.responses for row in rows}, {(row.question, row.index, row.text) for row in sampled}

    one, sampled = answers("one")
    two, again = answers("two", "sample.batch_size=1", "shard_size=2", "evaluate.batch_size=2")
    assert len(sampled) == 12
    assert sampled == again
    assert {key: [r.token_ids for r in value] for key, value in one.items()} == {  # type: ignore[attr-defined]
        key: [r.token_ids for r in value]  # type: ignore[attr-defined]
        for key, value in two.items()
    }
    assert len({tuple(r.token_ids for r in value) for value in one.values()}) == 5  # type: ignore[attr-defined]


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
        ("evaluate/x/start/cot", "evaluate"),
        ("report", "report"),
    ],
)
def test_kind_of(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_domains_have_prompts_of_their_own(tmp_path: Path, tiny_folder: Path) -> None:
    extra = '[prompt.by_domain]\nmaps = "boxed"\n'
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    recipe.write_text(recipe.read_text().replace("[sample]", f"{extra}[sample]"))
    context = open_small(recipe, tmp_path / "run", "source.domain=maps")
    plan = plan_of(context)
    other = plan_of(open_small(recipe, tmp_path / "run", "source.domain=charts"))
    assert plan.shards("source") == other.shards("source")
    assert plan.shards("round-1/sample") != other.shards("round-1/sample")


def test_a_domain_does_not_matter_where_it_has_no_prompt(done: Path) -> None:
    one = plan_of(open_small(done / "recipe.toml", done / "run", "source.domain=maps"))
    assert not [name for name in unfinished(one) if name.startswith("round-1")]
    run_stage(open_small(done / "recipe.toml", done / "run"), ())


def test_status_reads_only_the_run_directory(copy: Path) -> None:
    shutil.rmtree(copy / "images")
    (copy / "questions.jsonl").unlink()
    rows = {row["stage"]: row for row in status(open_run(copy / "run"))}
    assert {row["state"] for row in rows.values()} == {"done"}
    next((copy / "run" / "round-1" / "sample").glob("00001-*")).unlink()
    rows = {row["stage"]: row for row in status(open_run(copy / "run"))}
    assert rows["round-1/sample"]["state"] == "part"
    assert rows["round-1/sample"]["why"] == ["1 shards are not finished"]
