"""What a change makes stale: exactly what depends on it, with the reason said; everything else is used again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small_run
from small_run import kinds, open_small, plan_of, said, unfinished
from spying import spy

from mixpo.pipeline import build_plan, run_recipe, run_stage
from mixpo.run import changed_settings
from mixpo.stages.questions import Sources
from mixpo.stages.reading import reading_of
from mixpo.stages.source import refresh

AFTER_SAMPLE = {"continue", "verify", "pair", "reference", "train", "answer", "evaluate", "report"}


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
        ("train.max_length=300", {"reference", "train", "answer", "evaluate", "report"}),
        ("train.learning_rate=1e-4", {"train", "answer", "evaluate", "report"}),
        ("train.lora.rank=4", {"train", "answer", "evaluate", "report"}),
        ("train.reference=online", {"reference", "train", "answer", "evaluate", "report"}),
        ("train.loss.reference_alpha=1", {"report"}),
        ("evaluate.max_new_tokens=16", {"answer", "evaluate", "report"}),
        ("prompt.direct=plain", {"answer", "evaluate", "report"}),
        ("report.title=other", {"report"}),
        ("sample.batch_size=5", {"report"}),
        ("verify.workers=2", {"report"}),
        ("evaluate.batch_size=3", {"report"}),
        ("train.tokens_per_batch=999", {"report"}),
        ("train.save_every=7", {"report"}),
    ],
)
def test_a_changed_setting_makes_stale_exactly_what_depends_on_it(finished_run: Path, override: str, stale: set[str]) -> None:
    context = open_small(finished_run / "recipe.toml", finished_run / "run", override)
    assert kinds(unfinished(plan_of(context))) == stale


@pytest.mark.parametrize(
    ("override", "trained", "evaluated"),
    [
        ("train.loss.quality=0.5", {"mpo"}, {"mpo"}),
        ("train.loss.beta=0.5", {"mpo"}, {"mpo"}),
        ('train.baselines=["sft", "dpo"]', {"dpo"}, {"dpo"}),
        ("prompt.direct=plain", set(), {"base", "sft", "mpo"}),
    ],
)
def test_only_the_models_concerned_are_stale(finished_run: Path, override: str, trained: set[str], evaluated: set[str]) -> None:
    names = unfinished(plan_of(open_small(finished_run / "recipe.toml", finished_run / "run", override)))
    assert {name.split("/")[-1] for name in names if "/train/" in name} == trained
    assert {name.split("/")[2] for name in names if name.startswith("evaluate/")} == evaluated


def test_staleness_is_said_with_the_reason(own_run: Path) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "sample.temperature=0.5")
    run_stage(context, ("sample",))
    assert "sample: stale, 3 of 3 shards are redone (sample.temperature: 1.0 -> 0.5)" in said(context)


def test_a_stage_killed_in_its_first_shard_goes_on(own_run: Path) -> None:
    """Nothing is stale there: the same work was only not finished."""
    context = open_small(own_run / "recipe.toml", own_run / "run")
    stage = context.run.stage("round-1/pair")
    manifest = stage.manifest
    assert manifest is not None
    stage.save_manifest(replace(manifest, finished=False))
    for shard in manifest.shards:
        stage.path(shard).unlink()
    run_stage(context, ("pair",))
    assert said(context) == ["pair: resuming, 0 of 3 shards are done (3 shards are not finished)"]


def test_another_pairing_rule_samples_nothing(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was sampled")

    monkeypatch.setattr("mixpo.stages.engine.create", forbidden)
    context = open_small(own_run / "recipe.toml", own_run / "run", "pairs.max_per_question=1")
    run_stage(context, ("sample", "continue", "verify", "pair"))
    assert said(context) == ["pair: stale, 3 of 3 shards are redone (pairs.max_per_question: 15 -> 1)"]


def test_changed_bytes_under_the_same_path_concern_one_shard(own_run: Path) -> None:
    small_run.picture(own_run / "images" / "15.png", 200)
    context = open_small(own_run / "recipe.toml", own_run / "run")
    plan = plan_of(context)
    for kind in ("sample", "continue", "verify", "pair", "reference"):
        work = plan.planned[f"round-1/{kind}"].work()
        assert [shard[:5] for shard in work.missing] == ["00001"]
    assert "source: 1 of 3 question shards is new or changed" in said(context)
    run_stage(context, ("sample",))
    assert "sample: stale, 1 of 3 shards is redone (1 of 3 input shards is new or changed)" in said(context)


def test_a_moved_folder_of_images_costs_nothing(own_run: Path, tmp_path: Path) -> None:
    shutil.copytree(own_run / "images", tmp_path / "moved" / "images")
    shutil.rmtree(own_run / "images")
    context = open_small(own_run / "recipe.toml", own_run / "run", f"source.root={tmp_path / 'moved'}")
    plan = build_plan(context, Sources(train=refresh(context, "source", reading_of(context, context.recipe.source)), sets={}))
    assert not [name for name in unfinished(plan) if name.startswith("round-1")]
    assert all(Path(q.images[0].path).exists() for number in range(3) for q in plan.rows("source", number))


def test_another_way_to_compare_answers_samples_nothing(finished_run: Path) -> None:
    context = open_small(finished_run / "recipe.toml", finished_run / "run", "source.answer_kind=text")
    names = {name for name in unfinished(plan_of(context)) if name.startswith("round-1")}
    assert kinds(names) == {"verify", "pair", "reference", "train"}
    run_stage(open_small(finished_run / "recipe.toml", finished_run / "run"), ())


def test_more_rounds_keep_the_first(own_run: Path) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "train.rounds=2")
    names = unfinished(plan_of(context))
    assert not [name for name in names if name.startswith("round-1")]
    assert {name for name in names if name.startswith("round-2")} == {
        "round-2/sample", "round-2/continue", "round-2/verify", "round-2/pair", "round-2/reference", "round-2/train/mpo",
    }  # fmt: skip
    assert {name.split("/")[2] for name in names if name.startswith(("answer", "evaluate"))} == {"mpo"}


@pytest.mark.slow
def test_the_second_round_starts_from_the_model_of_the_first(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "train.rounds=2")
    folders: list[Path | None] = []
    spy(monkeypatch, context.models, "fresh", lambda ref, **_: folders.append(ref.folder))
    plan = run_recipe(context)
    (first,) = (own_run / "run" / "round-1" / "train" / "mpo").glob("model-*")
    (second,) = (own_run / "run" / "round-2" / "train" / "mpo").glob("model-*")
    # For round 2's reference and training; the scripted engine evaluates with the tokens of the second alone.
    assert folders == [first, first]
    assert second != first
    one, two = (plan.rows(f"round-{number}/sample", 0)[0].responses[0].seed for number in (1, 2))
    assert one != two
    one, two = (plan.rows(f"round-{number}/reference", 0)[0].logps for number in (1, 2))
    assert one != two


def test_a_domain_does_not_matter_where_it_has_no_prompt(finished_run: Path) -> None:
    one = plan_of(open_small(finished_run / "recipe.toml", finished_run / "run", "source.domain=maps"))
    assert not [name for name in unfinished(one) if name.startswith("round-1")]
    run_stage(open_small(finished_run / "recipe.toml", finished_run / "run"), ())


def test_domains_have_prompts_of_their_own(tmp_path: Path, tiny_folder: Path) -> None:
    extra = '[prompt.by_domain]\nmaps = "boxed"\n'
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    recipe.write_text(recipe.read_text().replace("[sample]", f"{extra}[sample]"))
    context = open_small(recipe, tmp_path / "run", "source.domain=maps")
    plan = plan_of(context)
    other = plan_of(open_small(recipe, tmp_path / "run", "source.domain=charts"))
    assert plan.shards("source") == other.shards("source")
    assert plan.shards("round-1/sample") != other.shards("round-1/sample")


def test_sources_have_prompts_and_rules_of_their_own(finished_run: Path) -> None:
    """The source of all questions is "questions": only patterns that fit it change anything, and only what depends on them."""
    recipe, run = finished_run / "recipe.toml", finished_run / "run"
    prompts = unfinished(plan_of(open_small(recipe, run, 'prompt.by_source={"quest*"="boxed"}')))
    assert "sample" in kinds(prompts)
    rules = unfinished(plan_of(open_small(recipe, run, 'verify.rules={"quest*"="relaxed"}')))
    assert {"verify", "pair"} <= kinds(rules)
    assert not {"sample", "continue"} & kinds(rules)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (1.0, 0.5, "key: 1.0 -> 0.5"),
        (None, {"model": "j"}, "key: None -> {'model': 'j'}"),
        ("Answer:\n\n{question}", "{question}", "key: Answer: {question} -> {question}"),
        ("one\ntwo", "one two", r"key: 'one\ntwo' -> 'one two'"),  # nothing but white space differs
        ("x" * 500 + "A", "x" * 500 + "B", f"key: …{'x' * 40}A -> …{'x' * 40}B"),  # where they begin to differ
        ("y" * 500, "z", f"key: {'y' * 159}… -> z"),
    ],
)
def test_a_changed_setting_is_told_on_one_line(old: object, new: object, told: str) -> None:
    assert changed_settings({"key": old, "same": 1}, {"key": new, "same": 1}) == [told]
