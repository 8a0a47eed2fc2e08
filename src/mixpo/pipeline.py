"""The ordered stages of a run: what is planned, what is done, what is stale. Each stage's own work is in `mixpo.stages`.

The whole plan is known before anything is made, because a shard's name follows from settings and inputs and the identity of
a trained model from what it is trained on. `run_recipe`, `run_stage`, `status` and the dry run all walk the same plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from mixpo import sealed
from mixpo.distributed import Ranks
from mixpo.errors import RecipeError, RunError, refused
from mixpo.progress import Progress, Silent
from mixpo.recipe import STAGES, Recipe, apply_override, parse
from mixpo.records import Judged, Paired, Sampled, write_text
from mixpo.run import Run
from mixpo.stages import answer, evaluate, verify
from mixpo.stages.branch import branch_job, value_job
from mixpo.stages.evaluate import text_job
from mixpo.stages.failures import DeferredFailures
from mixpo.stages.imported import STAGE, sampled_part
from mixpo.stages.job import Context, Plan, Planned
from mixpo.stages.models import SERVED, ModelRef, Models
from mixpo.stages.names import first_forced, kind_of, kinds_until
from mixpo.stages.pair import pair_job, select_job
from mixpo.stages.perform import assist, perform, restore_manifest
from mixpo.stages.predictions import prediction_models, predictions_job
from mixpo.stages.question_index import REPLAY
from mixpo.stages.questions import Sources, known_sources, read_sources
from mixpo.stages.reference import reference_job
from mixpo.stages.repair import drop_damaged_manifests, until_whole
from mixpo.stages.report import report_job
from mixpo.stages.sample import continue_job, sample_job
from mixpo.stages.train import model_of, train_job, withdraw
from mixpo.stages.verify import verify_job
from mixpo.types import Question


def open_context(
    recipe: Recipe,
    recipe_folder: Path,
    root: Path,
    progress: Progress,
    limit: int | None = None,
    ranks: Ranks | None = None,
    known: str = "",
) -> Context:
    """What all stages share. recipe_folder: the folder that paths in the recipe are relative to. known: as in `Models`."""
    executor = None
    if recipe.cluster.kind == "ray":
        from mixpo.cluster.ray import RayExecutor

        executor = RayExecutor(recipe.cluster, reopen)
    return Context(
        run=Run(root.absolute()),
        recipe=recipe,
        recipe_folder=recipe_folder,
        progress=progress,
        models=Models(recipe.model, recipe_folder, recipe.image, known),
        limit=limit,
        ranks=ranks or Ranks(),
        executor=executor,
    )


def open_run(root: Path, overrides: tuple[str, ...] = (), progress: Progress | None = None) -> Context:
    """The run in a directory, with the recipe and limit of its last command; `overrides` as in `mixpo.recipe.load`.

    Raises RunError when it is no run.
    """
    try:
        recipe, command = sealed.load(root / "recipe.json"), sealed.load(root / "command.json")
        recipe_folder, limit, known = Path(command["recipe_folder"]), command["limit"], command.get("model", "")
    except FileNotFoundError as error:
        message = f"{root}: no run directory (it has no {Path(error.filename).name}); give the folder that was --dir of `mixpo run`"
        raise RunError(message, code="not-a-run", path=root) from None
    except PermissionError as error:
        raise refused(error) or error from None
    except NotADirectoryError:
        raise RunError(f"{root}: is a file; give the folder that was --dir of `mixpo run`", code="not-a-run", path=root) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{root}: recipe.json or command.json is broken ({error}); run the recipe again"
        raise RunError(message, code="run-unreadable", path=root) from None
    for override in overrides:
        apply_override(recipe, override)
        if override.lstrip().startswith("model"):
            known = ""  # of another model
    loaded = parse(recipe, str(root / "recipe.json"), overrides=overrides)
    return open_context(loaded, recipe_folder, root, progress or Silent(), limit, known=known)


def reopen(root: Path, job: str) -> tuple[Context, Planned]:
    """One job of the run in a directory, for a process that helps with it."""
    context = open_run(root)
    return context, build_plan(context).planned[job]


def run_recipe(context: Context, force: Sequence[str] = ()) -> Plan:
    """Do everything that is not done. `force` names stages to do again, with all that follow them.

    Raises a MixpoError when a stage cannot continue; what was finished before it is kept. Where a stage of the evaluation fails, everything
    else is done, the report too, before an UnfinishedError.
    """
    if not context.ranks.main:
        return _follow(context)
    evaluate.ready(context.recipe, context.recipe_folder)
    with _leading(context, force) as plan:
        answer.ready(context.recipe, plan)
        verify.ready(context, plan.planned.values())

        def work() -> None:
            deferred = _deferred(context, plan)
            for planned in [planned for planned in plan.planned.values() if planned.job.kind != "report"]:
                deferred.do(planned)
            # Planned again: its key holds which of the others are finished.
            plan.add(report_job(context, plan))
            _perform(context, plan, plan.planned["report"])
            deferred.close()

        until_whole(context, plan, STAGES, work)
    return plan


def run_stage(context: Context, kinds: Sequence[str], force: Sequence[str] = (), names: Container[str] | None = None) -> Plan:
    """Do the stages of these kinds only, in every round that has what they need. names: of these kinds only the jobs called so.

    Raises RunError when not even one of them could be done, naming the stage that is missing or stale, RecipeError when the recipe asks
    for none of them, and UnfinishedError as `run_recipe` does.
    """
    if not context.ranks.main:
        return _follow(context)
    if {"evaluate", "text"}.intersection(kinds):
        evaluate.ready(context.recipe, context.recipe_folder)
    with _leading(context, force) as plan:
        wanted = [planned for name, planned in plan.planned.items() if planned.job.kind in kinds and (names is None or name in names)]
        if "answer" in kinds:
            answer.ready(context.recipe, plan)
        verify.ready(context, wanted)
        if kinds and not wanted:
            what = "evaluate" if "evaluate" in kinds else kinds[0]
            if what == "branch" and context.recipe.pairs.branches is None:
                message = "nothing to branch: the recipe has no table [pairs.branches]; add one"
                raise RecipeError(message, code="no-branches", key="pairs.branches")
            if what == "evaluate":
                message = "nothing to evaluate: the recipe names no evaluation set; add a table [[evaluate.sets]]"
                raise RecipeError(message, code="no-evaluation-sets", key="evaluate.sets")
            message = f"nothing to {what}: the recipe has no [source] and no [[preferences]] to train on; add one"
            raise RecipeError(message, code="source-missing", key="source")
        until_whole(context, plan, kinds, lambda: _do_wanted(context, plan, wanted))
    return plan


def _do_wanted(context: Context, plan: Plan, wanted: Sequence[Planned]) -> None:
    """Do these jobs, except those that wait for others. Raises RunError when all do."""
    done, missing, blocked, deferred = 0, "", set[str](), _deferred(context, plan)
    for planned in wanted:
        if blocker := blocked_by(plan, planned):
            missing = missing or f"{planned.job.title} needs {blocker}"
            # What waits for another stage that was not run either needs no line of its own.
            if not blocked.intersection(planned.job.needs):
                context.progress.say(f"{planned.job.title}: not run, {blocker}")
            blocked.add(planned.job.name)
            continue
        deferred.do(planned)
        done += 1
    if wanted and not done:
        raise RunError(f"{missing}; run that stage first, or everything with `mixpo run`", code="stage-missing")
    deferred.close()


def run_until(context: Context, until: str, force: Sequence[str] = ()) -> Plan:
    """Do everything up to the stage `until`, in every round that has what it needs. Raises as `run_stage`."""
    return run_stage(context, kinds_until(until), force)


def rescore(context: Context) -> Plan:
    """Mark saved answers again under the context's recipe, and write the report. No source is read and no model is loaded.

    Raises RunError when there are no saved answers.
    """
    evaluate.ready(context.recipe, context.recipe_folder)
    with context.run.lock():
        plan = build_plan(context)
        kept = [planned for planned in plan.planned.values() if planned.job.kind == "evaluate" and not blocked_by(plan, planned)]
        if not kept:
            raise RunError(f"{context.run.root}: {_why_nothing_to_score(plan)}", code="no-predictions", path=context.run.root)
        # Only now: a setting that is refused must not stay in the run's recipe, which the next command takes up.
        _prepare(context, ())
        for planned in kept:
            _perform(context, plan, planned)
        plan.add(report_job(context, plan))
        _perform(context, plan, plan.planned["report"])
    return plan


def _why_nothing_to_score(plan: Plan) -> str:
    answers = [planned for planned in plan.planned.values() if planned.job.kind == "answer" and planned.stage.manifest is not None]
    reasons = dict.fromkeys(reason for planned in answers for reason in planned.work().reasons)
    if not reasons:
        return "there are no saved answers to score; run `mixpo evaluate` first"
    return f"the saved answers were made in another way ({'; '.join(reasons)}); `mixpo evaluate` samples them again"


@contextmanager
def _leading(context: Context, force: Sequence[str]) -> Iterator[Plan]:
    """The plan, while this process holds the run; the other ranks are told when it stands and when all is done."""
    with context.run.lock():
        _prepare(context, force)
        plan = build_plan(context, read_sources(context))
        for planned in plan.planned.values():
            restore_manifest(planned)
        withdraw(context, plan)
        context.ranks.broadcast("planned")
        try:
            yield plan
        finally:
            context.shared.close()
            context.models.release()
        context.ranks.broadcast(None)


def _follow(context: Context) -> Plan:
    """What a rank does that is not the main one: its share of the stages that the main one names."""
    context.ranks.receive()
    plan = build_plan(context)
    while (order := context.ranks.receive()) is not None:
        name, numbers = order
        assist(context, plan.planned[name], numbers)
    return plan


def blocked_by(plan: Plan, planned: Planned) -> str:
    """Why a job cannot be done yet: the first stage it needs that is missing or stale, or ""."""
    for name in planned.job.needs:
        upstream = plan.planned.get(name)
        if upstream is not None and not upstream.finished():
            never = upstream.stage.manifest is None
            return f"{name}, which {'has not run' if never else 'is stale (' + '; '.join(upstream.work().reasons) + ')'}"
    return ""


def finished_stage(context: Context, number: int, kind: str) -> tuple[Plan, str]:
    """The plan of a run, and the name of a stage of round `number`. Raises RunError where the stage has not finished."""
    plan, name, rounds = build_plan(context), f"round-{number}/{kind}", context.recipe.train.rounds
    if number > rounds:
        message = f"--round {number}: the run has no such round; the last one is {rounds} (train.rounds)"
        raise RunError(message, code="unknown-round", key="--round")
    if name not in plan.planned or not plan.planned[name].finished():
        folder = context.run.stage(name).folder
        message = f"{folder}: round {number} has no finished {kind} stage; run `mixpo run RECIPE --until {kind}` first"
        raise RunError(message, code="round-unfinished", path=folder)
    return plan, name


def build_plan(context: Context, sources: Sources | None = None) -> Plan:
    """Every job of the recipe, in order. Nothing is made and no model is loaded; a missing model is a ModelError.

    sources: the questions, by default as they were when last read.
    """
    recipe, sources = context.recipe, sources or known_sources(context.run, context.recipe)
    plan = Plan(context.run)
    plan.provide("source", Question, sources.train.shards)
    plan.provide(STAGE, Paired, sources.pairs)
    plan.provide(REPLAY, Question, sources.replay.shards)
    own = list(_own_models(context, plan, sources)) if recipe.needs_model else []
    served = [ModelRef(name=s.name, identity=f"{SERVED}{s.model}", served=s) for s in recipe.evaluate.served]
    for name, index in sources.sets.items():
        plan.provide(answer.source_name(name), Question, index.shards)
    for model in (*(own if recipe.evaluate.own_models else ()), *served, *prediction_models(context)):
        for table in (table for table in recipe.evaluate.sets if table.name in sources.sets):
            for mode in answer.modes(context, model, table.name):
                where = (context, plan, sources.sets[table.name], table.name, table.source, model, mode)
                plan.add((predictions_job if model.predictions else answer.answer_job)(*where))
                plan.add(evaluate.evaluate_job(*where))
        if recipe.evaluate.text_tasks and model.served is None and model.predictions is None:
            plan.add(text_job(context, model))
    plan.add(report_job(context, plan))
    return plan


def _own_models(context: Context, plan: Plan, sources: Sources) -> Iterator[ModelRef]:
    """Adds the jobs of all rounds; yields the base model and the trained models, the last round's main objective last."""
    recipe = context.recipe
    base = main = context.models.base_model()
    yield base
    for number in range(1, (recipe.train.rounds if recipe.trains else 0) + 1):
        *others, main = _add_round(context, plan, sources, number, main)
        yield from others
    if main != base:
        yield main


def _add_round(context: Context, plan: Plan, sources: Sources, number: int, main: ModelRef) -> Iterator[ModelRef]:
    """The jobs of one round that starts from `main`; yields the trained models, the main objective's last."""
    table, index = context.recipe.train, sources.train
    if context.recipe.source is not None:
        sampled = sampled_part(index, sources.pairs)
        plan.add(sample_job(context, plan, sampled, number, main))
        plan.add(continue_job(context, plan, sampled, number, main))
        plan.add(verify_job(context, plan, sampled, number))
        if context.recipe.pairs.branches is not None:
            plan.add(branch_job(context, plan, sampled, number, main))
            plan.add(value_job(context, plan, sampled, number, main))
    else:
        for kind, row in (("sample", Sampled), ("continue", Sampled), ("verify", Judged)):
            plan.provide(f"round-{number}/{kind}", row, ())
    plan.add(pair_job(context, plan, index, number))
    if context.recipe.pairs.balance:
        plan.add(select_job(context, plan, index, number))
    plan.add(reference_job(context, plan, index, number, main))
    for objective in (*(table.baselines if number == 1 else ()), table.objective):
        plan.add(train_job(context, plan, sources.replay, number, objective, main))
        yield model_of(context, plan, number, objective)


def _deferred(context: Context, plan: Plan) -> DeferredFailures:
    return DeferredFailures(perform=partial(_perform, context, plan), blocked=partial(blocked_by, plan), say=context.progress.say)


def _perform(context: Context, plan: Plan, planned: Planned) -> None:
    if planned.job.kind in ("reference", "train", "text"):
        # They load a model themselves; a server would still hold another one in the device's memory.
        context.shared.close()
    with context.sharing(context, planned) if context.sharing is not None else nullcontext():
        perform(context, planned, [other for other in plan.planned.values() if planned.job.name in other.job.needs])


def _prepare(context: Context, force: Sequence[str]) -> None:
    """Write the resolved recipe, and forget the stages that are to be done again, with all after them."""
    first = first_forced(force)
    # Before anything is forgotten: without it nothing could take its place.
    identity = context.models.base_model().identity if context.recipe.needs_model else ""
    context.run.sweep()
    drop_damaged_manifests(context.run, context.progress.say)
    resolved = context.recipe.model_dump(mode="json")
    write_text(context.run.root / "recipe.json", sealed.dumps(resolved, indent=2))
    command = {"recipe_folder": str(context.recipe_folder.absolute()), "limit": context.limit, "model": identity}
    write_text(context.run.root / "command.json", sealed.dumps(command))
    for manifest in [*context.run.manifests()] if force else []:
        name = manifest.parent.relative_to(context.run.root).as_posix()
        if STAGES.index(kind_of(name)) >= first:
            shutil.rmtree(manifest.parent)
            context.progress.say(f"{name}: forgotten (--force)")
