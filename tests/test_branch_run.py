"""Step-level pairs in whole runs: the stages and their records, kill and resume, failures, what is stale, report, export, viewer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import small_run
from failures import fails
from small_run import kinds, manifest_of, open_small, plan_of, unfinished

import mixpo.stages.engine as stage
from mixpo.commands.check import NO_BRANCH, check
from mixpo.commands.plan import dry_run
from mixpo.commands.retry import retry
from mixpo.engines import create
from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.scripted import ScriptedEngine
from mixpo.errors import EngineError, RecipeError, RunError
from mixpo.export.run import export
from mixpo.pairs.provenance import rebuild
from mixpo.pipeline import run_recipe, run_stage
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.records import Judged, Paired, Sampled, Scored, Valued
from mixpo.stages import prompting
from mixpo.stages.job import Context
from mixpo.stages.report import load_report
from mixpo.types import Question

EXTRA = """
[pairs.branches]
at = ["sentences", "ratios"]
ratios = [0.5]
max_places = 2
continuations = 2
max_responses = 1
"""
UP_TO_PAIR = ("sample", "continue", "verify", "branch", "value", "pair")


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with recipe.toml and, in run/, a finished run with branches. Shared by the tests of this file: leave it as it is."""
    folder = tmp_path_factory.mktemp("branched")
    recipe = small_run.make(folder, tiny_folder, extra=EXTRA)
    run_recipe(open_small(recipe, folder / "run", "train.baselines=[]", "evaluate.sets=[]"))
    return folder


def opened(folder: Path, *overrides: str) -> Context:
    return open_small(folder / "recipe.toml", folder / "run", "train.baselines=[]", "evaluate.sets=[]", *overrides)


def test_records_hold_values_and_pairs_with_one_beginning(branched: Path) -> None:
    context = opened(branched)
    names = ("source", *(f"round-1/{kind}" for kind in ("sample", "verify", "branch", "value", "pair")))
    rows: list[Iterator[Any]] = [
        context.run.stage(name).read_all(row) for name, row in zip(names, (Question, Sampled, Judged, Sampled, Valued, Paired), strict=True)
    ]
    count = 0
    for question, sampled, _judged, continued, valued, paired in zip(*rows, strict=True):
        assert question.answer is not None or not continued.responses
        assert [v.index for v in valued.verdicts] == sorted(response.index for response in continued.responses)
        for place in valued.places:
            response = sampled.responses[place.response]
            ends = [r for r in continued.responses if r.prefix_len == place.tokens]
            assert len(ends) == place.n == 2
            assert place.value == 0.5  # the script answers in turn right and wrong
            assert all(r.token_ids[: place.tokens] == response.token_ids[: place.tokens] for r in ends)
            assert response.text[: place.characters] == ends[0].text[: place.characters]
        for pair in (pair for pair in paired.pairs if pair.origin == "branch"):
            count += 1
            assert pair.chosen_ids[: pair.cut] == pair.rejected_ids[: pair.cut]
            assert rebuild(pair, sampled, branches=(continued, valued)) == pair
            assert prompting.number_of_pair(context.recipe, question, pair) == 0
    counts = manifest_of(context.run, "round-1/pair").counts
    assert count == counts["origin: branch"] == manifest_of(context.run, "round-1/value").counts["mixed_places"] == 14
    assert sum(origin == "branch" for row in context.run.stage("round-1/reference").read_all(Scored) for origin in row.origins) == 14


def test_a_second_run_does_nothing_and_a_setting_makes_stale_what_it_decides(branched: Path) -> None:
    assert not unfinished(plan_of(opened(branched)))
    later = {"pair", "reference", "train", "report"}
    assert kinds(unfinished(plan_of(opened(branched, "pairs.branches.max_per_place=1")))) == later
    assert kinds(unfinished(plan_of(opened(branched, "pairs.branches.continuations=3")))) == {"branch", "value", *later}
    assert kinds(unfinished(plan_of(opened(branched, "verify.tolerance=0.1")))) == {"verify", "branch", "value", *later}


def test_the_report_tells_what_a_pair_costs(branched: Path) -> None:
    report = load_report(branched / "run")
    assert report is not None
    pairs, run = report["pairs"], opened(branched).run
    assert pairs["origins"]["branch"] == 14
    tokens = manifest_of(run, "round-1/branch").counts["tokens"]
    assert pairs["tokens_per_pair"]["branch"] == pytest.approx(tokens / 14)
    open_tokens = manifest_of(run, "round-1/continue").counts["tokens"]
    assert pairs["tokens_per_pair"]["dropout_ntp"] > open_tokens / pairs["origins"]["dropout_ntp"]
    page = (branched / "run" / "report.html").read_text()
    assert "tokens generated per pair: branches" in page


def test_a_plan_knows_both_stages(branched: Path, tmp_path: Path, tiny_folder: Path) -> None:
    done = {row.stage: row for row in dry_run(opened(branched))}
    assert done["round-1/branch"].why == done["round-1/value"].why == "done"
    fresh = small_run.make(tmp_path, tiny_folder, extra=EXTRA)
    rows = {row.stage: row for row in dry_run(open_small(fresh, tmp_path / "run"))}
    # 8 of 10 questions have an answer, half of them are cut: 1 response, 2 places, 2 continuations of half a response.
    assert rows["round-1/branch"].tokens == 8 // 2 * 1 * 2 * 2 * 32 // 2
    assert rows["round-1/branch"].requests == 8
    assert rows["round-1/value"].todo == 10


def test_step_scored_responses_come_back_from_an_export(branched: Path, tmp_path: Path) -> None:
    context = opened(branched)
    count, skipped = export(context, tmp_path, "trl-steps")
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    valued = {row.question: row for row in context.run.stage("round-1/value").read_all(Valued)}
    sampled = {row.question: row for row in context.run.stage("round-1/sample").read_all(Sampled)}
    assert (count, skipped) == (len(rows), 0) == (sum(bool(row.places) for row in valued.values()), 0)
    for row in rows:
        response = sampled[row["question_id"]].responses[row["index"]]
        assert "".join(row["completions"]) == response.text
        places = valued[row["question_id"]].places
        assert row["values"][:-1] == [place.value for place in places]
        assert row["continuations"] == [*(place.n for place in places), 0]
        assert row["labels"] == [value > 0 for value in row["values"]]
        assert "<image>" in row["prompt"]
        assert all(Path(image).is_file() for image in row["images"])


def test_steps_of_a_run_without_branches_are_refused(finished_run: Path, tmp_path: Path) -> None:
    context = open_small(finished_run / "recipe.toml", finished_run / "run")
    with fails("no-branches", RunError, key="pairs.branches"):
        export(context, tmp_path, "trl-steps")
    with fails("no-branches", RecipeError, key="pairs.branches"):
        run_stage(context, ("branch", "value"))


def test_the_viewer_shows_values_as_text_and_colour(branched: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("duckdb")
    from starlette.testclient import TestClient

    from mixpo.viewer.app import create_app
    from mixpo.viewer.views import Views

    shutil.copytree(branched, tmp_path / "copy")
    context = opened(tmp_path / "copy")
    question = next(row for row in context.run.stage("round-1/value").read_all(Valued) if row.places)
    pair = next(pair for row in context.run.stage("round-1/pair").read_all(Paired) for pair in row.pairs if pair.origin == "branch")
    with TestClient(create_app(Views(context)), base_url="http://127.0.0.1") as client:
        page = client.get(f"/questions/{question.question}").text
        assert 'class="v2" title="1 of 2 continuations from the end of this step end right"' in page
        assert "50 %</small>" in page
        listed = client.get("/pairs?origin=branch").text
        assert "<b>1–14</b>" in listed
        shown = client.get(f"/pairs/{pair.id}").text
        assert f"shared prefix of {pair.cut} token" in shown
        assert f"continuation {pair.chosen_index}" in shown
        assert "branches" in client.get("/statistics").text


# --- kill, failures, retries --------------------------------------------------------------------------------------------


class Fragile(ScriptedEngine):
    """Fails on some questions, or ends with an interrupt after some; asked: the questions that it was given."""

    broken: ClassVar[set[str]]
    asked: ClassVar[list[str]]
    left = 10**9

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        for row in super().sample(requests, params):
            if Fragile.left == 0:
                raise KeyboardInterrupt
            Fragile.left -= 1
            Fragile.asked.append(row.question)
            yield Sampled(question=row.question, error="the server is away") if row.question in Fragile.broken else row


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> type[Fragile]:
    plain = create

    def make(name: str, **named: object) -> object:
        engine = plain(name, **named)  # type: ignore[arg-type]
        engine.__class__ = Fragile
        return engine

    monkeypatch.setattr(stage, "create", make)
    Fragile.broken, Fragile.asked, Fragile.left = set(), [], 10**9
    return Fragile


def test_a_killed_stage_resumes_with_nothing_lost_or_doubled(
    branched: Path, tmp_path: Path, tiny_folder: Path, fragile: type[Fragile]
) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, extra=EXTRA)
    context = open_small(recipe, tmp_path / "run", "sample.batch_size=2")
    run_stage(context, ("sample", "continue"))
    run_stage(context, ("verify",))
    fragile.left, fragile.asked = 5, []
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, ("branch", "value"))
    before = fragile.asked
    fragile.left, fragile.asked = 10**9, []
    for part in (("branch", "value"), ("pair",)):
        run_stage(context, part)
    assert len(before) == 5
    assert not set(before[:3]) & set(fragile.asked)  # the first shard was done
    for name, row in (("branch", Sampled), ("value", Valued), ("pair", Paired)):
        made, whole = (list(one.run.stage(f"round-1/{name}").read_all(row)) for one in (context, opened(branched)))
        assert made == whole


def test_failures_count_against_max_error_rate_and_only_they_are_retried(tmp_path: Path, tiny_folder: Path, fragile: type[Fragile]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, extra=EXTRA)
    context = open_small(recipe, tmp_path / "run")
    run_stage(context, ("sample", "continue"))
    run_stage(context, ("verify",))
    broken = next(row.question for row in context.run.stage("round-1/verify").read_all(Judged) if row.verdicts)
    fragile.broken = {broken}
    with pytest.raises(EngineError) as caught:
        run_stage(context, ("branch", "value"))
    assert caught.value.code == "too-many-failures"
    context = open_small(recipe, tmp_path / "run", "max_error_rate=1")
    run_stage(context, ("branch", "value"))
    run_stage(context, ("pair",))
    assert manifest_of(context.run, "round-1/branch").counts["failed"] == 1
    assert any(pair.origin == "branch" for row in context.run.stage("round-1/pair").read_all(Paired) for pair in row.pairs)
    fragile.broken, fragile.asked = set(), []
    (retried,) = retry(context)
    assert (retried.stage, retried.asked, retried.failed) == ("round-1/branch", 1, 0)
    assert fragile.asked == [broken]
    assert kinds(unfinished(plan_of(context))) >= {"value", "pair"}


def test_a_check_says_that_nobody_knows_right_from_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, extra=EXTRA)
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in small_run.rows(tmp_path, 11, 3)]
    small_run.write_jsonl(tmp_path / "questions.jsonl", rows)
    found = check(load(recipe, ("evaluate.sets=[]",)), tmp_path, Silent())
    assert NO_BRANCH in [finding.problem for finding in found.findings]
