"""Ask again only the questions of a run that failed. What follows from their answers is then stale, and `mixpo run` does it."""

from __future__ import annotations

from dataclasses import dataclass

from mixpo.pipeline import STAGES, build_plan, read_sources, run_stage
from mixpo.records import Sampled, read_column
from mixpo.stages.again import raise_attempts
from mixpo.stages.base import Context, Planned

ASKING = tuple(kind for kind in STAGES if kind in ("sample", "continue"))
"""Kinds of stages whose rows are answers of a model to one question each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """How many questions were asked again, by stage, and how many of them failed once more."""

    stage: str
    asked: int
    failed: int


def retry(context: Context) -> list[Retried]:
    """Ask the failed questions of every finished sampling stage again.

    Raises EngineError when a larger share than `max_error_rate` still fails; the answers that came are kept all the same.
    """
    with context.run.lock():
        plan = build_plan(context, read_sources(context))
        before = {planned.job.name: _failed(planned) for planned in plan.planned.values() if planned.job.kind in ASKING}
        for name, failed in before.items():
            if failed:
                raise_attempts(context.run.stage(name), failed)
    if not any(before.values()):
        return []
    run_stage(context, ASKING)
    plan = build_plan(context, read_sources(context))
    return [
        Retried(stage=name, asked=sum(failed.values()), failed=sum(_failed(plan.planned[name]).values()))
        for name, failed in before.items()
        if failed
    ]


def _failed(planned: Planned) -> dict[int, int]:
    """By the number of a shard that is there, how many of its questions failed. Reads no answers."""
    found = {}
    for number, shard in enumerate(planned.names()):
        path = planned.stage.path(shard)
        if path.exists() and (count := sum(map(bool, read_column(path, Sampled, "error")))):
            found[number] = count
    return found
