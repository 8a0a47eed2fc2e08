"""Assigns pairs to optimizer steps; depends on pair counts, batch size, seed and epoch only."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class GroupPairs(NamedTuple):
    """Some pairs of one group. group: index into the data. pairs: indices into the group's pairs."""

    group: int
    pairs: tuple[int, ...]


Step = tuple[GroupPairs, ...]
"""The pairs of one optimizer step, group by group."""


def epoch_steps(
    pair_counts: Sequence[int] | NDArray[Any], batch_size: int, seed: int, epoch: int, pairs_per_group: int = 0, first: int = 0
) -> Iterator[Step]:
    """The steps of one epoch in order, from step `first` on; each pair occurs once in the epoch.

    Every step has exactly `batch_size` pairs, except the last. A group that does not fit into the rest of a step is split.
    pairs_per_group: groups are shuffled in blocks of at most this many pairs; 0 for whole groups. Memory: about 40 bytes per block.
    """
    counts = np.asarray(pair_counts, dtype=np.int32)
    blocks = -(-counts // pairs_per_group) if pairs_per_group else (counts > 0).astype(np.int32)
    group = np.repeat(np.arange(len(counts), dtype=np.int32), blocks)
    order = array("I", range(len(group)))
    random.Random(f"{seed}/train/{epoch}").shuffle(order)
    before = (np.cumsum(blocks) - blocks)[group]
    start = (np.arange(len(group)) - before).astype(np.int32) * pairs_per_group
    size = np.minimum(counts[group] - start, pairs_per_group or np.iinfo(np.int32).max)
    shuffled = np.asarray(order)
    group, start = group[shuffled], start[shuffled]
    ends = np.cumsum(size[shuffled], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    for low in range(first * batch_size, total, batch_size):
        yield tuple(_between(group, start, ends, low, min(low + batch_size, total)))


def _between(group: NDArray[Any], start: NDArray[Any], ends: NDArray[Any], low: int, high: int) -> Iterator[GroupPairs]:
    """Pairs `low` to `high` of an epoch. group, start: (N,) of each block in order. ends: (N,) pairs up to the end of each block."""
    block = int(np.searchsorted(ends, low, side="right"))
    while low < high:
        end, taken = int(ends[block]), min(high, int(ends[block])) - low
        begun = int(ends[block - 1]) if block else 0
        pair = int(start[block]) + low - begun
        yield GroupPairs(int(group[block]), tuple(range(pair, pair + taken)))
        low, block = low + taken, block + (low + taken == end)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of a whole training. pair_counts: (groups,) pairs of each group. pairs_per_group: see `epoch_steps`."""

    pair_counts: Sequence[int] | NDArray[Any]
    batch_size: int
    epochs: int
    seed: int
    pairs_per_group: int = 0

    @cached_property
    def pairs(self) -> int:
        """Pairs in one epoch."""
        return int(np.sum(self.pair_counts, dtype=np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return math.ceil(self.pairs / self.batch_size)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def steps(self, done: int) -> Iterator[Step]:
        """The steps after the first `done`."""
        for epoch in range(done // max(1, self.steps_per_epoch), self.epochs):
            skip = max(0, done - epoch * self.steps_per_epoch)
            yield from epoch_steps(self.pair_counts, self.batch_size, self.seed, epoch, self.pairs_per_group, skip)


def share_of_batch(step: Step, batch_size: int) -> float:
    """The pairs of a step as a share of a full batch: the last step of an epoch may be short.

    Its learning rate is scaled by this share, because the mean over its few pairs would otherwise give each of them the weight of many.
    """
    return sum(len(part.pairs) for part in step) / batch_size


def rank_share(step: Step, rank: int, ranks: int, weight: Callable[[int], int]) -> Step:
    """One rank's share of a step: greedy, the heaviest part to the least loaded rank. weight: cost of a pair of a group."""
    if ranks == 1:
        return step
    load = [0] * ranks
    mine: list[GroupPairs] = []
    for part in sorted(step, key=lambda part: (-weight(part.group) * len(part.pairs), part)):
        taker = load.index(min(load))
        load[taker] += weight(part.group) * len(part.pairs)
        if taker == rank:
            mine.append(part)
    return tuple(mine)
