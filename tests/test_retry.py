"""Failed questions are asked again, and only they; what follows from them is stale, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import small_run
from small_run import kinds, open_small, plan_of, said, unfinished

import mixpo.stages.engine as stage
from mixpo.cli import main
from mixpo.commands.retry import retry
from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.scripted import ByteCodec, ScriptedEngine
from mixpo.errors import EngineError, RunError
from mixpo.pipeline import run_recipe, run_stage
from mixpo.records import Sampled, read_column
from mixpo.stages.report import current_report


class Fragile(ScriptedEngine):
    """Fails on some questions, and remembers what it was asked."""

    broken: set[str]
    asked: list[str]

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        for row in super().sample(requests, params):
            self.asked.append(row.question)
            yield Sampled(question=row.question, error="the server is away") if row.question in self.broken else row


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Fragile:
    made = Fragile(["Final answer: 11", "Final answer: 88", "No idea"], ByteCodec())
    made.broken, made.asked = set(), []
    monkeypatch.setattr(stage, "create", lambda *_args, **_named: made)
    return made


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    return small_run.make(tmp_path, tiny_folder)


def test_only_the_failed_are_asked_again(recipe: Path, engine: Fragile) -> None:
    run = recipe.parent / "run"
    context = open_small(recipe, run, "max_error_rate=1")
    questions = [row for number in range(3) for row in plan_of(context).rows("source", number)]
    engine.broken = {questions[1].id, questions[2].id, questions[9].id}
    run_stage(context, ["sample"])
    run_stage(context, ["verify"])
    first = plan_of(context)
    before = [row for number in range(3) for row in first.rows("round-1/sample", number)]
    assert [row.question for row in before if row.error] == [questions[number].id for number in (1, 2, 9)]

    engine.broken, engine.asked = {questions[9].id}, []
    [report] = retry(open_small(recipe, run, "max_error_rate=1"))
    assert (report.stage, report.asked, report.failed) == ("round-1/sample", 3, 1)
    # Only the failed ones; open question 14 is continued as well, in a stage of its own.
    assert engine.asked[:3] == [questions[number].id for number in (1, 2, 9)]
    second = plan_of(open_small(recipe, run, "max_error_rate=1"))
    after = [row for number in range(3) for row in second.rows("round-1/sample", number)]
    assert [row.attempts for row in after] == [1, 2, 2, 1, 1, 1, 1, 1, 1, 2]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old == new if number not in (1, 2, 9) else new.question == old.question
    # The shard without a failure and all that was made from it stays.
    names = first.shards("round-1/sample"), second.shards("round-1/sample")
    assert [old == new for old, new in zip(*names, strict=True)] == [False, True, False]
    assert len(second.planned["round-1/verify"].work().missing) == 2
    assert "verify" in kinds(unfinished(second))

    engine.broken, engine.asked = set(), []
    assert retry(open_small(recipe, run, "max_error_rate=1"))[0].failed == 0
    assert engine.asked == [questions[9].id] * 2  # it has no known answer, and is continued as well
    assert retry(open_small(recipe, run, "max_error_rate=1")) == []


@pytest.mark.parametrize("again", ["retry", "sample"])
def test_a_kill_between_the_record_and_the_asking_loses_nothing(
    recipe: Path, engine: Fragile, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    context = open_small(recipe, recipe.parent / "run", "max_error_rate=1")
    engine.broken = {plan_of(context).rows("source", 0)[1].id}
    run_stage(context, ["sample"])
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.commands.retry.run_stage", lambda *_args, **_named: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retry(context)
    engine.asked, wanted = [], engine.broken
    engine.broken = set()
    if again == "retry":
        [report] = retry(context)
        assert (report.asked, report.failed) == (1, 0)
    else:
        run_stage(context, ["sample"])
    assert engine.asked[:1] == list(wanted)  # `retry` continues the open question as well
    assert [row.attempts for row in plan_of(context).rows("round-1/sample", 0)] == [1, 2, 1, 1]


@pytest.mark.slow
def test_too_many_failures_are_an_error_that_names_the_command(recipe: Path, engine: Fragile, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "run"
    context = open_small(recipe, run)
    engine.broken = {plan_of(context).rows("source", 0)[1].id}
    with pytest.raises(EngineError, match=f"1 of 10 questions failed, .* with `mixpo retry {run}`"):
        run_stage(context, ["sample"])
    assert main(["retry", str(run)]) == 1
    assert "1 of 10 questions failed" in capsys.readouterr().err
    engine.broken = set()
    assert main(["retry", str(run)]) == 0
    assert "round-1/sample: 1 failed question retried, 0 failed again" in capsys.readouterr().out
    assert main(["retry", str(run)]) == 0
    assert "no failed questions" in capsys.readouterr().out


def test_evaluation_is_retried_alone_and_marked_again(recipe: Path, engine: Fragile) -> None:
    run, settings = recipe.parent / "run", ("max_error_rate=1", 'evaluate.modes=["cot"]')
    context = open_small(recipe, run, *settings)
    questions = [row for number in range(2) for row in plan_of(context).rows("evaluate/held-out/source", number)]
    engine.broken = {questions[1].id, questions[2].id}
    name = "answer/held-out/base/cot"
    run_stage(context, ["answer", "evaluate"])
    first = plan_of(context)
    report = current_report(context, first)
    [alarm] = [alarm["text"] for alarm in report["alarms"] if alarm["cause"] == "failed"]
    assert alarm.startswith("2 of 6 responses, counted as not correct")
    scores = report["models"]["base"]["cot"]
    assert (scores["n"], scores["failed"], scores["undecided"]) == (6, 2, 2)

    # Nothing of the run's sampling was asked for, and retrying the evaluation asks for none of it.
    engine.broken, engine.asked = {questions[2].id}, []
    context = open_small(recipe, run, *settings)
    [report_of_one] = retry(context)
    assert (report_of_one.stage, report_of_one.asked, report_of_one.failed) == (name, 2, 1)
    assert engine.asked == [questions[1].id, questions[2].id]
    listed = f"{name}: 2 questions had failed: 2 x the server is away ({questions[1].label}, {questions[2].label})"
    assert listed in said(context)
    second = plan_of(context)
    assert [row.attempts for number in range(2) for row in second.rows(name, number)] == [1, 2, 2, 1, 1, 1]
    assert [old == new for old, new in zip(first.shards(name), second.shards(name), strict=True)] == [False, True]
    assert len(second.planned["evaluate/held-out/base/cot"].work().missing) == 1

    engine.broken, engine.asked = set(), []
    retry(open_small(recipe, run, *settings))
    assert engine.asked == [questions[2].id]
    context = open_small(recipe, run, *settings)
    run_stage(context, ["evaluate"])
    report = current_report(context, plan_of(context))
    assert report["models"]["base"]["cot"]["failed"] == 0
    assert not [alarm for alarm in report["alarms"] if alarm["cause"] == "failed"]
    assert retry(open_small(recipe, run, *settings)) == []


def test_a_stage_that_fails_too_often_keeps_no_other_from_being_asked(recipe: Path, engine: Fragile) -> None:
    context = open_small(recipe, recipe.parent / "run", "max_error_rate=0.2", 'evaluate.modes=["cot"]')
    plan = plan_of(context)
    sampled, held_out = plan.rows("source", 0), plan.rows("evaluate/held-out/source", 0)
    engine.broken = {sampled[0].id, sampled[1].id, sampled[2].id, held_out[0].id}
    with pytest.raises(EngineError):
        run_stage(context, ["sample"])
    run_stage(context, ["answer"])
    engine.asked = []
    with pytest.raises(EngineError, match=f"3 of 10 questions failed, .* with `mixpo retry {context.run.root}`"):
        retry(context)
    assert engine.asked == [*(question.id for question in sampled[:3]), held_out[0].id]


@pytest.mark.slow
def test_answers_of_a_model_that_is_stale_are_left_to_the_run(recipe: Path, engine: Fragile) -> None:
    """Its training follows from answers that are asked for again."""
    context = open_small(recipe, recipe.parent / "run", "max_error_rate=1", 'evaluate.modes=["cot"]')
    plan = plan_of(context)
    question, held_out = plan.rows("source", 0)[0], plan.rows("evaluate/held-out/source", 0)[0]
    engine.broken = {question.id, held_out.id}
    run_recipe(context)
    engine.broken, engine.asked = set(), []
    done = retry(context)
    assert [row.stage for row in done] == ["round-1/sample", "answer/held-out/base/cot"]
    assert [line for line in said(context) if "not retried" in line]
    run_recipe(context)
    assert retry(context) == []


def test_a_broken_record_of_attempts(recipe: Path, engine: Fragile) -> None:
    context = open_small(recipe, recipe.parent / "run")
    run_stage(context, ["sample"])
    (recipe.parent / "run" / "round-1" / "sample" / "attempts.json").write_text("[1]")
    with pytest.raises(RunError, match=r"attempts\.json: broken"):
        plan_of(context)


def test_one_column_is_read_alone(recipe: Path, engine: Fragile) -> None:
    context = open_small(recipe, recipe.parent / "run")
    run_stage(context, ["sample"])
    plan = plan_of(context)
    path = context.run.stage("round-1/sample").path(plan.shards("round-1/sample")[0])
    assert read_column(path, Sampled, "question") == [row.question for row in plan.rows("round-1/sample", 0)]
    assert replace(plan.rows("round-1/sample", 0)[0], attempts=2).attempts == 2
