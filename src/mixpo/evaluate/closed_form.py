"""Intervals and tests of shares and means of independent questions, in closed form. Pure functions; all intervals are 95 %.

Questions that share an image are not independent: see `mixpo.evaluate.resample`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

EXACT_LIMIT = 1000
"""Up to this many discordant questions McNemar's p is the exact binomial; past it chi-square with continuity correction."""


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) when n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, Z95 * Z95 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The interval touches 0 at share 0 and 1 at share 1 exactly; rounding must not move it off.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean of values from 0 to 1: normal; Wilson's over the values where all are equal, so that there is no spread."""
    n = len(values)
    if n == 0 or min(values) == max(values):
        return wilson(math.fsum(values), n)
    mean = math.fsum(values) / n
    half = Z95 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return max(0.0, mean - half), min(1.0, mean + half)


def difference_interval(only_a: float, only_b: float, n: int) -> tuple[float, float]:
    """Of the difference of two paired shares, (only_b - only_a) / n: Agresti and Min's (2005).

    It is Wald's after adding 1/2 to each cell of the 2 x 2 table, which keeps its coverage when few questions differ.
    """
    total, gain, either = n + 2, only_b - only_a, only_a + only_b + 1
    half = Z95 * math.sqrt(either - gain * gain / total) / total
    return max(-1.0, gain / total - half), min(1.0, gain / total + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p that both are equally often right where they disagree (exact up to EXACT_LIMIT disagreements)."""
    total = only_a + only_b
    if total == 0:
        return 1.0
    if total <= EXACT_LIMIT:
        tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
        return min(1.0, 2 * tail / (1 << total))
    return math.erfc(max(0, abs(only_a - only_b) - 1) / math.sqrt(2 * total))
