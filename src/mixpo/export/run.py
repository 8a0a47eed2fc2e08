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
from mixpo.pipeline import build_plan
from mixpo.recipe import did_you_mean
from mixpo.stages import prompting
from mixpo.stages.job import Context, Plan, Planned
from mixpo.stages.pair import pairs_of
from mixpo.stages.questions import known_sources
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
    plan = build_plan(context, known_sources(context.run, context.recipe))
    planned = _finished(context, plan, pairs_of(context.recipe, number), number)
    shards = range(len(plan.shards("source")))
    blocks = (zip(plan.rows("source", shard), plan.rows(planned.job.name, shard), strict=True) for shard in shards)
    asked = partial(prompting.with_system, context.recipe.prompt)
    return ((asked(question), pair) for block in blocks for question, paired in block for pair in paired.pairs)


def scored_responses(context: Context, number: int = 1) -> Iterator[ScoredResponse]:
    """The responses of round `number` that were cut, with their steps, in order. Raises RunError when they are not there."""
    recipe = context.recipe
    if recipe.pairs.branches is None:
        message = f"--format {STEPS}: no response was cut, because the recipe has no table [pairs.branches]; add it and run again"
        raise RunError(message, code="no-branches", key="pairs.branches")
    plan = build_plan(context, known_sources(context.run, recipe))
    names = ("source", *(f"round-{number}/{kind}" for kind in ("sample", "verify", "value")))
    _finished(context, plan, names[-1], number)
    for shard in range(len(plan.shards(names[-1]))):
        for question, sampled, judged, valued in zip(*(plan.rows(name, shard) for name in names), strict=True):
            prompts, verdicts = prompting.prompts_of(recipe, question), {verdict.index: verdict for verdict in judged.verdicts}
            for response in sampled.responses:
                places = [place for place in valued.places if place.response == response.index and place.value is not None]
                if places:
                    prompt = prompts[prompting.number_of(recipe, question, response.index)].render(question.text)
                    scored = steps(response, places, verdicts.get(response.index))
                    yield ScoredResponse(prompting.with_system(recipe.prompt, question), prompt, response.index, scored)


def _finished(context: Context, plan: Plan, name: str, number: int) -> Planned:
    """A stage of round `number`. Raises RunError when it is not there or not finished."""
    planned = plan.planned.get(name)
    if planned is None:
        message = f"--round {number}: the run has no such round; the last one is {context.recipe.train.rounds} (train.rounds)"
        raise RunError(message, code="unknown-round", key="--round")
    if not planned.finished():
        message = f"{planned.stage.folder}: the pairs of round {number} are not finished; run the recipe first"
        raise RunError(message, code="pairs-unfinished", path=planned.stage.folder)
    return planned


def renderer(context: Context) -> Render:
    """From a pair and its question to the message that its responses were sampled under."""
    return partial(prompting.rendered, context.recipe)
