"""Prefix tree of the responses of one prompt: shared prefixes are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from rapidfuzz.distance import Prefix

MIN_SHARED = 4
"""Shorter prefixes are not shared; docs/training.md has the measurements."""


class Branch(NamedTuple):
    """Consecutive tokens. parent: index of the branch that they continue, smaller than the own one; -1 for the prompt."""

    parent: int
    tokens: tuple[int, ...]


class PrefixTree(NamedTuple):
    """branches: parents first, none empty. end_branches: for each response the branch that its last token ends."""

    branches: tuple[Branch, ...]
    end_branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all branches."""
        return sum(len(branch.tokens) for branch in self.branches)


def build_prefix_tree(responses: Sequence[tuple[int, ...]]) -> PrefixTree:
    """The tree in which responses share every prefix at least `MIN_SHARED` tokens longer than the one already shared.

    A response that is a prefix of another one ends at an inner branch; all others end in a leaf of their own.
    """
    order = sorted(range(len(responses)), key=lambda number: responses[number])
    common = [Prefix.similarity(responses[one], responses[other]) for one, other in pairwise(order)]
    branches, end_branches = list[Branch](), [-1] * len(responses)

    def split(first: int, end: int, parent: int, depth: int) -> None:
        """Add the responses order[first:end], whose first `depth` tokens end with the branch `parent`."""
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
