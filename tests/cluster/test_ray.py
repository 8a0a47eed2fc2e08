"""Shards made by a real Ray cluster of several nodes on this machine: exactly once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import forked
import pytest

pytest.importorskip("aiohttp")

from stub_server import StubServer, on, status, text_of

from mixpo import sealed
from mixpo.errors import EngineError, RecipeError
from mixpo.pipeline import open_context, open_run, run_stage
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.records import Sampled, read_rows
from mixpo.stages.job import Context
from mixpo.stages.questions import known_sources

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
shard_size = 4
[source]
kind = "digits"
count = 64
open_share = 0.25
[sample]
n = 2
max_new_tokens = 24
batch_size = 4
[cluster]
kind = "{kind}"
address = "{address}"
actors = 2
cpus_per_actor = 0.5
"""

SERVED = """
[sample.server]
urls = ["URL"]
same_model = false
[evaluate]
modes = ["cot"]
[[evaluate.sets]]
name = "test"
source = { kind = "digits", pool = "test", count = 12 }
[[evaluate.served]]
name = "big"
urls = ["URL"]
model = "big"
"""

Rows = dict[str, list[Sampled]]
Value = TypeVar("Value")


class Nodes:
    """A cluster of a head and two workers, of which the second can be taken away."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
        self.address: str = self.cluster.address
        self.workers = [self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]

    def lose_one(self) -> None:
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray lets everything else go before its workers; beside other tests they would hardly come to load the model.
        patch.setenv("RAY_worker_niceness", "0")
        made = Nodes()
        yield made
        ray.shutdown()
        made.cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What one process makes of the recipe: the undisturbed run."""
    root = tmp_path_factory.mktemp("alone")
    run_stage(_context(root, "none", ""), ("sample", "continue"))
    return rows(root / "run")


def _context(root: Path, kind: str, address: str) -> Context:
    path = root / "r.toml"
    path.write_text(RECIPE.format(kind=kind, address=address), encoding="utf-8")
    return open_context(load(path), root, root / "run", Silent())


def rows(run: Path) -> Rows:
    """All records of the round by file, without log-probs, whose last digits depend on what shared a batch."""
    return {
        path.relative_to(run).as_posix(): list(map(_without_logprobs, _read(path))) for path in sorted((run / "round-1").rglob("*.parquet"))
    }


def _read(path: Path) -> list[Sampled]:
    return read_rows(path, Sampled)


def _without_logprobs(row: Sampled) -> Sampled:
    return replace(row, responses=tuple(replace(response, logprobs=()) for response in row.responses))


def driver(root: Path) -> ForkServerProcess:
    """The command line on the cluster, in a process of its own."""
    return forked.start(forked.mixpo, "sample", str(root / "r.toml"), "--dir", str(root / "run"), out=root / "out")


def until(check: Callable[[], Value], root: Path, process: ForkServerProcess) -> Value:
    """The first value of a check that is true, while the driver runs."""
    limit = time.monotonic() + 600
    while not (value := check()):
        assert process.is_alive(), (root / "out").read_text()
        assert time.monotonic() < limit, (root / "out").read_text()
        time.sleep(0.02)
    return value


def wait_for(root: Path, count: int, process: ForkServerProcess) -> None:
    """Until so many sample shards are there."""
    until(lambda: len(list((root / "run/round-1/sample").glob("*.parquet"))) >= count, root, process)


def finish(root: Path, process: ForkServerProcess) -> None:
    process.join(600)
    assert process.exitcode == 0, (root / "out").read_text()


def actors() -> set[int]:
    """Process ids of the actors that make shards."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if title.startswith(b"ray::") and b"ShardMaker" in title:
                found.add(int(entry.name))
    return found


def test_an_error_of_an_actor_is_the_drivers(tmp_path: Path, nodes: Nodes) -> None:
    """The model's files change under the actors: they refuse, with a sentence, instead of mixing models."""
    context = _context(tmp_path, "ray", nodes.address)
    real = context.executor
    assert real is not None

    def changed(context: Context, planned: Any, numbers: Any) -> Any:
        (tmp_path / "run/command.json").write_text(sealed.dumps({"recipe_folder": str(tmp_path), "limit": None}))
        recipe = json.loads((tmp_path / "run/recipe.json").read_text())
        (tmp_path / "run/recipe.json").write_text(sealed.dumps({**recipe, "seed": 99}))
        return real(context, planned, numbers)

    context.executor = changed
    with pytest.raises(EngineError, match="finds other model files, questions or versions"):
        run_stage(context, ("sample",))


def test_servers_are_probed_once_by_each_actor_and_what_they_did_is_kept(tmp_path: Path, nodes: Nodes) -> None:
    """Sampling from a server, and a served model in the evaluation: as in one process, and the manifests say what was retried."""
    for kind in ("none", "ray"):
        root = tmp_path / kind
        root.mkdir()
        # Whatever is asked as a question fails once.
        with StubServer(None, on("Your task", status(500), times=1)) as server:
            (root / "r.toml").write_text(
                RECIPE.format(kind=kind, address=nodes.address) + SERVED.replace("URL", server.url), encoding="utf-8"
            )
            recipe = load(root / "r.toml", ('sample.engine="openai"', "pairs.dropout_ntp=false", "source.count=24"))
            names = ("round-1/sample", "answer/test/big/cot")
            run_stage(open_context(recipe, root, root / "run", Silent()), ("sample", "answer"), names=names)
            texts = [text_of(body) for _, body, _ in server.bodies]
        probed = texts.count("Hello.")
        assert probed == 2 if kind == "none" else 2 <= probed <= 4, "in each of two stages once, on the cluster by each of two actors"
        facts = [json.loads((root / "run" / name / "manifest.json").read_text())["facts"] for name in names]
        assert [found["server"]["model"] for found in facts] == ["stub", "big"]
        retried = sum(found["counts"].get("retried: HTTP 500", 0) for found in facts)
        assert retried == len({text for text in texts if "Your task" in text}) > 1
    assert rows(tmp_path / "ray/run") == rows(tmp_path / "none/run") != {}


def test_no_room_for_rays_own_tasks_is_an_error(tmp_path: Path, nodes: Nodes) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(kind="ray", address=nodes.address), encoding="utf-8")
    context = open_context(load(path, ("cluster.cpus_per_actor=2",)), tmp_path, tmp_path / "run", Silent())
    with pytest.raises(RecipeError, match=r"leave none of the cluster's 3 CPUs"):
        run_stage(context, ("sample",))


def test_the_driver_an_actor_and_a_node_are_lost(tmp_path: Path, nodes: Nodes, alone: Rows) -> None:
    """One after the other in the same run. The last test: the cluster has a node less afterwards."""
    _context(tmp_path, "ray", nodes.address)
    process = driver(tmp_path)
    wait_for(tmp_path, 3, process)
    process.kill()
    process.join()
    of_killed = actors()
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/round-1/sample").glob("*.parquet")}
    assert len(there) < 10, "the run is nearly done"
    process = driver(tmp_path)
    wait_for(tmp_path, len(there) + 2, process)
    # The killed driver's actors may still end: the next one's are others.
    os.kill(min(until(lambda: actors() - of_killed, tmp_path, process)), signal.SIGKILL)
    wait_for(tmp_path, len(there) + 4, process)
    nodes.lose_one()
    finish(tmp_path, process)
    assert "3 nodes" in (tmp_path / "out").read_text()
    assert all(path.stat().st_mtime_ns == written for path, written in there.items() if path.exists()), "a finished shard was made again"
    assert rows(tmp_path / "run") == alone
    _exactly_once(tmp_path / "run")


def _exactly_once(root: Path) -> None:
    """Every (question, sample) exists exactly once in the finished stage."""
    context = open_run(root)
    rows = list(context.run.stage("round-1/sample").read_all(Sampled))
    index = known_sources(context.run, context.recipe).train
    assert len(rows) == index.questions == 64
    seen = [(row.question, response.index) for row in rows for response in row.responses]
    assert len(set(seen)) == len(seen) == 128
    assert not list(root.rglob(".*.tmp"))
