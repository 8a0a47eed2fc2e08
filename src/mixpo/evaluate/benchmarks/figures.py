"""The table of a benchmark, and a paired comparison of its published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mixpo.evaluate.benchmarks.base import Benchmark, Figure, Marked
from mixpo.evaluate.benchmarks.metrics import measured
from mixpo.evaluate.resample import Difference, paired


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureDifference(Difference):
    """A published figure of two models, all values in the figure's unit."""

    name: str
    unit: str


def table(benchmark: Benchmark, rows: Sequence[Marked]) -> list[Figure]:
    """All figures of a benchmark from its answered rows, the published one first."""
    return [*(measured(measure, rows) for measure in benchmark.measures), *benchmark.breakdown(rows)]


def differences(benchmark: Benchmark, a: Sequence[Marked], b: Sequence[Marked]) -> list[FigureDifference]:
    """The published figures of two models side by side; those that have no value are left out."""
    found = []
    for measure in benchmark.measures:
        pair = paired(measure.terms(a)[0], measure.terms(b)[0])
        if pair is not None:
            values = ("a", "b", "difference", "low", "high")
            scaled = {name: None if (value := getattr(pair, name)) is None else measure.scale * value for name in values}
            found.append(FigureDifference(name=measure.name, unit=measure.unit, **{**asdict(pair), **scaled}))
    return found
