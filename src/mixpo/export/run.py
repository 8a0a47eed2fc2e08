"""The pairs of a run in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mixpo.errors import RecipeError, RunError
from mixpo.export.datasets import export_datasets
from mixpo.export.mmpr import export_mmpr
from mixpo.export.swift_llama_factory import export_llama_factory, export_swift
from mixpo.export.trl import Written, export_trl
from mixpo.pipeline import build_plan, known_sources
from mixpo.recipe import did_you_mean
from mixpo.stages import prompting
from mixpo.stages.job import Context
from mixpo.stages.select import pairs_of
from mixpo.types import Pair, Question

Rows = Iterator[tuple[Question, Pair]]
Render = Callable[[Question], str]


def _mmpr(rows: Rows, folder: Path, render: Render) -> Written:
    return Written(sum(export_mmpr(rows, folder, render=render).pairs.values()))


def _datasets(rows: Rows, folder: Path, render: Render) -> Written:
    return Written(export_datasets(rows, folder, render))


def _trl(rows: Rows, folder: Path, render: Render) -> Written:
    return export_trl(rows, folder / "pairs.jsonl", render)


FORMATS: dict[str, Callable[[Rows, Path, Render], Written]] = {
    "mmpr": _mmpr,
    "trl": _trl,
    "ms-swift": export_swift,
    "llama-factory": export_llama_factory,
    "datasets": _datasets,
}
"""By name: from pairs, a folder and the way a question is asked, to how many pairs were written."""


def export(context: Context, folder: Path, form: str = "mmpr", number: int = 1) -> Written:
    """Write the pairs of round `number` into a folder; returns how many. Raises RunError when they are not there."""
    if form not in FORMATS:
        raise RecipeError(f"--format {form}: unknown format{did_you_mean(form, FORMATS)}; known: {', '.join(FORMATS)}")
    plan = build_plan(context, known_sources(context.run, context.recipe))
    planned = plan.planned.get(pairs_of(context.recipe, number))
    if planned is None:
        raise RunError(f"--round {number}: the run has no such round; the last one is {context.recipe.train.rounds} (train.rounds)")
    if not planned.finished():
        raise RunError(f"{planned.stage.folder}: the pairs of round {number} are not finished; run the recipe first")
    shards = range(len(plan.shards("source")))
    blocks = (zip(plan.rows("source", shard), plan.rows(planned.job.name, shard), strict=True) for shard in shards)
    rows = ((question, pair) for block in blocks for question, paired in block for pair in paired.pairs)
    return FORMATS[form](rows, folder, lambda question: prompting.prompt_for(context.recipe.prompt, question).render(question.text))
