"""Assigns pairs to optimizer steps; depends on pair counts, batch size, seed and epoch only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class GroupPairs(NamedTuple):
    """Some pairs of one group. group: index into the data. pairs: indices into the group's pairs."""

    group: int
    pairs: tuple[int, ...]


Step = tuple[GroupPairs, ...]
"""The pairs of one optimizer step, group by group."""


def epoch_steps(pair_counts: Sequence[int], batch_size: int, seed: int, epoch: int, pairs_per_group: int = 0) -> list[Step]:
    """All steps of one epoch in order; each pair occurs once.

    Every step has exactly `batch_size` pairs, except the last. A group that does not fit into the rest of a step is split.
    pairs_per_group: groups are shuffled in blocks of at most this many pairs; 0 for whole groups.
    """
    order = [
        (group, first, min(count, first + (pairs_per_group or count)))
        for group, count in enumerate(pair_counts)
        for first in range(0, count, pairs_per_group or max(count, 1))
    ]
    random.Random(f"{seed}/train/{epoch}").shuffle(order)
    steps: list[Step] = []
    current: list[GroupPairs] = []
    room = batch_size
    for group, first, end in order:
        while first < end:
            taken = min(room, end - first)
            current.append(GroupPairs(group, tuple(range(first, first + taken))))
            first, room = first + taken, room - taken
            if room == 0:
                steps.append(tuple(current))
                current, room = [], batch_size
    return [*steps, tuple(current)] if current else steps


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a whole training. pair_counts: pairs of each group. pairs_per_group: see `epoch_steps`."""

    pair_counts: tuple[int, ...]
    batch_size: int
    epochs: int
    seed: int
    pairs_per_group: int = 0

    @property
    def pairs(self) -> int:
        """Pairs in one epoch."""
        return sum(self.pair_counts)

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
            skip = done - epoch * self.steps_per_epoch
            yield from epoch_steps(self.pair_counts, self.batch_size, self.seed, epoch, self.pairs_per_group)[max(0, skip) :]


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
