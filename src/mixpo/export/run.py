"""The pairs of a run, and its step-scored responses, in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mixpo.errors import RecipeError, RunError
from mixpo.export.base import ExportCount, Render
from mixpo.export.datasets import export_datasets
from mixpo.export.jsonl import export_llama_factory, export_swift, export_trl
from mixpo.export.mmpr import export_mmpr
from mixpo.export.steps import ScoredResponse, export_steps
from mixpo.pairs.branches import steps
from mixpo.pipeline import finished_stage
from mixpo.recipe import did_you_mean
from mixpo.stages import prompting
from mixpo.stages.job import Context
from mixpo.stages.pair import kind_of_pairs
from mixpo.types import Pair, Question

Rows = Iterator[tuple[Question, Pair]]


STEPS = "trl-steps"
"""The format of step-scored responses; all others are of pairs."""
FORMATS: dict[str, Callable[[Rows, Path, Render], ExportCount]] = {
    "mmpr": export_mmpr,
    "trl": export_trl,
    "ms-swift": export_swift,
    "llama-factory": export_llama_factory,
    "datasets": export_datasets,
}
"""By name: write pairs with their rendered prompts into a folder."""


def export(context: Context, folder: Path, form: str = "mmpr", number: int = 1) -> ExportCount:
    """Write the pairs of round `number` (its step-scored responses) into a folder; returns how many. Raises RunError without any."""
    if form == STEPS:
        return export_steps(scored_responses(context, number), folder)
    if form not in FORMATS:
        known = (*FORMATS, STEPS)
        message = f"--format {form}: unknown format{did_you_mean(form, known)}; known: {', '.join(known)}"
        raise RecipeError(message, code="unknown-format", key="--format")
    return FORMATS[form](pair_rows(context, number), folder, renderer(context))


def pair_rows(context: Context, number: int = 1) -> Rows:
    """The pairs of round `number` with their questions, in order. Raises RunError when they are not there."""
    plan, paired_in = finished_stage(context, number, kind_of_pairs(context.recipe))
    shards = range(len(plan.shards("source")))
    blocks = (zip(plan.rows("source", shard), plan.rows(paired_in, shard), strict=True) for shard in shards)
    asked = partial(prompting.with_system, context.recipe.prompt)
    return ((asked(question), pair) for block in blocks for question, paired in block for pair in paired.pairs)


def scored_responses(context: Context, number: int = 1) -> Iterator[ScoredResponse]:
    """The responses of round `number` that were cut, with their steps, in order. Raises RunError when they are not there."""
    recipe = context.recipe
    if recipe.pairs.branches is None:
        message = f"--format {STEPS}: no response was cut, because the recipe has no table [pairs.branches]; add it and run again"
        raise RunError(message, code="no-branches", key="pairs.branches")
    plan, valued_in = finished_stage(context, number, "value")
    names = ("source", f"round-{number}/sample", f"round-{number}/verify", valued_in)
    for shard in range(len(plan.shards(valued_in))):
        for question, sampled, judged, valued in zip(*(plan.rows(name, shard) for name in names), strict=True):
            prompts, verdicts = prompting.prompts_of(recipe, question), {verdict.index: verdict for verdict in judged.verdicts}
            for response in sampled.responses:
                places = [place for place in valued.places if place.response == response.index and place.value is not None]
                if places:
                    prompt = prompts[prompting.number_of(recipe, question, response.index)].render(question.text)
                    scored = steps(response, places, verdicts.get(response.index))
                    yield ScoredResponse(prompting.with_system(recipe.prompt, question), prompt, response.index, scored)


def renderer(context: Context) -> Render:
    """From a pair and its question to the message that its responses were sampled under."""
    return partial(prompting.rendered, context.recipe)
