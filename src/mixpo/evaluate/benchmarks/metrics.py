"""What several benchmarks share to make figures of answered rows: shares, mean judge scores, breakdowns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from mixpo.evaluate.benchmarks.base import Benchmark, Figure, GradedRow, Measure
from mixpo.evaluate.statistics import Difference, Term, cluster_of, estimate, interval, paired


def share_of(name: str, right: Callable[[GradedRow], bool] = lambda row: row.right) -> Measure:
    """The share of rows that are `right`, of all rows asked except those whose judge reply could not be parsed."""

    def terms(rows: Sequence[GradedRow]) -> tuple[list[Term], int]:
        kept = [row for row in rows if not row.unread]
        return [Term(row.question.id, cluster_of(row.question), "", float(right(row)), 1.0) for row in kept], len(rows) - len(kept)

    return Measure(name=name, terms=terms)


ACCURACY = share_of("accuracy")
"""Correct of all rows asked; what has no clear answer is not correct."""

Read = Callable[[str], tuple[float, ...] | None]
"""The scores in a judge's reply."""


def judge_score(
    name: str,
    read: Read,
    top: Callable[[tuple[float, ...]], float] = lambda scores: scores[0],
    base: Callable[[tuple[float, ...]], float] = lambda scores: 1.0,
    *,
    scale: float = 100.0,
    unit: str = "%",
    most: float | None = 1.0,
) -> Measure:
    """The mean of `top` over the rows whose score can be parsed, or sum(top) / sum(base)."""

    def terms(rows: Sequence[GradedRow]) -> tuple[list[Term], int]:
        parsed = [(row.question, read(row.reply)) for row in rows]
        kept = [Term(question.id, cluster_of(question), "", top(scores), base(scores)) for question, scores in parsed if scores is not None]
        return kept, len(rows) - len(kept)

    return Measure(name=name, terms=terms, scale=scale, unit=unit, most=most)


def measured(measure: Measure, rows: Sequence[GradedRow], name: str = "", group: str = "") -> Figure:
    """A measure over rows, with its interval. name: another name, as for one part of a breakdown."""
    terms, excluded = measure.terms(rows)
    low, high = (None if end is None else measure.scale * end for end in interval(terms, measure.most))
    return Figure(
        name=name or measure.name, value=measure.scale * estimate(terms), n=len(terms), low=low, high=high, unit=measure.unit, group=group,
        excluded=excluded,
    )  # fmt: skip


def grouped(
    rows: Sequence[GradedRow], group: str, names_of: Callable[[GradedRow], Iterable[str]], measure: Measure = ACCURACY
) -> list[Figure]:
    """The measure for each name, in alphabetical order; a row counts under each of its names."""
    groups: dict[str, list[GradedRow]] = {}
    for row in rows:
        for name in names_of(row):
            if name:
                groups.setdefault(name, []).append(row)
    return [measured(measure, groups[name], name, group) for name in sorted(groups)]


def by_facts(*keys: str, measure: Measure = ACCURACY) -> Callable[[Sequence[GradedRow]], list[Figure]]:
    """The breakdown of a measure by each of some facts."""

    def named(key: str) -> Callable[[GradedRow], Iterable[str]]:
        return lambda row: (str(row.facts.get(key) or ""),)

    return lambda rows: [figure for key in keys for figure in grouped(rows, key, named(key), measure)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureDifference(Difference):
    """A published figure of two models, all values in the figure's unit."""

    name: str
    unit: str


def table(benchmark: Benchmark, rows: Sequence[GradedRow]) -> list[Figure]:
    """All figures of a benchmark from its answered rows, the published one first."""
    return [*(measured(measure, rows) for measure in benchmark.measures), *benchmark.breakdown(rows)]


def differences(benchmark: Benchmark, a: Sequence[GradedRow], b: Sequence[GradedRow]) -> list[FigureDifference]:
    """The published figures of two models side by side; undefined ones are skipped."""
    rows = []
    for measure in benchmark.measures:
        pair = paired(measure.terms(a)[0], measure.terms(b)[0])
        if pair is not None:
            values = ("a", "b", "difference", "low", "high")
            scaled = {name: None if (value := getattr(pair, name)) is None else measure.scale * value for name in values}
            rows.append(FigureDifference(name=measure.name, unit=measure.unit, **{**asdict(pair), **scaled}))
    return rows
