"""Prepares items in background threads while the caller works on earlier ones: in order, and a bounded number ahead."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")


def workers() -> int:
    """Threads that prepare images on this rank: one for each of its processors, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, usable // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


class Prefetch(Generic[Item, Ready]):
    """Iterates over `prepare(item)` for each item. To be used as a context, which ends the threads.

    At most `ahead` items are prepared, or being prepared, beyond the one that was given out last; one thread takes them from `items`,
    `threads` prepare them. An error of `prepare`, or of the items themselves, is raised where its item would come. waited: seconds that
    the caller has waited for items.
    """

    def __init__(self, items: Iterable[Item], prepare: Callable[[Item], Ready], ahead: int, threads: int = 1) -> None:
        self.waited = 0.0
        self._items = items
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mixpo-prefetch")
        self._feeder = Thread(target=self._feed, name="mixpo-prefetch-items", daemon=True)
        self._room = Semaphore(ahead)
        self._queue = SimpleQueue[Future[Ready] | None]()
        self._stopped = False

    def __enter__(self) -> Self:
        self._feeder.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends when what is being prepared is done."""
        self._stopped = True
        self._room.release()
        self._feeder.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Ready]:
        return self

    def __next__(self) -> Ready:
        begun = time.monotonic()
        try:
            future = self._queue.get()
            if future is None:
                self._queue.put(None)
                raise StopIteration
            ready = future.result()
            self._room.release()
            return ready
        finally:
            self.waited += time.monotonic() - begun

    def _feed(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._stopped:
                    return
                self._queue.put(self._pool.submit(self._prepare, item))
        except Exception as error:  # raised in its place
            failed = Future[Ready]()
            failed.set_exception(error)
            self._queue.put(failed)
        finally:
            self._queue.put(None)
