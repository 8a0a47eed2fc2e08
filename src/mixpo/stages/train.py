"""Training: one job for each objective, with one shard that holds the logged steps; the trained model is next to it."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo.engines import create
from mixpo.errors import TrainError
from mixpo.objectives import OBJECTIVES
from mixpo.recipe import LossTable, TrainTable
from mixpo.records import read_row
from mixpo.run import Manifest
from mixpo.stages import prompting
from mixpo.stages.answer import params, prompt_for, source_name
from mixpo.stages.evaluate import Grader
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.models import TRAINED, ModelRef, settings_of
from mixpo.stages.question_index import REPLAY, QuestionIndex
from mixpo.stages.reference import file_digest, groups_file
from mixpo.stages.responses import request_of
from mixpo.stages.verdict_judge import without_judge
from mixpo.train.metrics import StepMetrics
from mixpo.types import Group, Question, content_id
from mixpo.vlm.folder import is_complete

if TYPE_CHECKING:
    from mixpo.train.group_data import Groups
    from mixpo.train.metrics import EvaluatePolicy, PolicyMetrics
    from mixpo.vlm.load import Vlm


def train_job(context: Context, plan: Plan, replay: QuestionIndex, number: int, objective: str, model: ModelRef) -> Job:
    """Round `number`: train `model` with one objective on the round's pairs and a share of the SFT rows in `replay`."""
    recipe, upstream, name = context.recipe, f"round-{number}/reference", job_name(number, objective)
    folder, table = context.run.root / name, table_of(recipe.train, objective)

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Sequence[StepMetrics]:
            from mixpo.train.compiled import require_compiler
            from mixpo.train.group_data import open_groups
            from mixpo.train.loop import train
            from mixpo.train.session import TrainJob
            from mixpo.train.sharding import sharded_launch
            from mixpo.vlm.load import pick_device

            if table.compile:
                require_compiler(pick_device(recipe.model.device))
            key = plan.shards(name)[shard]
            # A model that is sharded is never whole: each rank reads its shards.
            vlm, groups = context.models.fresh(model, unread=sharded_launch()), open_groups(groups_file(context, number))
            job = TrainJob(
                vlm=vlm,
                groups=groups,
                replay=replay_of(context, replay, int(groups.sizes["pairs"].sum()), vlm),
                table=table,
                objective=objective,
                images=recipe.image,
                folder=folder / f"work-{key}",
                output=model_folder(context, name, key),
                logs=context.run.root / "logs" / name,
                wandb_folder=context.recipe_folder / table.wandb.folder if table.wandb.folder else None,
                label=f"{context.run.root.name} {public_name(recipe.train, number, objective)}",
                seed=recipe.seed,
                round=number,
                reference_layout=reference_layout(context, number),
                watch=watch_of(context, plan, vlm),
                guard=guard_of(context, plan, vlm),
            )
            return train(job, context.progress).steps

        yield make

    return Job(
        kind="train",
        name=name,
        title=f"{title(context, number, 'train')} {objective}",
        row=StepMetrics,
        settings={
            **settings_of(recipe, "train", model),
            "train": table.deciding("train"),
            "objective": objective,
            "prompt": prompting.settings(recipe.prompt),
            "round": number,
        },
        inputs=(content_id(plan.digest(upstream), plan.digest(REPLAY)) if table.replay else plan.digest(upstream),),
        sizes=(1,),
        unit="models",
        needs=("source", upstream, *filter(None, [model.job])),
        session=session,
        ranks="together",
        own_bar=True,
        count=count_steps,
        check=partial(publish, context, name, public_name(recipe.train, number, objective)),
        artifacts=lambda shard: (model_folder(context, name, shard),),
        whole=is_complete,
    )


def reference_layout(context: Context, number: int) -> str:
    """The layout in which the reference log-probs of a round were computed; "" where a training computes them."""
    manifest = context.run.stage(f"round-{number}/reference").manifest
    return str(manifest.facts.get("layout", "")) if manifest else ""


def replay_of(context: Context, index: QuestionIndex, pairs: int, vlm: Vlm) -> Groups:
    """The SFT rows of a whole training on so many pairs, in the order of their use; each is read when a step needs it."""
    from mixpo.train.group_data import NO_GROUPS, Groups
    from mixpo.train.replay import replay_group, replay_order

    table = context.recipe.train.replay
    if table is None:
        return NO_GROUPS
    order = array("I", replay_order(index.questions, int(table.share * pairs * context.recipe.train.epochs + 1e-9), context.recipe.seed))
    ends, stage = [*accumulate(index.sizes)], context.run.stage(REPLAY)

    def get(place: int) -> Group:
        row = order[place]
        shard = bisect_right(ends, row)
        return replay_group(vlm, read_row(stage.path(index.shards[shard]), Question, row - ends[shard] + index.sizes[shard]))

    return Groups(len(order), get, file_digest(stage, index.shards, stage.manifest))


def model_folder(context: Context, name: str, shard: str) -> Path:
    """Where a training puts its model. The shard's name is part of it, so that no stale model can pass as a fresh one."""
    return context.run.root / name / f"{TRAINED}{shard}"


def public_name(table: TrainTable, number: int, objective: str) -> str:
    """The name under RUN/models: the objective's, with the round where another one follows."""
    return objective if number == table.rounds or objective != table.objective else f"{objective}-round-{number}"


def publish(context: Context, job: str, public: str, manifest: Manifest) -> None:
    """Point RUN/models/<public> at the model of a finished training. A relative link, so that the run can be moved."""
    models, (shard,) = context.run.models, manifest.shards
    target, link = os.path.relpath(model_folder(context, job, shard), models), models / public
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = models / f".{public}.tmp"
    try:
        models.mkdir(exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        # The model is there all the same, and not every file system has links.
        context.progress.say(f"{link}: cannot be made a link ({error.strerror}); the model is in {model_folder(context, job, shard)}")


def published(context: Context, plan: Plan) -> dict[str, Path]:
    """The trained models of this plan that are there, by public name."""
    jobs = [planned for planned in plan.planned.values() if planned.job.kind == "train" and planned.finished()]
    folders = {model_folder(context, planned.job.name, planned.names()[0]).resolve() for planned in jobs}
    links = sorted(context.run.models.iterdir()) if context.run.models.is_dir() else []
    return {link.name: link for link in links if link.is_symlink() and link.resolve() in folders}


def withdraw(context: Context, plan: Plan) -> None:
    """Remove links to models that this plan would not make, or that are gone: a name never stands for another model."""
    kept = published(context, plan)
    for link in context.run.models.glob("*"):
        if link.is_symlink() and link.name not in kept:
            link.unlink()


def job_name(number: int, objective: str) -> str:
    """The folder of a training."""
    return f"round-{number}/train/{objective}"


def model_of(context: Context, plan: Plan, number: int, objective: str) -> ModelRef:
    """The model that a training makes. It is known by what it is made from, before it is there."""
    name = job_name(number, objective)
    (shard,) = plan.shards(name)
    return ModelRef(name=objective, identity=f"{name} {shard}", folder=model_folder(context, name, shard), job=name)


def table_of(table: TrainTable, objective: str) -> TrainTable:
    """The table with only what an objective uses of [train.loss]: a single term has weight 1, and only some forms have a beta."""
    parts = OBJECTIVES[objective]
    weights = () if parts.single else tuple(term for term in ("preference", "quality", "generation") if getattr(parts, term))
    others = (*(("beta",) if parts.beta else ()), *(("label_smoothing",) if parts.smoothing else ()))
    others += ("reference_alpha", "reference_every") if parts.moving_reference else ()
    others += ("hold", "hold_width") if parts.held else ()
    used = {name: getattr(table.loss, name) for name in (*weights, *others)}
    return table.model_copy(update={"loss": LossTable(**used)})


def count_steps(rows: Sequence[StepMetrics]) -> Mapping[str, int]:
    """Optimizer steps that were logged, the tokens that passed through the model in them, and SFT rows of [train.replay]."""
    counts = {"steps": rows[-1].step if rows else 0, "tokens": sum(row.tokens for row in rows)}
    replay = {"replay rows": rows[-1].replay_rows, "replay rows not usable": rows[-1].replay_skipped} if rows else {}
    return {**counts, **{name: count for name, count in replay.items() if count}}


def curves(context: Context, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The logged steps of every training that is done, by the public name of its model."""
    rows = {}
    for planned in plan.planned.values():
        if planned.job.kind == "train" and planned.finished():
            number, _, objective = planned.job.name.removeprefix("round-").split("/")
            public = public_name(context.recipe.train, int(number), objective)
            rows[public] = [asdict(row) for row in plan.rows(planned.job.name, 0)]
    return rows


def watch_of(context: Context, plan: Plan, vlm: Vlm) -> EvaluatePolicy | None:
    """The in-training evaluation that the recipe asks for, on a policy that changes in place; None without [train.watch]."""
    table = context.recipe.train.watch
    return _evaluation(context, plan, vlm, table.set, table.count, "watch") if table is not None else None


def guard_of(context: Context, plan: Plan, vlm: Vlm) -> EvaluatePolicy | None:
    """The same for [train.guard]; on the training questions where there is no evaluation set."""
    table = context.recipe.train.guard
    return _evaluation(context, plan, vlm, table.set, table.count, "guard") if table is not None else None


def _evaluation(context: Context, plan: Plan, vlm: Vlm, name: str, count: int, purpose: str) -> EvaluatePolicy:
    """Greedy responses to the first questions of an evaluation set, or of [source] if there is none, graded without a judge."""
    from mixpo.evaluate.benchmarks import BENCHMARKS
    from mixpo.evaluate.score import score

    recipe, benchmark, stage = context.recipe, None, "source"
    context = replace(context, recipe=without_judge(recipe))  # too slow to be asked while training
    if sets := context.recipe.evaluate.sets:
        chosen = next(s for s in sets if s.name == (name or sets[0].name))
        benchmark = BENCHMARKS[chosen.source.name] if chosen.source.kind == "benchmark" else None
        stage = source_name(chosen.name)
    questions = _first(plan, stage, count)
    if not questions:
        raise TrainError(
            f"train.{purpose}: no question of {stage} has an answer to check responses with; name an evaluation set in train.{purpose}.set",
            code="no-questions-to-check",
            key=f"train.{purpose}",
        )
    requests = [
        request_of(prompting.with_system(recipe.prompt, q), prompt_for(recipe, q, "cot"), (0,), recipe.seed, purpose) for q in questions
    ]
    how = params(context.recipe, "cot")

    def evaluate() -> PolicyMetrics:
        from mixpo.train.metrics import PolicyMetrics

        engine = create("transformers", vlm=vlm, image=context.recipe.image, batch_size=context.recipe.evaluate.batch_size)
        answers = list(engine.sample(requests, how))
        engine.close()
        with Grader(context, benchmark, "cot") as marker:
            rows = score(marker.predictions(questions, answers))
        return PolicyMetrics(
            accuracy=rows.accuracy,
            tokens=rows.mean_tokens,
            loops=rows.loops / rows.n,
            cut=rows.cut / rows.n,
            unparsable=(rows.malformed + rows.failed) / rows.n,
        )

    return evaluate


def _first(plan: Plan, name: str, count: int) -> list[Question]:
    """The first questions of a stage that have an answer."""
    questions: list[Question] = []
    for number in range(len(plan.shards(name))):
        questions += [question for question in plan.rows(name, number) if question.answer is not None]
        if len(questions) >= count:
            break
    return questions[:count]
