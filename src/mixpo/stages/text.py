"""Text-only tasks of a model: one job for each model, with one shard that holds the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mixpo.evaluate import lm_eval
from mixpo.evaluate.lm_eval import TextScore
from mixpo.stages.job import Context, Job, Make, Plan
from mixpo.stages.models import ModelRef, settings_of


def text_job(context: Context, model: ModelRef) -> Job:
    """Every task of the recipe on one model."""
    recipe = context.recipe

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Sequence[TextScore]:
            from mixpo.vlm.prompt import context_limit

            vlm = context.models.load(model)
            return lm_eval.run_tasks(vlm.model, vlm.processor.tokenizer, context_limit(vlm), recipe.evaluate, context.base)

        yield make

    return Job(
        kind="text",
        name=f"text/{model.name}",
        title=f"text tasks: {model.name}",
        row=TextScore,
        settings={**settings_of(recipe, "text", model), **lm_eval.settings(recipe.evaluate, context.base)},
        inputs=("all",),
        sizes=(1,),
        unit="models",
        needs=tuple(filter(None, [model.job])),
        session=session,
        count=lambda rows: {"scores": len(rows)},
    )


def text_scores(plan: Plan) -> list[dict[str, Any]]:
    """The scores of all models whose text tasks are done."""
    return [
        {"model": planned.job.name.removeprefix("text/"), **asdict(row)}
        for planned in plan.planned.values()
        if planned.job.kind == "text" and planned.finished()
        for row in plan.rows(planned.job.name, 0)
    ]
