"""The pairs of a run in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mixpo.errors import RecipeError, RunError
from mixpo.export.base import ExportCount, Render
from mixpo.export.datasets import export_datasets
from mixpo.export.jsonl import export_llama_factory, export_swift, export_trl
from mixpo.export.mmpr import export_mmpr
from mixpo.pipeline import build_plan
from mixpo.recipe import did_you_mean
from mixpo.stages import prompting
from mixpo.stages.job import Context
from mixpo.stages.pair import pairs_of
from mixpo.stages.questions import known_sources
from mixpo.types import Pair, Question

Rows = Iterator[tuple[Question, Pair]]


def _mmpr(rows: Rows, folder: Path, render: Render) -> ExportCount:
    exported = export_mmpr(rows, folder, render=render)
    return ExportCount(sum(exported.pairs.values()), exported.skipped)


FORMATS: dict[str, Callable[[Rows, Path, Render], ExportCount]] = {
    "mmpr": _mmpr,
    "trl": lambda rows, folder, render: export_trl(rows, folder / "pairs.jsonl", render),
    "ms-swift": export_swift,
    "llama-factory": export_llama_factory,
    "datasets": export_datasets,
}
"""By name: write pairs with their rendered prompts into a folder."""


def export(context: Context, folder: Path, form: str = "mmpr", number: int = 1) -> ExportCount:
    """Write the pairs of round `number` into a folder; returns how many. Raises RunError when they are not there."""
    if form not in FORMATS:
        message = f"--format {form}: unknown format{did_you_mean(form, FORMATS)}; known: {', '.join(FORMATS)}"
        raise RecipeError(message, code="unknown-format", key="--format")
    return FORMATS[form](pair_rows(context, number), folder, renderer(context))


def pair_rows(context: Context, number: int = 1) -> Rows:
    """The pairs of round `number` with their questions, in order. Raises RunError when they are not there."""
    plan = build_plan(context, known_sources(context.run, context.recipe))
    planned = plan.planned.get(pairs_of(context.recipe, number))
    if planned is None:
        message = f"--round {number}: the run has no such round; the last one is {context.recipe.train.rounds} (train.rounds)"
        raise RunError(message, code="unknown-round", key="--round")
    if not planned.finished():
        message = f"{planned.stage.folder}: the pairs of round {number} are not finished; run the recipe first"
        raise RunError(message, code="pairs-unfinished", path=planned.stage.folder)
    shards = range(len(plan.shards("source")))
    blocks = (zip(plan.rows("source", shard), plan.rows(planned.job.name, shard), strict=True) for shard in shards)
    asked = partial(prompting.with_system, context.recipe.prompt)
    return ((asked(question), pair) for block in blocks for question, paired in block for pair in paired.pairs)


def renderer(context: Context) -> Render:
    """From a pair and its question to the message that its responses were sampled under."""
    return partial(prompting.rendered, context.recipe)
