"""What every stage is made of. A `Job` says what decides its output and how one shard is made; `perform.py` makes what is missing.

Shard number i of every stage of a round belongs to question shard i. Knows nothing about what a stage computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mixpo.distributed import Ranks
from mixpo.engines.base import SharedResource
from mixpo.integrity import damages, recorded_below
from mixpo.progress import Progress
from mixpo.recipe import Recipe
from mixpo.run import Manifest, Run, Stage, Work
from mixpo.stages.attempts import Attempts
from mixpo.stages.models import Models
from mixpo.types import content_id

Make = Callable[[int], Iterable[Any]]
"""From the number of a shard to its rows."""

Made = tuple[int, Mapping[str, int]]
"""The number of a shard that is written, and the figures of its rows."""

ResponseKind = Literal["sample", "continue", "branch", "answer"]
RESPONSE_KINDS: tuple[ResponseKind, ...] = get_args(ResponseKind)
"""Kinds of stages that sample responses, in which a question may fail."""

DISTRIBUTED = ("sample", "continue", "verify", "branch", "value", "answer")
"""Kinds of stages whose shards need nothing of each other, so that many machines can make them."""


@dataclass(kw_only=True)
class Context:
    """What all stages of one command share. limit: questions to use of every source, or None for all. ranks: see `Job.ranks`.

    shared: the server or vLLM model that consecutive stages use. sharing: held while a stage is made, where several runs share stages.
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
    sharing: Callable[[Context, Planned], AbstractContextManager[None]] | None = None
    """Brings the shards of a stage that another run has, and keeps other runs from making it meanwhile."""


def nothing_else(manifest: Manifest) -> None:
    """The default check after a stage: none."""


def no_artifacts(shard: str) -> tuple[Path, ...]:
    """The artifacts of stages that make records alone."""
    return ()


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
    artifacts: files and folders of a shard apart from its records; without them it is not done. whole: whether one can be used.
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
    artifacts: Callable[[str], tuple[Path, ...]] = no_artifacts
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
        """What is left to do now. Of files only the sizes are compared."""
        work = self.stage.plan(self.job.settings, self.job.inputs)
        gone = tuple(shard for shard in work.shards if shard in work.missing or not self._has_artifacts(shard))
        reasons = work.reasons or (("its files are gone or have another size, or some of them",) if gone else ())
        return Work(shards=work.shards, missing=gone, reasons=reasons)

    def _has_artifacts(self, shard: str) -> bool:
        last = self.stage.manifest if (paths := self.job.artifacts(shard)) else None
        records = recorded_below(self.stage.folder, last.files, *paths) if last is not None else {}
        return all(map(self.job.whole, paths)) and not damages(self.stage.folder, records, read=False)

    def files(self, shard: str) -> list[Path]:
        """Where the records of a shard are, and its artifacts."""
        return [self.stage.path(shard), *self.job.artifacts(shard)]

    def recorded(self, shard: str, records: Mapping[str, str]) -> dict[str, str]:
        """Those of the files in `records` that belong to a shard."""
        return recorded_below(self.stage.folder, records, *self.files(shard))

    def finished(self) -> bool:
        """Whether every shard is there and the manifest agrees."""
        work, last = self.work(), self.stage.manifest
        return not work.missing and last is not None and last.finished and last.shards == list(work.shards)

    def names(self) -> tuple[str, ...]:
        """The names of all its shards."""
        return self.stage.names(self.job.settings, self.job.inputs)


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


def add_facts(facts: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put what another session found out to `facts`: its "counts" are added, everything else is as seen last."""
    counts = Counter(facts.get("counts", {}))
    counts.update(more.get("counts", {}))
    facts |= {**more, **({"counts": dict(counts)} if counts else {})}


def title(context: Context, number: int, kind: str) -> str:
    """What a stage of round `number` is called on screen."""
    return kind if context.recipe.train.rounds == 1 else f"round {number}: {kind}"
