"""Summaries and histograms that are filled value by value, with memory that does not grow with the values."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

BINS = 40
"""Bins of a histogram of lengths."""

LENGTH_WIDTH = 2
"""Width in tokens of those bins at first; it doubles until the longest answer fits."""

RATIO_EDGES = tuple(step / 10 for step in range(31))
"""Edges of the bins of tokens chosen / tokens rejected; the last bin also counts all above."""

SHARE_EDGES = tuple(step / 10 for step in range(11))
"""Edges of the bins of the shared beginning."""


@dataclass
class Summary:
    """Number, mean and largest of some values that are not negative."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, value: float, number: int = 1) -> None:
        """Count a value `number` times."""
        self.count += number
        self.total += value * number
        self.largest = max(self.largest, value)

    @property
    def mean(self) -> float | None:
        """None without values."""
        return share(self.total, self.count)


@dataclass
class Lengths:
    """A histogram of equal bins from 0 that covers whatever comes: when a value lies beyond, neighbouring bins are joined.

    The result does not depend on the order of the values.
    """

    width: int = LENGTH_WIDTH
    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    summary: Summary = field(default_factory=Summary)

    def add(self, length: int, number: int = 1) -> None:
        """Count a length `number` times."""
        while length >= self.width * BINS:
            self.widen()
        self.counts[length // self.width] += number
        self.summary.add(length, number)

    def widen(self) -> None:
        """Join every two bins."""
        self.counts = [sum(self.counts[i : i + 2]) for i in range(0, BINS, 2)] + [0] * (BINS // 2)
        self.width *= 2


@dataclass
class Fixed:
    """A histogram over given edges; values beyond the last edge are counted in the last bin."""

    edges: tuple[float, ...]
    counts: list[int] = field(init=False)
    summary: Summary = field(default_factory=Summary)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) - 1)

    def add(self, value: float, number: int = 1) -> None:
        """Count a value, at least the first edge, `number` times."""
        self.counts[min(bisect.bisect_right(self.edges, value), len(self.counts)) - 1] += number
        self.summary.add(value, number)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `mean` is null without values."""
        return {"edges": list(self.edges), "counts": list(self.counts), "mean": self.summary.mean, "max": self.summary.largest}


def share(part: float, whole: float) -> float | None:
    """A share, or None of nothing."""
    return part / whole if whole else None
