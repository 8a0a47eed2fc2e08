"""Answers to one question that say nearly the same: the overlap of their runs of words. Knows nothing about correctness."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

RUN = 3
"""Words in a run; an answer of fewer words is one run."""


class Seen:
    """The answers seen so far, each by its runs of words."""

    def __init__(self, limit: float) -> None:
        """limit: an overlap above it is too much; 1 lets everything pass."""
        self.limit = limit
        self._runs: list[frozenset[tuple[str, ...]]] = []

    def admit(self, text: str) -> bool:
        """Whether a text is different enough from all that were admitted; then it is remembered."""
        if self.limit >= 1:
            return True
        runs = word_runs(text)
        if any(overlap(runs, other) > self.limit for other in self._runs):
            return False
        self._runs.append(runs)
        return True


def word_runs(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of three neighbouring words, without case. Chinese characters count as words."""
    words = list(_words(text.casefold()))
    if len(words) <= RUN:
        return frozenset({tuple(words)})
    return frozenset(zip(*(islice(words, start, None) for start in range(RUN)), strict=False))


def overlap(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    """Runs in common by runs in either (Jaccard), between 0 and 1."""
    return len(left & right) / len(left | right)


def _words(text: str) -> Iterable[str]:
    for word in text.split():
        if word.isascii():
            yield word
        else:
            yield from word
