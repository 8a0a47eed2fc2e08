"""Responses of one prompt as branches of a tree: what several of them begin with stands there once. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_SHARED = 4
"""A common beginning of fewer tokens stays in each response; see docs/training.md for what that was measured on."""


class Branch(NamedTuple):
    """Some tokens in a row. parent: the branch that they go on from, which stands before this one; -1 for the prompt."""

    parent: int
    tokens: tuple[int, ...]


class PrefixTree(NamedTuple):
    """branches: parents first, none of them empty. ends: for each response the branch whose last token is its last one."""

    branches: tuple[Branch, ...]
    end_branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model for all responses."""
        return sum(len(branch.tokens) for branch in self.branches)


def build_prefix_tree(responses: Sequence[tuple[int, ...]]) -> PrefixTree:
    """The tree in which responses share every beginning that is at least `LEAST` tokens longer than what is shared already.

    A response that another one begins with ends inside the tree; the others end in a leaf of their own.
    """
    order = sorted(range(len(responses)), key=lambda number: responses[number])
    common = [_shared_prefix(responses[one], responses[other]) for one, other in pairwise(order)]
    branches, end_branches = list[Branch](), [-1] * len(responses)

    def split(first: int, end: int, parent: int, depth: int) -> None:
        """Grow those from `first` to `end` of the order, whose first `depth` tokens end with the branch `parent`."""
        while first < end:
            after = first + 1
            while after < end and common[after - 1] >= depth + MIN_SHARED:
                after += 1
            response = responses[order[first]]
            shared = min(common[first : after - 1], default=len(response))
            here = parent
            if shared > depth:
                here = len(branches)
                branches.append(Branch(parent, response[depth:shared]))
            if after - first > 1:
                split(first, after, here, shared)
            else:
                end_branches[order[first]] = here
            first = after

    split(0, len(responses), -1, 0)
    return PrefixTree(tuple(branches), tuple(end_branches))


def _shared_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
