"""Which pairs make up which optimizer step. Pure bookkeeping: depends on pair counts, batch size, seed and epoch, on nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class GroupPairs(NamedTuple):
    """Some pairs of one group. group: its position in the data. pairs: positions in the group's pairs."""

    group: int
    pairs: tuple[int, ...]


Step = tuple[GroupPairs, ...]
"""The pairs of one optimizer step, group by group."""


def epoch_steps(pair_counts: Sequence[int], batch_size: int, seed: int, epoch: int, pairs_per_group: int = 0) -> list[Step]:
    """All steps of one epoch in the order they are taken; each pair once.

    Every step holds exactly `batch_size` pairs, the last one what is left. A group that does not fit into what is left of a
    step is divided over its pairs, so that each step is the same size whatever the groups are. together: at most this many pairs
    of a group are kept next to each other when the order is drawn; 0 keeps all of them together.
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
    """The steps of a whole training. pair_counts: pairs of each group. together: see `epoch_steps`."""

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
        """The steps that are left after `done` of them."""
        for epoch in range(done // max(1, self.steps_per_epoch), self.epochs):
            skip = done - epoch * self.steps_per_epoch
            yield from epoch_steps(self.pair_counts, self.batch_size, self.seed, epoch, self.pairs_per_group)[max(0, skip) :]


def rank_share(step: Step, rank: int, ranks: int, weight: Callable[[int], int]) -> Step:
    """What one rank does of a step: whole parts, the heaviest first to whoever has least. weight: cost of a pair of this group."""
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
