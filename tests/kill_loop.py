"""Runs a small recipe again and again in child processes and kills each with SIGKILL at a random moment. A script for test_kill.

Usage: kill_loop.py RECIPE FOLDER KILLS SEED. Writes FOLDER/undisturbed, FOLDER/killed-<n> and FOLDER/log.jsonl. Children are forked
from a process that has done the undisturbed run, so that a moment is a moment of work and not of imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mixpo.engines.scripted
import mixpo.stages.train
import mixpo.train.loop
import mixpo.vlm.cut  # noqa: F401
from mixpo import pipeline
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.run import Manifest
from mixpo.stages.base import Context, Make, Planned
from mixpo.stages.base import perform as real_perform


def log(path: Path, **what: object) -> None:
    """Append one line at once, so that a kill leaves no half of it."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, json.dumps(what).encode() + b"\n")
    os.close(handle)


def child(recipe: Path, root: Path, record: Path) -> None:
    """One whole run that records each shard it begins and whether that shard was there already."""

    def perform(context: Context, planned: Planned) -> Manifest:
        job, shards = planned.job, planned.names()

        @contextmanager
        def session(numbers: Sequence[int]) -> Iterator[Make]:
            with job.session(numbers) as make:

                def begin(number: int) -> object:
                    there = planned.stage.path(shards[number]).exists()
                    log(record, run=root.name, stage=job.name, shard=shards[number], there=there)
                    return make(number)

                yield begin  # type: ignore[misc]

        return real_perform(context, replace(planned, job=replace(job, session=session)))

    pipeline.perform = perform  # type: ignore[assignment]
    pipeline.run_recipe(pipeline.open_context(load(recipe), recipe.parent, root, Silent()))


def start(recipe: Path, root: Path, record: Path) -> int:
    """Fork a child that runs the recipe; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child(recipe, root, record)
    except BaseException as error:
        log(record, run=root.name, error=repr(error))
        os._exit(1)
    os._exit(0)


def main(recipe: Path, folder: Path, kills: int, seed: int) -> None:
    """See the top."""
    record, rng = folder / "log.jsonl", random.Random(seed)
    child(recipe, folder / "undisturbed", record)
    begun = time.monotonic()
    assert os.waitpid(start(recipe, folder / "measured", record), 0)[1] == 0
    whole, done, number = time.monotonic() - begun, 0, 0
    while done < kills:
        root = folder / f"killed-{number}"
        pid = start(recipe, root, record)
        # A part of the whole, so that a run is killed several times before it is through.
        time.sleep(rng.uniform(0, whole / 3))
        os.kill(pid, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            done += 1
            log(record, run=root.name, killed=done)
        else:
            number += 1
    for root in sorted(folder.glob("killed-*")):
        assert os.waitpid(start(recipe, root, record), 0)[1] == 0, root


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
