"""Formula comparisons in worker processes: each is made once, remembered, and kept on disk where a cache is named."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from mixpo.cache import Cache
from mixpo.types import content_id
from mixpo.verify.judgement import OUTCOMES, Judgement
from mixpo.verify.processes import TIMED_OUT, UnavailableError, Workers

VERSION = 4
"""Of the comparison itself; raise it when `worker.py` judges otherwise, so that verdicts kept on disk are not used again."""
PROGRAM = Path(__file__).with_name("worker.py")
WALL = 100
"""Wall-clock seconds for each second of processor time: a busy machine changes no verdict."""
REMEMBERED = 10_000
"""Comparisons kept in memory; the samples of one question mostly repeat the same few answers."""
EXCEEDED = "formula check exceeded"
"""The reason of a judgement that was not made in time."""

_Key = tuple[str, str, float]


class FormulaPool:
    """At most `workers` processes, started when first needed. Thread-safe; usable as a context manager.

    timeout_s: processor time of a comparison, on a worker that has loaded everything. cache: a file in which verdicts outlive the pool.
    timeouts: distinct comparisons that reached the limit twice, the second time alone. Each ends two workers and is then remembered until
    the pool is closed, never in the cache.
    """

    _cache: Cache | None
    _processes: Workers

    def __init__(self, *, timeout_s: float = 5.0, workers: int = 2, cache: Path | None = None) -> None:
        self.timeout_s = timeout_s
        self.workers = workers
        self.timeouts = 0
        self._cache_path = cache
        self._reset()

    def compare(self, predicted: str, gold: str, tolerance: float) -> Judgement:
        """Compare two LaTeX formulas. Never raises; undecided on time-out, crash, or when the pool is closed."""
        if self._owner != os.getpid():
            self._reset()  # forked: the workers on the other end of these pipes belong to the parent process
        key = (predicted, gold, tolerance)
        with self._lock:
            known = self._judgements.get(key)
            if known is None:
                own = self._judgements[key] = Future[Judgement]()
        if known is not None:  # perhaps under way: a bomb must not hold two workers at once
            return known.result()
        lasting = False
        try:
            judgement, lasting = self._decide(*key)
            own.set_result(judgement)
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                if not lasting:
                    self._judgements.pop(key, None)
                elif len(self._judgements) > REMEMBERED:
                    self._judgements.popitem(last=False)
        return judgement

    def close(self) -> None:
        """End all workers; comparisons after that are undecided."""
        if self._owner == os.getpid():
            self._closed = True
            self._processes.close()
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    def processes(self) -> list[int]:
        """Process ids of the workers that run now."""
        return self._processes.ids()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._closed = False
        self._cache = None  # a SQLite connection must not be carried over a fork
        self._lock = threading.Lock()
        self._judgements: OrderedDict[_Key, Future[Judgement]] = OrderedDict()
        self._processes = Workers(PROGRAM, count=self.workers)

    def _decide(self, predicted: str, gold: str, tolerance: float) -> tuple[Judgement, bool]:
        """The judgement from the cache or a worker, and whether the same would come of it again in this pool."""
        with self._lock:
            if self._cache is None and self._cache_path is not None and not self._closed:
                self._cache = Cache(self._cache_path)
            cache = self._cache
        stored = content_id("formula", predicted, gold, tolerance, *_versions()) if cache else ""
        if cache is not None and (kept := cache.get(stored)) is not None:
            outcome, reason = json.loads(kept)
            return Judgement(OUTCOMES[outcome], reason), True
        wall_s = WALL * self.timeout_s
        request = {"predicted": predicted, "gold": gold, "tolerance": tolerance, "timeout_s": self.timeout_s, "wall_s": wall_s}
        try:
            reply = self._processes.ask(request, wall_s)
        except UnavailableError as error:
            return Judgement("undecided", str(error)), False
        if isinstance(reply, str):
            self.timeouts += reply == TIMED_OUT
            return Judgement("undecided", f"{EXCEEDED} {self.timeout_s:g} s" if reply == TIMED_OUT else "formula worker died"), True
        judgement = Judgement(OUTCOMES[reply["outcome"]], reply["reason"])
        if cache is not None:
            cache.put(stored, json.dumps(judgement))
        return judgement, True


@functools.cache
def _versions() -> tuple[object, ...]:
    """What decides a comparison other than the formulas."""
    return VERSION, metadata.version("math-verify"), metadata.version("sympy")
