"""Makes shards in the actors of a Ray cluster, through Ray Data. Only numbers and counts travel; rows go to the run directory.

An actor opens the run from its directory, as `mixpo status` does, and writes each shard under the name that its content decides
(temporary file, then rename). So a task that Ray repeats after it lost an actor or a node finds its shard or makes the same one
again, and a driver that is killed and restarted makes only what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mixpo import errors
from mixpo.errors import EngineError, MissingExtra, MixpoError, RecipeError, first_line
from mixpo.plural import amount
from mixpo.recipe import ClusterTable
from mixpo.stages.job import Context, Made, Planned, add_facts
from mixpo.stages.perform import make_here

Reopen = Callable[[Path, str], tuple[Context, Planned]]
"""From a run directory and a job's name to both objects, in another process."""


class RayExecutor:
    """Makes shards on a Ray cluster; an instance is a `Context.executor`."""

    def __init__(self, table: ClusterTable, reopen: Reopen) -> None:
        self._table, self._reopen = table, reopen

    def __call__(self, context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[Made]:
        """Raises the MixpoError of an actor, and EngineError when Ray itself fails."""
        ray = _ray()
        self._connect(ray, context)
        reported: set[str] = set()
        try:
            for row in self._receipts(ray, context, planned, numbers):
                for line in json.loads(row["messages"]):
                    if line not in reported:
                        context.progress.say(line)
                        reported.add(line)
                add_facts(planned.job.facts, json.loads(row["facts"]))
                if row["error"]:
                    raise _received(json.loads(row["error"]))
                context.progress.advance(planned.job.sizes[row["number"]])
                yield row["number"], json.loads(row["counts"])
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"{planned.job.title}: Ray failed ({first_line(error)}); finished shards are kept, run the same command again",
                code="ray-failed",
            ) from error

    def _receipts(self, ray: Any, context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        table = self._table
        # One block per task, so that a lost actor costs no more than one.
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
        """Join the cluster or start one, and check its resources. Raises RecipeError or EngineError."""
        table = self._table
        if not ray.is_initialized():
            address = table.address or os.environ.get("RAY_ADDRESS")
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise EngineError(
                    f"cluster.address: no Ray cluster at {address!r} ({first_line(error)}); start one with `ray start --head`",
                    code="ray-not-reached",
                    key="cluster.address",
                ) from error
            ray.data.DataContext.get_current().enable_progress_bars = False
            context.progress.say(f"Ray: {_resources(ray)}, {amount(table.actors, 'actor')}")
        have, need = ray.cluster_resources().get("CPU", 0.0), table.actors * table.cpus_per_actor
        # Without a CPU for its own tasks, Ray Data waits forever.
        if need > have - 1:
            raise RecipeError(
                f"cluster: {table.actors} actors with {table.cpus_per_actor:g} CPUs each leave none of the cluster's {have:g} CPUs "
                "for Ray's own tasks; lower cluster.actors or cluster.cpus_per_actor",
                code="ray-cpus",
                key="cluster.actors",
            )
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if table.actors * table.gpus_per_actor > gpus:
            raise RecipeError(
                f"cluster: {table.actors} actors need {table.actors * table.gpus_per_actor:g} GPUs, the cluster has {gpus:g}; "
                "lower cluster.actors or cluster.gpus_per_actor",
                code="ray-gpus",
                key="cluster.actors",
            )


class ShardMaker:
    """One actor: makes the requested shards of a job, except those that exist."""

    def __init__(self, reopen: Reopen, root: str, job: str, names: Sequence[str]) -> None:
        self._failed: MixpoError | None = None
        try:
            self._context, self._planned = reopen(Path(root), job)
            self._check(names)
        except MixpoError as error:
            # Raised by the driver; Ray would only restart an actor that fails here.
            self._failed = error

    def _check(self, names: Sequence[str]) -> None:
        if tuple(names) != self._planned.names():
            raise EngineError(
                f"{os.uname().nodename}: finds other model files, questions or versions than the machine that started the run; "
                "give all machines of the cluster the same installation, run directory and model folder",
                code="ray-actor-differs",
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: list[dict[str, Any]] = []
        numbers = [int(number) for number in batch["number"]]
        try:
            if self._failed is not None:
                raise self._failed
            rows += ({"number": number, "counts": json.dumps(dict(counts)), "error": ""} for number, counts in self._make(numbers))
        except MixpoError as error:
            rows.append({"number": -1, "counts": "{}", "error": json.dumps(_sent(error))})
        # Messages and facts of the whole batch travel with its first row.
        first = {"messages": json.dumps(self._take_messages()), "facts": json.dumps(self._take_facts())}
        rows = [row | (first if at == 0 else {"messages": "[]", "facts": "{}"}) for at, row in enumerate(rows)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _make(self, numbers: Sequence[int]) -> Iterator[Made]:
        job, stage, names = self._planned.job, self._planned.stage, self._planned.names()
        finished = [number for number in numbers if stage.path(names[number]).exists()]
        for number in finished:
            yield number, job.count(stage.read(names[number], job.row))
        if missing := [number for number in numbers if number not in finished]:
            yield from make_here(self._context, self._planned, missing)

    def _take_messages(self) -> list[str]:
        """Messages for the user since the last call."""
        if self._failed is not None:
            return []
        lines: list[str] = getattr(self._context.progress, "lines", [])
        messages, lines[:] = list(lines), []
        return messages

    def _take_facts(self) -> dict[str, Any]:
        """Facts of the job since the last call."""
        if self._failed is not None:
            return {}
        facts = dict(self._planned.job.facts)
        self._planned.job.facts.clear()
        return facts


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise MissingExtra('cluster.kind = "ray"', "ray") from None
    return ray


def _sent(error: MixpoError) -> dict[str, Any]:
    """An error as JSON, under its nearest class in `mixpo.errors` that a message alone can construct."""
    public = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__) and kind is not MissingExtra)
    path = str(error.path) if error.path is not None else None
    return {"class": public, "message": str(error), "code": error.code, "path": path, "line": error.line, "key": error.key}


def _received(sent: dict[str, Any]) -> MixpoError:
    """The error that `_sent` described."""
    kind: type[MixpoError] = getattr(errors, sent.pop("class"))
    return kind(sent.pop("message"), **sent)


def _resources(ray: Any) -> str:
    have = ray.cluster_resources()
    return f"{amount(len(ray.nodes()), 'node')}, {amount(int(have.get('CPU', 0)), 'CPU')}, {amount(int(have.get('GPU', 0)), 'GPU')}"
