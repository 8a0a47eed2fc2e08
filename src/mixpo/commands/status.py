"""How far a run is, from its directory alone: nothing is made, no source is read again, no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixpo.pipeline import build_plan
from mixpo.run import Manifest, Run
from mixpo.stages.answer import source_name
from mixpo.stages.imported import STAGE
from mixpo.stages.job import Context, Planned
from mixpo.stages.question_index import REPLAY
from mixpo.stages.questions import known_sources
from mixpo.stages.report import load_report
from mixpo.stages.train import published


@dataclass(frozen=True, slots=True)
class RunStatus:
    """stages: one row for each stage, in order: stage, state, done, total, why, counts, seconds. models: folders of the trained models.

    state: "done", "part" (some shards are there), "stale" (made before from something else) or "to do". report: the last report, as in
    report.json, or None without one.
    """

    stages: list[dict[str, Any]]
    models: dict[str, str]
    report: dict[str, Any] | None = None


def status(context: Context) -> RunStatus:
    """The state of a run, with the questions of the last time that the sources were read."""
    sources = known_sources(context.run, context.recipe)
    plan = build_plan(context, sources)
    own = ("source", *([STAGE] if context.recipe.preferences else []), *([REPLAY] if context.recipe.train.replay else []))
    rows = [
        _source_row(context.run, name) for name in (*(own if context.recipe.trains else ()), *(source_name(name) for name in sources.sets))
    ]
    rows += [_row(planned) for planned in plan.planned.values()]
    return RunStatus(rows, {name: str(link) for name, link in published(context, plan).items()}, load_report(context.run.root))


def _source_row(run: Run, name: str) -> dict[str, Any]:
    stage = run.stage(name)
    manifest = stage.manifest
    total = len(manifest.shards) if manifest else 0
    done = sum(stage.path(shard).exists() for shard in manifest.shards) if manifest else 0
    return {
        "stage": name,
        "state": "done" if manifest and manifest.finished and done == total else "to do",
        "done": done,
        "total": total,
        "why": [] if manifest else ["not read yet"],
        "counts": manifest.counts if manifest else {},
        "seconds": manifest.seconds if manifest else 0.0,
    }


def _row(planned: Planned) -> dict[str, Any]:
    work, manifest = planned.work(), planned.stage.manifest
    done = len(work.shards) - len(work.missing)
    return {
        "stage": planned.job.name,
        "state": "done" if planned.finished() and work.shards else _unfinished(manifest, done),
        "done": done,
        "total": len(work.shards),
        "why": list(work.reasons),
        "counts": manifest.counts if manifest and not work.missing else {},
        "seconds": manifest.seconds if manifest else 0.0,
    }


def _unfinished(manifest: Manifest | None, done: int) -> str:
    if done:
        return "part"
    return "stale" if manifest is not None and manifest.finished else "to do"
