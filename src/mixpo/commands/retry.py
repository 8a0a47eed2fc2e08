"""Retry only what failed in a run: questions that a model did not answer, and answers whose judge could not be read.

What follows from them is then stale, and `mixpo run` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixpo.errors import EngineError, ModelError, UnfinishedError
from mixpo.evaluate.grading import UNREAD
from mixpo.pipeline import blocked_by, build_plan, run_stage
from mixpo.plural import amount, first_few
from mixpo.records import Judged, Prediction, Valued, read_column
from mixpo.stages.attempts import raise_attempts
from mixpo.stages.job import Context, Plan, Planned
from mixpo.stages.questions import read_sources

SAMPLING_KINDS = ("sample", "continue", "verify", "branch", "value", "answer", "evaluate")
"""Kinds of stages that query a model or a judge."""
SHOWN, NAMED = 5, 3
"""Reasons that are logged for a stage, and questions that are named for each."""

Failures = dict[int, list[tuple[str, str]]]
"""By the number of a shard, the questions of it that failed, each with its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """How many questions were retried, by stage, and how many of them failed once more."""

    stage: str
    asked: int
    failed: int


def retry(context: Context) -> list[Retried]:
    """Ask the failed questions of every stage of sampling and evaluation again, and the judge where its reply could not be read.

    Why they had failed is reported first.

    A round's continuations, which follow from its answers, are made with them. Raises EngineError, for answers of the evaluation
    UnfinishedError, when a larger share than `max_error_rate` still fails; the answers that came are kept all the same, and the other
    stages are asked too.
    """
    with context.run.lock():
        plan = build_plan(context, read_sources(context))
        if context.models.gone:
            raise ModelError(context.models.gone, code="model-missing", key="model.path")
        before = {name: failures for name, planned in plan.planned.items() if (failures := _failed(planned))}
        for name, failed in before.items():
            context.progress.say(_summary(name, failed, _labels(plan, name, failed)))
            stage, names = context.run.stage(name), plan.planned[name].names()
            # Where a shard is missing its attempt is on record already, and a kill came before it was made.
            raise_attempts(stage, [number for number in failed if stage.path(names[number]).exists()])
    done, error = [], None
    for name, failed in before.items():
        plan = build_plan(context)
        if blocker := blocked_by(plan, plan.planned[name]):
            context.progress.say(f"{name}: not retried, {blocker}; `mixpo run` does both")
            continue
        try:
            run_stage(context, SAMPLING_KINDS, names=(name, name.removesuffix("/sample") + "/continue"))
        except (EngineError, UnfinishedError) as raised:
            error = error or raised
        done.append(Retried(stage=name, asked=_count(failed), failed=_count(_failed(build_plan(context).planned[name]))))
    if error is not None:
        raise error
    return done


def _failed(planned: Planned) -> Failures:
    """What failed in a stage. Reads no answers."""
    failures: Failures = {}
    attempts = planned.job.attempts
    for number, shard in enumerate(planned.names() if attempts is not None else ()):
        path = planned.stage.path(shard)
        if attempts is not None and not path.exists() and (earlier := attempts.before(number)):
            path = planned.stage.path(earlier)
        if path.exists() and any(reasons := _reasons(planned.job.row, path)):
            questions = read_column(path, planned.job.row, "question")
            failures[number] = [(question, reason) for question, reason in zip(questions, reasons, strict=True) if reason]
    return failures


def _reasons(row: type, path: Path) -> list[str]:
    """Why each row of a shard failed; "" for those that did not."""
    if row in (Prediction, Judged, Valued):
        return [UNREAD if unread else "" for unread in read_column(path, row, "unread")]
    return read_column(path, row, "error")


def _count(failed: Failures) -> int:
    return sum(map(len, failed.values()))


def _labels(plan: Plan, name: str, failed: Failures) -> dict[str, str]:
    """By its id, what the owner knows each question of some shards by."""
    source = plan.planned[name].job.needs[0]
    return {question.id: question.label for number in failed for question in plan.rows(source, number)}


def _summary(name: str, failed: Failures, labels: Mapping[str, str]) -> str:
    """What failed and why, in one line: the most frequent reasons, with some of the questions."""
    by_reason: dict[str, list[str]] = {}
    for question, reason in (failure for failures in failed.values() for failure in failures):
        by_reason.setdefault(reason, []).append(labels[question])
    most = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    shown = [f"{len(questions):,} x {reason} ({first_few(questions, NAMED)})" for reason, questions in most[:SHOWN]]
    rest = [f"{amount(len(most) - SHOWN, 'other reason')}"] if len(most) > SHOWN else []
    return f"{name}: {amount(_count(failed), 'question')} had failed: {'; '.join([*shown, *rest])}"
