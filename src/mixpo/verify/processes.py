"""Worker processes that can be killed at a time limit, whatever they are doing. Knows nothing about what they compute.

Plain subprocesses that speak JSON lines, not a multiprocessing pool: nothing is pickled, the user's main script is not imported
again, any thread may ask, and a hang or a crash costs one answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import LifoQueue
from typing import Any

START_LIMIT_S = 600.0
"""A formula worker has to load sympy; on a busy machine that takes a while. It does not count towards the limit of a request."""
TASKS_PER_WORKER = 2000
"""Then it is replaced: sympy's caches only grow."""
_LIMITS = [-number for name in ("SIGPROF", "SIGALRM") if (number := getattr(signal, name, 0))]
"""Exit statuses of a worker that ended at its own limit of processor time, or of wall-clock time."""

TIMED_OUT, DIED = "timed out", "died"
"""What became of a worker that does not reply."""
Reply = dict[str, Any]


class UnavailableError(Exception):
    """No worker can be asked: they are closed, or the program cannot be started."""


class Workers:
    """At most `count` processes of one program, started when first needed. Thread-safe."""

    def __init__(self, program: Path, *arguments: str, count: int) -> None:
        self._command = (str(program), *arguments)
        self._alone = threading.Lock()
        self._unusable = ""
        self._running: set[_Worker] = set()
        self._places: LifoQueue[_Worker | None] = LifoQueue()
        for _ in range(count):
            self._places.put(None)

    def start(self) -> None:
        """Start a process now. Raises UnavailableError."""
        worker = self._places.get()
        try:
            worker = self._started(worker)
        finally:
            self._places.put(worker)

    def ask(self, request: Reply, limit_s: float) -> Reply | str:
        """The reply, or `TIMED_OUT` or `DIED`. Both are tried once more, alone, before they count. Raises UnavailableError."""
        reply = self._ask(request, limit_s)
        if isinstance(reply, str):  # others may have slowed it down, or used up the memory
            with self._alone:
                reply = self._ask(request, limit_s)
        return reply

    def ids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.process.pid for worker in list(self._running) if worker.process.poll() is None]

    def close(self) -> None:
        """End all processes, those at work too."""
        self._unusable = "verifier is closed"
        for worker in list(self._running):
            worker.end()

    def _ask(self, request: Reply, limit_s: float) -> Reply | str:
        worker = self._places.get()
        try:
            worker = self._started(worker)
            reply = worker.ask(request, limit_s)
        finally:
            self._places.put(worker)
        return reply or (TIMED_OUT if worker.timed_out else DIED)

    def _started(self, worker: _Worker | None) -> _Worker:
        """This worker, or a new one in the place of one that ended or has done its share."""
        if worker is not None and not self._unusable and worker.is_usable():
            return worker
        self._end(worker)
        if self._unusable:
            raise UnavailableError(self._unusable)
        try:
            worker = _Worker(self._command)
        except OSError as error:
            self._unusable = f"worker process cannot be started: {error}"
            raise UnavailableError(self._unusable) from None
        self._running.add(worker)
        ready = worker.read(START_LIMIT_S)
        if ready is not None and ready["outcome"] == "ready" and not self._unusable:
            return worker
        self._end(worker)
        if ready is not None and ready["outcome"] != "ready":
            self._unusable = ready["reason"]
        raise UnavailableError(self._unusable or "the process ended")

    def _end(self, worker: _Worker | None) -> None:
        if worker is not None:
            worker.end()
            self._running.discard(worker)


class _Worker:
    """One process. `ask` returns None once the process is gone; `timed_out` tells whether a limit ended it."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.timed_out = False
        self._tasks = 0
        # The parent's import path, so that a worker finds what its parent finds; -P keeps our own folder off it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def is_usable(self) -> bool:
        return self.process.poll() is None and self._tasks < TASKS_PER_WORKER

    def ask(self, request: Reply, limit_s: float) -> Reply | None:
        assert self.process.stdin is not None
        self._tasks += 1
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            return None
        return self.read(limit_s)

    def read(self, limit_s: float) -> Reply | None:
        """One reply; None when the process ends first, of itself or at the limit."""
        assert self.process.stdout is not None
        timer = threading.Timer(limit_s, self._expire)
        timer.daemon = True
        timer.start()
        try:
            line = self.process.stdout.readline()
        except ValueError:  # closed by another thread: the pool is ending
            return None
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            with suppress(subprocess.TimeoutExpired):
                self.timed_out |= self.process.wait(1) in _LIMITS
            return None
        reply: Reply = json.loads(line)
        return reply

    def end(self) -> None:
        """Kill and reap; closing the pipes of a process that another thread is reading from is safe once it is dead."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # a request was still buffered for a process that is gone
                if pipe is not None:
                    pipe.close()

    def _expire(self) -> None:
        self.timed_out = True
        self.process.kill()
