"""What fails in the evaluation is left until the rest is done, and takes with it only what relies on the same model or judge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mixpo.errors import EngineError, EvaluateError, MixpoError, TrainError, UnfinishedError
from mixpo.stages.failures import DeferredFailures


def stage(name: str, kind: str = "", judge: bool = False, finished: bool = False) -> Any:
    settings = {"judge": {"model": "j"}} if judge else {}
    job = SimpleNamespace(name=name, kind=kind or name.partition("/")[0], title=name, settings=settings)
    return SimpleNamespace(job=job, finished=lambda: finished)


def do(stages: list[Any], failing: dict[str, MixpoError], blocked: tuple[str, ...] = ()) -> tuple[list[str], DeferredFailures]:
    """The stages that were tried, when those in `failing` fail and those in `blocked` need what is not there."""
    tried: list[str] = []

    def perform(planned: Any) -> None:
        tried.append(planned.job.name)
        if error := failing.get(planned.job.name):
            raise error

    deferred = DeferredFailures(
        perform=perform, blocked=lambda planned: "gone" if planned.job.name in blocked else "", say=lambda text: None
    )
    for one in stages:
        deferred.do(one)
    return tried, deferred


def test_a_model_that_is_away_is_asked_once() -> None:
    names = [
        "answer/a/big/cot",
        "evaluate/a/big/cot",
        "answer/a/big/direct",
        "answer/b/big/cot",
        "answer/b/base/cot",
        "evaluate/b/base/cot",
    ]
    tried, deferred = do([stage(name) for name in names], {names[0]: EngineError("away", code="server-down")}, blocked=(names[1],))
    assert tried == [names[0], *names[4:]]
    with pytest.raises(UnfinishedError, match=r"^answer/a/big/cot: away; everything else is done"):
        deferred.close()


def test_a_judge_that_is_away_is_asked_once_and_rules_go_on() -> None:
    stages = [stage("evaluate/a/base/cot", judge=True), stage("evaluate/b/base/cot"), stage("evaluate/a/mpo/cot", judge=True)]
    tried, deferred = do(stages, {"evaluate/a/base/cot": EvaluateError("the judge cannot be asked", code="judge-unavailable")})
    assert tried == ["evaluate/a/base/cot", "evaluate/b/base/cot"]
    with pytest.raises(UnfinishedError, match="the judge cannot be asked"):
        deferred.close()


def test_too_many_failed_answers_keep_no_other_stage_of_the_model_back() -> None:
    failing: dict[str, MixpoError] = {
        name: EngineError("6 of 6 failed", code="too-many-failures") for name in ("answer/a/big/cot", "answer/a/big/direct")
    }
    tried, deferred = do([stage(name, finished=True) for name in failing], failing)
    assert tried == list(failing)
    with pytest.raises(UnfinishedError, match=r"\(and 1 more\)"):
        deferred.close()


def test_what_others_build_on_stops_at_once() -> None:
    for kind in ("sample", "train"):
        with pytest.raises(EngineError):
            do([stage(f"round-1/{kind}", kind)], {f"round-1/{kind}": EngineError("away", code="server-down")})
    with pytest.raises(TrainError):  # no trouble of engines or judges
        do([stage("text/base")], {"text/base": TrainError("weights", code="weights-not-finite")})


def test_nothing_failed() -> None:
    tried, deferred = do([stage("answer/a/big/cot"), stage("evaluate/a/big/cot")], {})
    deferred.close()
    assert len(tried) == 2
