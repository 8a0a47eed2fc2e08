"""Prefetched items come in order, a bounded number ahead; errors come in their place; no thread is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mixpo.prefetch import Prefetch, workers


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mixpo-prefetch")]


def slow(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * 2


@pytest.mark.parametrize("threads", [1, 4])
def test_items_come_in_order(threads: int) -> None:
    with Prefetch(range(20), slow, 3, threads) as ready:
        assert list(ready) == [number * 2 for number in range(20)]
        assert list(ready) == []
    assert ready.waited > 0


def test_no_more_than_so_many_ahead() -> None:
    begun: list[int] = []

    def begin(number: int) -> int:
        begun.append(number)
        return number

    with Prefetch(iter(range(50)), begin, 4, 4) as ready:
        for number in ready:
            time.sleep(0.005)
            assert len(begun) <= number + 1 + 4
    assert sorted(begun) == [*range(50)]


def test_work_is_done_while_the_caller_works() -> None:
    done = [threading.Event() for _ in range(8)]
    with Prefetch(range(8), lambda number: done[number].set(), 2) as ready:
        for number, _ in enumerate(ready):
            # The caller is at work until the two items after its own are prepared.
            assert all(event.wait(60) for event in done[: number + 3])


def test_an_error_comes_in_its_place() -> None:
    def prepare(number: int) -> int:
        if number == 3:
            raise ValueError("row 3")
        return number

    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("plan")

    with Prefetch(range(10), prepare, 5, 2) as ready:
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="row 3"):
            next(ready)
    with Prefetch(items(), prepare, 5, 2) as ready:
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="plan"):
            next(ready)


def test_leaving_early_ends_the_threads() -> None:
    with Prefetch(iter(int, 1), slow, 3, 2) as ready:
        assert next(ready) == 0  # of an endless number
    with Prefetch(range(3), slow, 3):
        pass  # nothing was taken


def test_ranks_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(32), raising=False)
    assert workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert workers() == 1
