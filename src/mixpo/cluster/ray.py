"""Shards made by the actors of a Ray cluster, through Ray Data. Only numbers and counts travel; rows go to the run directory.

An actor opens the run from its directory, as `mixpo status` does, and writes each shard under the name that its content decides
(temporary file, then rename). So a task that Ray repeats after it lost an actor or a node finds its shard or makes the same one
again, and a driver that is killed and started again makes what is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mixpo import errors
from mixpo.errors import EngineError, MissingExtra, MixpoError, RecipeError
from mixpo.plural import amount
from mixpo.recipe import ClusterTable
from mixpo.stages.job import Context, Made, Planned, add_facts, make_here

Reopen = Callable[[Path, str], tuple[Context, Planned]]
"""From a run directory and the name of a job to both, in a process that knows nothing else."""


class Crew:
    """Makes shards on a cluster; an instance is a `Context.spread`."""

    def __init__(self, table: ClusterTable, reopen: Reopen) -> None:
        self._table, self._reopen = table, reopen

    def __call__(self, context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[Made]:
        """Raises the MixpoError that an actor raised, and EngineError when Ray itself cannot go on."""
        ray = _ray()
        self._connect(ray, context)
        said: set[str] = set()
        try:
            for row in self._receipts(ray, context, planned, numbers):
                for line in json.loads(row["said"]):
                    if line not in said:
                        context.progress.say(line)
                        said.add(line)
                add_facts(planned.job.facts, json.loads(row["facts"]))
                if row["error"]:
                    raise getattr(errors, row["error"])(row["message"])
                context.progress.advance(planned.job.sizes[row["number"]])
                yield row["number"], json.loads(row["counts"])
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"{planned.job.title}: Ray cannot go on ({_first_line(error)}); finished shards are kept, run the same command again"
            ) from error

    def _receipts(self, ray: Any, context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        table = self._table
        # A block for each task, so that a lost actor gives back no more than one.
        blocks = -(-len(numbers) // table.shards_per_task)
        wanted = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=blocks)
        made = wanted.map_batches(
            ShardMaker,
            fn_constructor_args=(self._reopen, str(context.run.root), planned.job.name, planned.names()),
            batch_size=table.shards_per_task,
            compute=ray.data.ActorPoolStrategy(size=min(table.actors, blocks)),
            num_cpus=table.cpus_per_actor,
            num_gpus=table.gpus_per_actor,
        )
        yield from made.iter_rows()

    def _connect(self, ray: Any, context: Context) -> None:
        """Join the cluster or start one, and see that it has room. Raises RecipeError or EngineError."""
        table = self._table
        if not ray.is_initialized():
            address = table.address or os.environ.get("RAY_ADDRESS")
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise EngineError(
                    f"cluster.address: no Ray cluster at {address!r} ({_first_line(error)}); start one with `ray start --head`"
                ) from error
            ray.data.DataContext.get_current().enable_progress_bars = False
            context.progress.say(f"Ray: {_resources(ray)}, {amount(table.actors, 'actor')}")
        have, need = ray.cluster_resources().get("CPU", 0.0), table.actors * table.cpus_per_actor
        # Ray Data's own tasks need a CPU too: without one it waits for ever.
        if need > have - 1:
            raise RecipeError(
                f"cluster: {table.actors} actors with {table.cpus_per_actor:g} CPUs each leave none of the cluster's {have:g} CPUs "
                "for Ray's own tasks; "
                "lower cluster.actors or cluster.cpus_per_actor"
            )
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if table.actors * table.gpus_per_actor > gpus:
            raise RecipeError(
                f"cluster: {table.actors} actors need {table.actors * table.gpus_per_actor:g} GPUs, the cluster has {gpus:g}; "
                "lower cluster.actors or cluster.gpus_per_actor"
            )


class ShardMaker:
    """One actor: makes the shards of a job that it is told, unless they are there."""

    def __init__(self, reopen: Reopen, root: str, job: str, names: Sequence[str]) -> None:
        self._failed: MixpoError | None = None
        try:
            self._context, self._planned = reopen(Path(root), job)
            self._check(names)
        except MixpoError as error:
            # Raised by the driver, which gets it with the first receipt; an actor that dies here would only be started again.
            self._failed = error

    def _check(self, names: Sequence[str]) -> None:
        if tuple(names) != self._planned.names():
            raise EngineError(
                f"{os.uname().nodename}: finds other model files, questions or versions than the machine that started the run; "
                "give all machines of the cluster the same installation, run directory and model folder"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: list[dict[str, Any]] = []
        numbers = [int(number) for number in batch["number"]]
        try:
            if self._failed is not None:
                raise self._failed
            rows += (
                {"number": number, "counts": json.dumps(dict(counts)), "error": "", "message": ""} for number, counts in self._make(numbers)
            )
        except MixpoError as error:
            rows.append({"number": -1, "counts": "{}", "error": _public(error), "message": str(error)})
        # What the whole batch said and found out travels with its first row.
        news = {"said": json.dumps(self._heard()), "facts": json.dumps(self._found())}
        rows = [row | (news if at == 0 else {"said": "[]", "facts": "{}"}) for at, row in enumerate(rows)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _make(self, numbers: Sequence[int]) -> Iterator[Made]:
        job, stage, names = self._planned.job, self._planned.stage, self._planned.names()
        there = [number for number in numbers if stage.path(names[number]).exists()]
        for number in there:
            yield number, job.count(stage.read(names[number], job.row))
        if missing := [number for number in numbers if number not in there]:
            yield from make_here(self._context, self._planned, missing)

    def _heard(self) -> list[str]:
        """What was said since the last time."""
        if self._failed is not None:
            return []
        lines: list[str] = getattr(self._context.progress, "lines", [])
        heard, lines[:] = list(lines), []
        return heard

    def _found(self) -> dict[str, Any]:
        """What was found out since the last time."""
        if self._failed is not None:
            return {}
        facts = self._planned.job.facts
        found = dict(facts)
        facts.clear()
        return found


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise MissingExtra('cluster.kind = "ray"', "ray") from None
    return ray


def _public(error: MixpoError) -> str:
    """The nearest class of an error that one message makes again."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__) and kind is not MissingExtra)


def _resources(ray: Any) -> str:
    have = ray.cluster_resources()
    return f"{amount(len(ray.nodes()), 'node')}, {amount(int(have.get('CPU', 0)), 'CPU')}, {amount(int(have.get('GPU', 0)), 'GPU')}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
