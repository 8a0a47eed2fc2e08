"""What a study would do: the stages of every run, which are done, and which are equal to those of a run before it. Makes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixpo.commands.plan import read_dry
from mixpo.pipeline import build_plan
from mixpo.progress import Progress, Silent
from mixpo.report.table import TextTable
from mixpo.stages.names import kind_of
from mixpo.stages.questions import Sources
from mixpo.study.execute import open_study_run
from mixpo.study.schema import LoadedStudy, StudyRun
from mixpo.types import content_id


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage of a run. shared_with: the first run that has an equal one; "" where it is this run's own. test: on a test set."""

    name: str
    kind: str
    done: bool
    shared_with: str
    test: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run with its stages, in order; those on test sets are done for chosen variants only."""

    run: StudyRun
    stages: tuple[PlannedStage, ...]


def plan_study(study: LoadedStudy, root: Path, progress: Progress) -> list[PlannedRun]:
    """The plan of every run. Questions are read once for all runs that read the same."""
    first: dict[tuple[str, ...], str] = {}
    read: dict[str, Sources] = {}
    progress.start("plan", len(study.runs), "runs")
    runs = []
    for run in study.runs:
        context = open_study_run(study, run, root, Silent())
        key = _sources_key(run)
        if key not in read:
            read[key] = read_dry(context, {}, {})[0]
        stages = []
        for name, planned in build_plan(context, read[key]).planned.items():
            if planned.job.kind == "report":
                continue
            shards = (name, *planned.names())
            owner = first.setdefault(shards, run.name)
            test = name.split("/")[1] in study.test_names if planned.job.kind in ("answer", "evaluate") else False
            shared = "" if owner == run.name else owner
            stages.append(PlannedStage(name=name, kind=planned.job.kind, done=planned.finished(), shared_with=shared, test=test))
        runs.append(PlannedRun(run=run, stages=tuple(stages)))
        progress.advance(1)
    progress.finish()
    return runs


def _sources_key(run: StudyRun) -> str:
    """What decides the questions and pairs of a run."""
    parts = {"source", "preferences", "image", "shard_size", "evaluate"}
    settings = run.recipe.model_dump(mode="json", include=parts)
    return content_id(
        settings, run.recipe.deciding("source"), run.recipe.sample.engine, run.recipe.train.model_dump(include={"replay"}, mode="json")
    )


def run_table(runs: Sequence[PlannedRun]) -> TextTable:
    """One row for each run, without the test sets."""
    rows = []
    for planned in runs:
        stages = [stage for stage in planned.stages if not stage.test]
        shared = [stage for stage in stages if stage.shared_with]
        done = sum(stage.done for stage in stages)
        with_ = Counter(stage.shared_with for stage in shared).most_common(1)
        numbers = (len(stages), done, len(shared), len(stages) - len(shared))
        rows.append((planned.run.name, *map(str, numbers), with_[0][0] if with_ else ""))
    return ("run", "stages", "done", "shared", "own", "first shared with"), rows


def kind_table(runs: Sequence[PlannedRun]) -> TextTable:
    """One row for each kind of stage; those on test sets in rows of their own."""
    groups: dict[str, list[PlannedStage]] = {}
    for stage in (stage for planned in runs for stage in planned.stages):
        groups.setdefault(f"{kind_of(stage.name)}{' on test sets, if all variants were chosen' if stage.test else ''}", []).append(stage)
    rows = [
        (
            kind,
            str(len(stages)),
            str(sum(not stage.shared_with for stage in stages)),
            str(sum(bool(stage.shared_with) for stage in stages)),
            str(sum(stage.done for stage in stages)),
        )
        for kind, stages in sorted(groups.items(), key=lambda item: any(stage.test for stage in item[1]))
    ]
    return ("stage", "in all runs", "made", "shared", "done"), rows
