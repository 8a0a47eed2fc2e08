"""What every stage is made of. A `Job` says what decides its output and how one shard is made; `perform` makes what is missing.

Shard number i of every stage of a round belongs to question shard i. Knows nothing about what a stage computes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixpo.distributed import Ranks
from mixpo.engines.base import SharedResource
from mixpo.plural import amount, are
from mixpo.progress import Progress
from mixpo.recipe import Recipe
from mixpo.run import Manifest, Run, Stage, Work, now, versions
from mixpo.stages.attempts import Attempts
from mixpo.stages.models import Models
from mixpo.types import content_id

Make = Callable[[int], Iterable[Any]]
"""From the number of a shard to its rows."""

Made = tuple[int, Mapping[str, int]]
"""The number of a shard that is written, and the figures of its rows."""

DISTRIBUTED = ("sample", "continue", "verify", "answer")
"""Kinds of stages whose shards need nothing of each other, so that many machines can make them."""

SAVE_SECONDS = 2.0
"""A manifest is rewritten at most this often while a stage works."""


@dataclass(kw_only=True)
class Context:
    """What all stages of one command share. limit: questions to use of every source, or None for all. ranks: see `Job.ranks`.

    shared: the server or vLLM model that consecutive stages use.
    """

    run: Run
    recipe: Recipe
    recipe_folder: Path
    progress: Progress
    models: Models
    limit: int | None = None
    shared: SharedResource = field(default_factory=SharedResource)
    ranks: Ranks = field(default_factory=Ranks)
    executor: Callable[[Context, Planned, Sequence[int]], Iterator[Made]] | None = None
    """Makes shards of the kinds in DISTRIBUTED outside of this process, in any order."""


def nothing_else(manifest: Manifest) -> None:
    """The default check after a stage: none."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage of one round.

    kind: the name that commands and `--force` use. name: the folder in the run. row: the type of its records.
    settings: exactly what decides the output apart from `inputs`, the names of the shards that feed it.
    sizes: units of work in each shard. needs: names of the jobs whose shards it reads.
    session: given the numbers of the shards to make, opens what the stage needs (a model, a pool) and gives the function that
        makes a shard; it is called for these numbers in order.
    count: figures of one shard, added up in the manifest. check: raises a MixpoError when the finished stage is no good.
    facts: what its sessions found out about what they work with (see `add_facts`); kept in the manifest, never part of a shard's name.
    artifact: a file or folder of a shard apart from its records; without it the shard is not done. whole: whether it can be used.
    ranks: who works when there are several: the main one alone, each on shards of its own, or all on every shard together (the main
        one writes its records).
    attempts: how often each shard was asked for, in stages that ask a model or a judge; None in others.
    """

    kind: str
    name: str
    title: str
    row: type
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    sizes: tuple[int, ...]
    session: Callable[[Sequence[int]], AbstractContextManager[Make]]
    unit: str = "questions"
    needs: tuple[str, ...] = ()
    own_bar: bool = False
    count: Callable[[Sequence[Any]], Mapping[str, int]] = field(default=lambda rows: {"rows": len(rows)})
    check: Callable[[Manifest], None] = nothing_else
    artifact: Callable[[str], Path] | None = None
    whole: Callable[[Path], bool] = Path.exists
    ranks: Literal["main", "each", "together"] = "main"
    facts: dict[str, Any] = field(default_factory=dict)
    attempts: Attempts | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job with its folder: the names of its shards, in order, are known before anything is made."""

    job: Job
    stage: Stage

    def work(self) -> Work:
        """What is left to do now."""
        work = self.stage.plan(self.job.settings, self.job.inputs)
        if self.job.artifact is None:
            return work
        gone = tuple(shard for shard in work.shards if shard in work.missing or not self.job.whole(self.job.artifact(shard)))
        reasons = work.reasons or (("its files are gone, or some of them",) if gone else ())
        return Work(shards=work.shards, missing=gone, reasons=reasons)

    def finished(self) -> bool:
        """Whether every shard is there and the manifest agrees."""
        work, last = self.work(), self.stage.manifest
        return not work.missing and last is not None and last.finished and last.shards == list(work.shards)

    def names(self) -> tuple[str, ...]:
        """The names of all its shards."""
        return self.work().shards


class Plan:
    """The jobs of a run in order, and the records that they hand to each other."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.planned: dict[str, Planned] = {}
        self._shards: dict[str, tuple[str, ...]] = {}
        self._rows: dict[str, type] = {}

    def add(self, job: Job) -> None:
        """Append a job; what it needs must be there already."""
        planned = Planned(job=job, stage=self.run.stage(job.name))
        self.planned[job.name] = planned
        self.provide(job.name, job.row, planned.names())

    def provide(self, name: str, row: type, shards: tuple[str, ...]) -> None:
        """Declare records that later jobs read, without a job that makes them."""
        self._shards[name], self._rows[name] = shards, row

    def shards(self, name: str) -> tuple[str, ...]:
        """The names of the shards of a stage."""
        return self._shards[name]

    def rows(self, name: str, number: int) -> list[Any]:
        """The records of one shard of a stage."""
        return self.run.stage(name).read(self._shards[name][number], self._rows[name])

    def digest(self, name: str) -> str:
        """One name for the whole output of a stage."""
        return content_id(self._shards[name])


def perform(context: Context, planned: Planned) -> Manifest:
    """Make the shards that are missing, say why, and bring the manifest up to date. Does nothing where all is done."""
    job, stage, work, last = planned.job, planned.stage, planned.work(), planned.stage.manifest
    if not work.missing and last is not None and last.finished and last.shards == list(work.shards):
        job.check(last)
        return last
    manifest = _open(job, work, last)
    counted: dict[str, Mapping[str, int]] = {}
    if work.missing:
        explain(context, job, work, last)
        stage.save_manifest(manifest)
        counted = _make(context, planned, work, manifest)
        manifest.facts |= job.facts
    manifest.counts = _total(job, stage, work.shards, counted)
    manifest.finished = True
    stage.save_manifest(manifest)
    if context.limit is None:
        _prune(planned, work.shards)
    job.check(manifest)
    return manifest


def explain(context: Context, job: Job, work: Work, last: Manifest | None) -> None:
    """Say why there is work in a stage that has run before."""
    done = len(work.shards) - len(work.missing)
    if last is None:
        return
    why, shards = "; ".join(work.reasons), amount(len(work.shards), "shard")
    if last.finished or (done == 0 and last.shards != list(work.shards)):
        context.progress.say(f"{job.title}: stale, {len(work.missing)} of {shards} {are(len(work.missing))} redone ({why})")
    else:
        context.progress.say(f"{job.title}: resuming, {done} of {shards} {are(len(work.shards))} done ({why})")


def _open(job: Job, work: Work, last: Manifest | None) -> Manifest:
    same = last is not None and last.shards == list(work.shards)
    return Manifest(
        stage=job.name,
        settings=dict(job.settings),
        inputs=list(job.inputs),
        shards=list(work.shards),
        # A resumed stage adds to the seconds it has used; a changed one starts at zero.
        seconds=last.seconds if same and last is not None else 0.0,
        started=last.started if same and last is not None else now(),
        versions=versions(),
        facts=dict(last.facts) if same and last is not None else {},
    )


def _make(context: Context, planned: Planned, work: Work, manifest: Manifest) -> dict[str, Mapping[str, int]]:
    job, missing = planned.job, set(work.missing)
    counted: dict[str, Mapping[str, int]] = {}
    used, begun, saved = manifest.seconds, time.monotonic(), time.monotonic()
    if not job.own_bar:
        done = sum(size for shard, size in zip(work.shards, job.sizes, strict=True) if shard not in missing)
        context.progress.start(job.title, sum(job.sizes), job.unit, done)
    numbers = [number for number, shard in enumerate(work.shards) if shard in missing]
    others: list[int] = []
    if job.ranks != "main":
        context.ranks.broadcast([job.name, numbers])
    if job.ranks == "each":
        mine = context.ranks.shard(numbers)
        others, numbers = sorted({*numbers} - {*mine}), mine
    make = context.executor if context.executor is not None and job.kind in DISTRIBUTED else make_here
    for number, counts in make(context, planned, numbers):
        counted[work.shards[number]] = counts
        manifest.seconds = used + time.monotonic() - begun
        if time.monotonic() - saved > SAVE_SECONDS:
            planned.stage.save_manifest(manifest)
            saved = time.monotonic()
    if job.ranks != "main":
        context.ranks.barrier()
        if not job.own_bar:
            context.progress.advance(sum(job.sizes[number] for number in others))
    manifest.seconds = used + time.monotonic() - begun
    if not job.own_bar:
        context.progress.finish()
    return counted


def add_facts(facts: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put what another session found out to `facts`: its "counts" are added, everything else is as seen last."""
    counts = Counter(facts.get("counts", {}))
    counts.update(more.get("counts", {}))
    facts |= {**more, **({"counts": dict(counts)} if counts else {})}


def make_here(context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[Made]:
    """Make and write these shards in this process, one after another."""
    job, shards = planned.job, planned.names()
    with job.session(numbers) as make:
        for number in numbers:
            rows = []
            for row in make(number):
                rows.append(row)
                if not job.own_bar:
                    context.progress.advance(1)
            planned.stage.write(shards[number], job.row, rows)
            yield number, job.count(rows)


def assist(context: Context, planned: Planned, numbers: list[int]) -> None:
    """What `perform` is on every rank but the main one: work on these shards with the others."""
    if planned.job.ranks == "each":
        for _ in make_here(context, planned, context.ranks.shard(numbers)):
            pass
    else:
        with planned.job.session(numbers) as make:
            for number in numbers:
                list(make(number))
    context.ranks.barrier()


def _total(job: Job, stage: Stage, shards: Sequence[str], counted: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(counted[shard] if shard in counted else job.count(stage.read(shard, job.row)))
    return dict(total)


def _prune(planned: Planned, shards: Sequence[str]) -> None:
    """Delete what stale shards left behind, and the working folders of finished ones."""
    planned.stage.prune(shards)
    if planned.job.artifact is None:
        return
    wanted = {planned.job.artifact(shard) for shard in shards}
    for path in planned.stage.folder.iterdir():
        if path.is_dir() and path not in wanted:
            shutil.rmtree(path)


def title(context: Context, number: int, kind: str) -> str:
    """What a stage of round `number` is called on screen."""
    return kind if context.recipe.train.rounds == 1 else f"round {number}: {kind}"
