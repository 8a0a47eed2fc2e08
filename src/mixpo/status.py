"""How far a run is, from its directory alone: nothing is made, no source is read again, no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixpo.errors import RunError
from mixpo.pipeline import Sources, build_plan, open_context
from mixpo.progress import Silent
from mixpo.recipe import Recipe, apply_override, parse
from mixpo.run import Manifest, Run
from mixpo.stages.answer import source_name
from mixpo.stages.base import Context, Planned
from mixpo.stages.source import Index, load_index
from mixpo.stages.train import published

EMPTY = Index(shards=(), sizes=(), open=(), kinds=(), domains=())


def open_run(root: Path, overrides: tuple[str, ...] = ()) -> Context:
    """The run in a directory, with the recipe and limit of its last command; `overrides` as in `mixpo.recipe.load`.

    Raises RunError when it is no run.
    """
    try:
        recipe = json.loads((root / "recipe.json").read_text(encoding="utf-8"))
        command = json.loads((root / "command.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{root}: no run directory (it has no recipe.json); give the folder that was --dir of `mixpo run`") from None
    except ValueError as error:
        raise RunError(f"{root}: recipe.json or command.json is broken ({error}); run the recipe again") from None
    for override in overrides:
        apply_override(recipe, override)
    return open_context(
        parse(recipe, str(root / "recipe.json"), overrides=overrides), Path(command["base"]), root, Silent(), command["limit"]
    )


def status(context: Context) -> list[dict[str, Any]]:
    """One row for each stage, in order: stage, state, done, total, why, counts, seconds.

    state: "done", "part" (some shards are there), "stale" (made before from something else) or "to do". The questions are
    those of the last time that the sources were read.
    """
    sources = known_sources(context.run, context.recipe)
    rows = [_source_row(context.run, name) for name in ("source", *(source_name(name) for name in sources.sets))]
    return [*rows, *(_row(planned) for planned in build_plan(context, sources).planned.values())]


def models(context: Context) -> dict[str, str]:
    """Where the trained models of a run are, by name; those that its recipe asks for and that are finished."""
    plan = build_plan(context, known_sources(context.run, context.recipe))
    return {name: str(link) for name, link in published(context, plan).items()}


def known_sources(run: Run, recipe: Recipe) -> Sources:
    """The questions as they were when last read; none where a source was never read."""

    def index(name: str) -> Index:
        return load_index(run.stage(name)) or EMPTY

    return Sources(train=index("source"), sets={s.name: index(source_name(s.name)) for s in recipe.evaluate.sets})


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
