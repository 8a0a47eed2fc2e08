"""The report stage: gathers the results of the finished stages and writes RUN/report.json and RUN/report.html."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo import sealed
from mixpo.errors import RunError
from mixpo.integrity import damages, recorded_below
from mixpo.pairs.statistics import Statistics
from mixpo.records import Prediction, Sampled, write_text
from mixpo.run import Manifest, Stage, now, versions
from mixpo.stages import imported
from mixpo.stages.answer import source_name
from mixpo.stages.evaluate import text_scores
from mixpo.stages.job import Context, Job, Make, Plan, Planned
from mixpo.stages.pair import pairs_of
from mixpo.stages.question_index import REPLAY
from mixpo.stages.source import load_skipped
from mixpo.stages.train import curves, published
from mixpo.types import Pair, Question, Skipped, content_id

if TYPE_CHECKING:
    from mixpo.report.data import ReportData

PAGE, DATA = "report.html", "report.json"
"""Names of the two files in the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFile:
    """A file of the report and its size."""

    path: str
    bytes: int


def report_job(context: Context, plan: Plan) -> Job:
    """One shard: the two files. Its key holds which stages were finished, so it is stale as soon as another one is."""
    root = context.run.root
    others = [planned for planned in plan.planned.values() if planned.job.kind != "report"]
    finished = [[planned.job.name, *planned.names()] for planned in others if planned.finished()]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        from mixpo.report.build import build
        from mixpo.report.render import render

        def make(shard: int) -> Iterator[ReportFile]:
            data = build(gather(context, plan, [planned for planned in others if planned.finished()]))
            write_text(root / DATA, sealed.dumps(data, indent=2))
            write_text(root / PAGE, render(data))
            return (ReportFile(path=name, bytes=(root / name).stat().st_size) for name in (DATA, PAGE))

        yield make

    return Job(
        kind="report",
        name="report",
        title="report",
        row=ReportFile,
        settings={"report": context.recipe.report.model_dump(), "recipe": content_id(context.recipe.model_dump(mode="json"))},
        inputs=(content_id(finished),),
        sizes=(2,),
        unit="files",
        session=session,
        artifacts=lambda shard: (root / DATA, root / PAGE),
        whole=partial(is_intact, context.run.stage("report")),
    )


def is_intact(stage: Stage, path: Path) -> bool:
    """Whether a file of the report is as it was written: small enough to be read every time."""
    manifest = stage.manifest
    records = recorded_below(stage.folder, manifest.files, path) if manifest is not None else {}
    return path.exists() and not damages(stage.folder, records)


def current_report(context: Context, plan: Plan) -> dict[str, Any]:
    """The report of what is there now, as data; nothing is written."""
    from mixpo.report.build import build

    return build(gather(context, plan, [planned for planned in plan.planned.values() if planned.finished()]))


def title_of(context: Context) -> str:
    """The title of the report and of the viewer: the recipe's, or the name of the run directory, by default that of the recipe."""
    return context.recipe.report.title or context.run.root.absolute().name


def gather(context: Context, plan: Plan, finished: list[Planned]) -> ReportData:
    """Everything that the report is made of."""
    from mixpo.report.data import ReportData

    recipe, stages = context.recipe, {planned.job.name: planned for planned in finished}
    sources = [
        "source",
        *([imported.STAGE] if recipe.preferences else []),
        *([REPLAY] if recipe.train.replay else []),
        *(source_name(s.name) for s in recipe.evaluate.sets),
    ]
    return ReportData(
        title=title_of(context),
        created=now(),
        seed=recipe.seed,
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
        predictions=_predictions(plan, finished),
        questions=_questions(context, plan),
        main=recipe.train.objective,
        served=[served.name for served in recipe.evaluate.served],
        manifests=dict(_manifests(context, sources, finished)),
        statistics=_statistics(context, plan, stages),
        training=curves(context, plan),
        examples=_examples(context, plan, stages),
        skipped=list(_skipped(context, plan, sources, stages)),
        text=text_scores(plan),
        unfinished=[name for name, planned in plan.planned.items() if planned.job.kind != "report" and name not in stages],
        models={name: link.relative_to(context.run.root).as_posix() for name, link in published(context, plan).items()},
    )


def _predictions(plan: Plan, finished: list[Planned]) -> dict[tuple[str, str, str], list[Prediction]]:
    predictions = {}
    for planned in finished:
        if planned.job.kind == "evaluate":
            _, name, model, mode = planned.job.name.split("/")
            predictions[name, model, mode] = _rows(plan, planned.job.name)
    return predictions


def _rows(plan: Plan, name: str) -> list[Any]:
    return [row for number in range(len(plan.shards(name))) for row in plan.rows(name, number)]


def _questions(context: Context, plan: Plan) -> dict[str, Question]:
    names = [source_name(s.name) for s in context.recipe.evaluate.sets]
    return {question.id: question for name in names for question in _rows(plan, name)}


def _manifests(context: Context, sources: list[str], finished: list[Planned]) -> Iterator[tuple[str, Manifest]]:
    for name in sources:
        manifest = context.run.stage(name).manifest
        if manifest is not None:
            yield name, manifest
    for planned in finished:
        manifest = planned.stage.manifest
        if manifest is not None:
            yield planned.job.name, manifest


def _statistics(context: Context, plan: Plan, stages: dict[str, Planned]) -> dict[str, Any]:
    """Figures of the first round's pairs, which every objective was trained on."""
    names = ["source", "round-1/sample", "round-1/verify", pairs_of(context.recipe, 1), "round-1/continue"]
    names += ["round-1/branch"] if context.recipe.pairs.branches is not None else []
    if not all(name in stages or name not in plan.planned for name in names[1:]):
        return {}
    statistics = Statistics()
    for number in range(len(plan.shards("source"))):
        if number >= len(plan.shards(names[1])):
            for question, paired in zip(plan.rows("source", number), plan.rows(names[3], number), strict=True):
                statistics.add(question, Sampled(question=question.id), None, paired)
            continue
        for row in zip(*(plan.rows(name, number) for name in names), strict=True):
            statistics.add(*row)
    return statistics.as_dict()


def _examples(context: Context, plan: Plan, stages: dict[str, Planned]) -> list[tuple[Question, Pair]]:
    """Pairs to show, from questions drawn at random but always the same ones; origins take turns, one pair a question."""
    wanted, name = context.recipe.report.examples, pairs_of(context.recipe, 1)
    if name not in stages or not wanted:
        return []
    by_origin: dict[str, list[tuple[Question, Pair]]] = {}
    numbers = list(range(len(plan.shards("source"))))
    random.Random(f"{context.recipe.seed}/examples").shuffle(numbers)
    for number in numbers:
        for question, paired in zip(plan.rows("source", number), plan.rows(name, number), strict=True):
            if paired.pairs:
                pair = min(paired.pairs, key=lambda p: content_id(context.recipe.seed, p.id))
                by_origin.setdefault(pair.origin, []).append((question, pair))
        if sum(map(len, by_origin.values())) >= 4 * wanted:
            break
    queues = [by_origin[origin] for origin in sorted(by_origin)]
    turns = [queue[turn] for turn in range(wanted) for queue in queues if turn < len(queue)]
    return turns[:wanted]


def _skipped(context: Context, plan: Plan, sources: list[str], stages: dict[str, Planned]) -> Iterator[Skipped]:
    """Rows that sources filtered, and questions that failed in sampling and in evaluation."""
    for name in sources:
        yield from (replace(row, stage=name) for row in load_skipped(context.run.stage(name)))
    for name, planned in stages.items():
        manifest = planned.stage.manifest
        if manifest is None or not manifest.counts.get("failed"):
            continue
        if planned.job.row is Sampled:
            yield from (Skipped(where=row.question, reason=row.error, stage=name) for row in _rows(plan, name) if row.error)


def load_report(root: Path) -> dict[str, Any] | None:
    """The report of a run as data, or None while there is none. Raises RunError when it is broken."""
    path = root / DATA
    try:
        return sealed.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it and run `mixpo report`", code="report-unreadable", path=path) from None
