"""Formula workers: processes that can be killed at a time limit, whatever they are doing. Knows nothing about formulas.

Plain subprocesses that speak JSON lines, not a multiprocessing pool: nothing is pickled, the user's main script is not imported
again, any thread may ask, and a hang or a crash costs one answer.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import Any, Self

from mixpo.cache import Cache
from mixpo.types import content_id
from mixpo.verify.judgement import OUTCOMES, Judgement

VERSION = 4
"""Of the comparison itself; raise it when `worker.py` judges otherwise, so that verdicts kept on disk are not used again."""
PROGRAM = Path(__file__).with_name("worker.py")
START_LIMIT_S = 600.0
"""A worker has to load sympy; on a busy machine that takes a while. It does not count towards the limit of a comparison."""
WALL = 100
"""Wall-clock seconds for each second of processor time: a busy machine changes no verdict."""
TASKS_PER_WORKER = 2000
"""Then it is replaced: sympy's caches only grow."""
REMEMBERED = 10_000
"""Comparisons kept in memory; the samples of one question mostly repeat the same few answers."""
TIMED_OUT, DIED = "formula check exceeded", "formula worker died"
"""Reasons of judgements that say something about a worker. Both are tried once more, alone, before they count."""


def is_timeout(judgement: Judgement) -> bool:
    """Whether a comparison is undecided because it reached the time limit."""
    return judgement.reason.startswith(TIMED_OUT)


class FormulaPool:
    """At most `workers` processes, started when first needed. Thread-safe; usable as a context manager.

    timeout_s: processor time of a comparison, on a worker that has loaded everything. cache: a file in which verdicts outlive the pool.
    timeouts: distinct comparisons that reached the limit twice, the second time alone. Each ends two workers and is then remembered until
    the pool is closed, never in the cache.
    """

    def __init__(self, *, timeout_s: float = 5.0, workers: int = 2, cache: Path | None = None) -> None:
        self._cache_path = cache
        self._cache: Cache | None = None
        self.timeout_s = timeout_s
        self.workers = workers
        self.timeouts = 0
        self._remembered: OrderedDict[tuple[str, str, float], Judgement] = OrderedDict()
        self._lock = threading.Lock()
        self._reset()

    def compare(self, predicted: str, gold: str, tolerance: float) -> Judgement:
        """Compare two LaTeX formulas. Never raises; undecided on time-out, crash, or when the pool is closed."""
        if self._owner != os.getpid():
            self._reset()  # forked: the workers on the other end of these pipes belong to the parent process
        key = (predicted, gold, tolerance)
        with self._lock:
            if key in self._remembered:
                return self._remembered[key]
            running = self._running_comparisons.get(key)
            if running is None:
                own = self._running_comparisons[key] = Future[Judgement]()
        if running is not None:  # a bomb must not hold two workers at once
            return running.result()
        try:
            own.set_result(self._decide(key))
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                self._running_comparisons.pop(key, None)
        return own.result()

    def _decide(self, key: tuple[str, str, float]) -> Judgement:
        """The judgement from the cache or a worker."""
        predicted, gold, tolerance = key
        with self._lock:
            cache = self._opened_cache()
        stored = content_id("formula", predicted, gold, tolerance, *_versions()) if cache else ""
        if cache is not None and (known := cache.get(stored)) is not None:
            outcome, reason = json.loads(known)
            return Judgement(OUTCOMES[outcome], reason)
        limits = {"timeout_s": self.timeout_s, "wall_s": WALL * self.timeout_s}
        request = {"predicted": predicted, "gold": gold, "tolerance": tolerance, **limits}
        judgement, lasting = self._ask(request)
        if lasting == "here":  # once more, one at a time, before it counts: others may have slowed it down
            with self._alone:
                judgement, lasting = self._ask(request)
            self.timeouts += is_timeout(judgement)
        if lasting:
            with self._lock:
                self._remembered[key] = judgement
                if len(self._remembered) > REMEMBERED:
                    self._remembered.popitem(last=False)
        if lasting == "always" and cache is not None:
            cache.put(stored, json.dumps(judgement))
        return judgement

    def _opened_cache(self) -> Cache | None:
        if self._cache is None and self._cache_path is not None and not self._closed:
            self._cache = Cache(self._cache_path)
        return self._cache

    def close(self) -> None:
        """End all workers; comparisons after that are undecided."""
        self._closed = True
        if self._owner == os.getpid():
            for worker in list(self._running):
                worker.end()
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    def processes(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.process.pid for worker in list(self._running) if worker.process.poll() is None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._cache = None  # a SQLite connection must not be carried over a fork
        self._closed = False
        self._broken = ""
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._running_comparisons: dict[tuple[str, str, float], Future[Judgement]] = {}
        self._running: set[Worker] = set()
        self._places: LifoQueue[Worker | None] = LifoQueue()
        for _ in range(self.workers):
            self._places.put(None)

    def _ask(self, request: dict[str, Any]) -> tuple[Judgement, str]:
        """The judgement, and whether a retry would give the same: "always", "here" (a time-out or a crash on this machine) or ""."""
        worker = self._places.get()
        try:
            if self._closed or self._broken:
                return Judgement("undecided", self._broken or "verifier is closed"), ""
            if worker is None or not worker.is_usable():
                self._drop(worker)
                worker = self._start()
            if worker is None:
                return Judgement("undecided", self._broken or "formula worker did not start"), ""
            reply = worker.ask(request, request["wall_s"])
            if reply is not None:
                return Judgement(OUTCOMES[reply["outcome"]], reply["reason"]), "always"
            timed_out = worker.timed_out
            self._drop(worker)
            worker = None
            if timed_out:
                return Judgement("undecided", f"{TIMED_OUT} {self.timeout_s:g} s"), "here"
            return Judgement("undecided", DIED), "here"
        finally:
            self._places.put(worker)

    def _start(self) -> Worker | None:
        try:
            worker = Worker()
        except OSError as error:
            self._broken = f"formula worker cannot be started: {error}"
            return None
        self._running.add(worker)
        ready = worker.read(START_LIMIT_S)
        if ready is not None and ready["outcome"] == "ready" and not self._closed:
            return worker
        self._drop(worker)
        if ready is not None and ready["outcome"] != "ready":
            self._broken = ready["reason"]
        return None

    def _drop(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.end()
            self._running.discard(worker)


@functools.cache
def _versions() -> tuple[object, ...]:
    """What decides a comparison other than the formulas."""
    return VERSION, metadata.version("math-verify"), metadata.version("sympy")


_LIMITS = [-number for name in ("SIGPROF", "SIGALRM") if (number := getattr(signal, name, 0))]
"""Exit statuses of a worker that ended at its own limit of processor time, or of wall-clock time."""


class Worker:
    """One process. `ask` returns None once the process is gone; `timed_out` tells whether a limit ended it."""

    def __init__(self, program: Path = PROGRAM, *arguments: str) -> None:
        self.timed_out = False
        self._tasks = 0
        # The parent's import path, so that a worker finds what its parent finds; -P keeps our own folder off it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def is_usable(self) -> bool:
        return self.process.poll() is None and self._tasks < TASKS_PER_WORKER

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, str] | None:
        assert self.process.stdin is not None
        self._tasks += 1
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            return None
        return self.read(limit_s)

    def read(self, limit_s: float) -> dict[str, str] | None:
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
        reply: dict[str, str] = json.loads(line)
        return reply

    def end(self) -> None:
        """Kill and reap; closing the pipes of a process that another thread is reading from is safe once it is dead."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # a request was still buffered for a process that is gone

    def _expire(self) -> None:
        self.timed_out = True
        self.process.kill()
