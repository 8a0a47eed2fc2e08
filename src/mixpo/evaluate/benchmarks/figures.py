"""The table of a benchmark, and a paired comparison of its published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixpo.evaluate.benchmarks.base import Benchmark, Figure, Marked
from mixpo.evaluate.benchmarks.measures import measured
from mixpo.evaluate.resample import paired


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureDifference:
    """A published figure of two models on the n rows (or groups) that count in both. difference: b minus a, in the figure's unit."""

    name: str
    unit: str
    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float


def table(benchmark: Benchmark, rows: Sequence[Marked]) -> list[Figure]:
    """All figures of a benchmark from its answered rows, the published one first."""
    return [*(measured(measure, rows) for measure in benchmark.measures), *benchmark.breakdown(rows)]


def differences(benchmark: Benchmark, a: Sequence[Marked], b: Sequence[Marked]) -> list[FigureDifference]:
    """The published figures of two models side by side; those that have no value are left out."""
    found = []
    for measure in benchmark.measures:
        pair = paired(measure.terms(a)[0], measure.terms(b)[0])
        if pair is not None:
            a_value, b_value, difference = (measure.scale * value for value in (pair.a, pair.b, pair.difference))
            low, high = (None if end is None else measure.scale * end for end in (pair.low, pair.high))
            found.append(
                FigureDifference(
                    name=measure.name,
                    unit=measure.unit,
                    n=pair.n,
                    a=a_value,
                    b=b_value,
                    difference=difference,
                    low=low,
                    high=high,
                    p=pair.p,
                )
            )
    return found
