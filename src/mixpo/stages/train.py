"""Training: one job for each objective, with one shard that holds the logged steps; the trained model lies beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixpo.objectives import OBJECTIVES
from mixpo.recipe import LossTable, TrainTable
from mixpo.stages import prompting
from mixpo.stages.base import Context, Job, Make, Plan, title
from mixpo.stages.models import ModelRef
from mixpo.stages.source import Index
from mixpo.train.metrics import StepMetrics
from mixpo.types import Group

DECIDING = {
    "learning_rate", "schedule", "warmup", "weight_decay", "epochs", "batch_size", "max_grad_norm", "freeze",
    "pairs_per_group",
}  # fmt: skip
"""Settings of [train] that decide the weights; the others decide how fast they come, or what is kept and logged."""


def train_job(context: Context, plan: Plan, index: Index, number: int, objective: str, model: ModelRef) -> Job:
    """Round `number`: train `model` with one objective on the round's pairs."""
    recipe, upstream, name = context.recipe, f"round-{number}/reference", job_name(number, objective)
    folder = context.run.root / name

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Sequence[StepMetrics]:
            from mixpo.train.loop import train
            from mixpo.train.session import TrainJob

            key = plan.shards(name)[shard]
            job = TrainJob(
                vlm=context.models.fresh(model),
                groups=groups_of(context, plan, number),
                table=recipe.train.model_copy(update={"loss": LossTable(**loss_settings(recipe.train, objective))}),
                objective=objective,
                images=recipe.image,
                folder=folder / f"work-{key}",
                output=model_folder(context, name, key),
                logs=context.run.root / "logs" / name,
                seed=recipe.seed,
            )
            return train(job, context.progress).steps

        yield make

    return Job(
        kind="train",
        name=name,
        title=f"{title(context, number, 'train')} {objective}",
        row=StepMetrics,
        settings={
            "objective": objective,
            "model": model.identity,
            "dtype": recipe.model.dtype,
            "image": recipe.image.model_dump(),
            "prompt": prompting.settings(recipe.prompt),
            "train": recipe.train.model_dump(include=DECIDING),
            "loss": loss_settings(recipe.train, objective),
            "seed": recipe.seed,
            "round": number,
        },
        inputs=(plan.digest(upstream),),
        sizes=(1,),
        unit="models",
        needs=("source", upstream, *filter(None, [model.job])),
        session=session,
        own_bar=True,
        count=count_steps,
        artifact=lambda shard: model_folder(context, name, shard),
    )


def groups_of(context: Context, plan: Plan, number: int) -> list[Group]:
    """Everything that round `number` trains on: the questions that have pairs, in order."""
    from mixpo.train.groups import from_record

    prompts, found = context.recipe.prompt, []
    for shard in range(len(plan.shards("source"))):
        for question, scored in zip(plan.rows("source", shard), plan.rows(f"round-{number}/reference", shard), strict=True):
            if scored.chosen:
                found.append(from_record(question, prompting.prompt_for(prompts, question).render(question.text), scored))
    return found


def model_folder(context: Context, name: str, shard: str) -> Path:
    """Where a training puts its model. The shard's name is part of it, so that no stale model can be taken for a fresh one."""
    return context.run.root / name / f"model-{shard}"


def job_name(number: int, objective: str) -> str:
    """The folder of a training."""
    return f"round-{number}/train/{objective}"


def model_of(context: Context, plan: Plan, number: int, objective: str) -> ModelRef:
    """The model that a training makes. It is known by what it is made from, before it is there."""
    name = job_name(number, objective)
    (shard,) = plan.shards(name)
    return ModelRef(name=objective, identity=f"{name} {shard}", folder=model_folder(context, name, shard), job=name)


def loss_settings(table: TrainTable, objective: str) -> dict[str, float]:
    """What an objective uses of [train.loss]: a single term has weight 1, and only some forms have a beta."""
    parts = OBJECTIVES[objective]
    weights = () if parts.single else tuple(term for term in ("preference", "quality", "generation") if getattr(parts, term))
    others = (*(("beta",) if parts.beta else ()), *(("label_smoothing",) if parts.smoothing else ()))
    return {name: getattr(table.loss, name) for name in (*weights, *others)}


def count_steps(rows: Sequence[StepMetrics]) -> Mapping[str, int]:
    """Optimizer steps that were logged, and the tokens that passed through the model in them."""
    return {"steps": rows[-1].step if rows else 0, "tokens": sum(row.tokens for row in rows)}


def curves(plan: Plan, name: str) -> list[dict[str, Any]]:
    """The logged steps of a training that is done."""
    return [asdict(row) for row in plan.rows(name, 0)]
