"""Processes of their own, forked from one that has imported everything: alone, the imports of a rank take ten seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["imported"])
GRACE_SECONDS = 60.0
"""Time for a rank to end after another one has failed, before it is killed."""


class Ended(NamedTuple):
    """The exit status of the first rank that fails, and the standard output and error of all ranks together."""

    status: int
    out: str
    error: str


def start(
    target: Callable[..., Any], *args: object, out: Path, error: Path | None = None, environment: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """Call a function in a process of its own. out, error: files that its output is appended to; without `error` all of it to `out`."""
    process = CONTEXT.Process(target=_call, args=(target, args, out, error or out, dict(environment or {})), daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # what the server is started with, the first time
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        process.start()
    return process


def ranks(target: Callable[..., Any], *args: object, environment: Mapping[str, str] | None = None, seconds: float = 800) -> Ended:
    """Call a function in two ranks, as torchrun does: one rendezvous, and all end when one fails."""
    import torch.distributed

    distributed: Any = torch.distributed
    # The store of the launcher, as torchrun's: it has its port before the ranks connect.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launch |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", **(environment or {})}
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "out", Path(folder) / "error"
        each = [
            start(target, *args, out=out, error=error, environment={**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]
        left = list(each)
        failed: list[int] = []
        try:
            while left and wait([process.sentinel for process in left], seconds):
                left = [process for process in left if process.exitcode is None]
                if failed := [process.exitcode for process in each if process.exitcode]:
                    break
            for process in left:
                process.terminate()
                process.join(GRACE_SECONDS)
        finally:
            for process in each:
                process.kill()
                process.join()
        status = next((process.exitcode for process in each if process.exitcode), 0)
        return Ended(failed[0] if failed else status, out.read_text(encoding="utf-8"), error.read_text(encoding="utf-8"))


def run(target: Callable[..., Any], *args: object, environment: Mapping[str, str] | None = None, seconds: float = 800) -> Ended:
    """Call a function in a process of its own and wait for its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "out", Path(folder) / "error"
        process = start(target, *args, out=out, error=error, environment=environment)
        process.join(seconds)
        process.kill()
        process.join()
        return Ended(process.exitcode or 0, out.read_text(encoding="utf-8"), error.read_text(encoding="utf-8"))


def mixpo(*arguments: str) -> None:
    """The `mixpo` command, as in a process that is started."""
    from mixpo.__main__ import main

    sys.argv = ["mixpo", *arguments]
    sys.exit(main())


def script(path: Path, *arguments: str) -> None:
    """`python path arguments`."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _call(target: Callable[..., Any], args: tuple[object, ...], out: Path, error: Path, environment: dict[str, str]) -> None:
    for path, stream in ((out, 1), (error, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(environment)
    assert "imported" in sys.modules, "tests/imported.py cannot be imported"
    target(*args)
