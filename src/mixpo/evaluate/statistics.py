"""Confidence intervals and paired tests of figures: closed form for shares of independent questions, else resampling.

Pure functions. Means over several runs of the same questions have a closed form too.

All intervals are 95 %. Answers about one image are not independent, so resampling draws clusters: an image with all its questions. The
interval is the bootstrap's percentile interval (Efron 1979), expanded for few clusters (Hesterberg 2015); the paired test is approximate
randomization, which swaps the two models within clusters (Noreen 1989). Both draw RESAMPLES times from a generator seeded with the
clusters: the same answers give the same numbers, whatever their order. Quantiles and tails are SciPy's, imported where they are used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixpo.types import Question

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
RESAMPLES = 5000
"""Resamples of every interval and every test; the smallest p is 1 / 5,001."""
CELLS = 1 << 22
"""Resamples times clusters that are in memory together."""

Floats = NDArray[np.float64]


# --- closed form --------------------------------------------------------------------------------------------------------


def student_t(freedom: float) -> float:
    """Two-sided 95 % point of Student's t with `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); `correct` may be fractional. (0, 1) when n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, inflation = correct / n, Z95 * Z95 / n
    centre = (share + inflation / 2) / (1 + inflation)
    half = Z95 * math.sqrt(share * (1 - share) / n + inflation / (4 * n)) / (1 + inflation)
    # The interval touches 0 at share 0 and 1 at share 1 exactly; rounding must not move it off.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean of values in [0, 1]; Wilson's where all are equal, so that the variance is 0."""
    n = len(values)
    if n == 0 or min(values) == max(values):
        return wilson(math.fsum(values), n)
    mean = math.fsum(values) / n
    half = student_t(n - 1) * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return max(0.0, mean - half), min(1.0, mean + half)


def difference_interval(only_a: float, only_b: float, n: int) -> tuple[float, float]:
    """Interval of the difference of two paired shares, (only_b - only_a) / n (Agresti and Min 2005).

    Wald's after adding 1/2 to each cell of the 2 x 2 table, which keeps its coverage with few discordant questions.
    """
    total, gain, either = n + 2, only_b - only_a, only_a + only_b + 1
    half = Z95 * math.sqrt(either - gain * gain / total) / total
    return max(-1.0, gain / total - half), min(1.0, gain / total + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test. only_a, only_b: discordant questions, which only one of the two models got right."""
    from scipy.special import bdtr

    total = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), total, 0.5))) if total else 1.0


# --- several runs of the same questions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossedMean:
    """A mean over runs and questions. error: its standard error; freedom: degrees of freedom of low, high and p.

    p: two-sided, of the mean being 0. over_runs: whether the interval covers other runs (seeds) too, which takes at least two.
    """

    mean: float
    error: float
    freedom: float
    low: float
    high: float
    p: float
    over_runs: bool


def crossed_mean(values: Floats, clusters: Sequence[str], *, difference: bool = False) -> CrossedMean:
    """The mean of values (S runs, Q questions), for other runs and other questions: both are random, and every run has every question.

    The variance is that of a crossed two-way layout, V = V_runs + V_clusters - V_residual, and never less than its larger part; the
    degrees of freedom are Satterthwaite's (1946). Of one run, V = V_clusters. clusters: of each question (`cluster_of`).
    difference: the values are differences of shares, in [-1, 1]; otherwise shares. Where no value differs, the interval is that of as many
    independent questions as there are clusters, and p that of the sign test.
    """
    runs, questions = values.shape
    assert values.size
    mean = float(values.mean())
    number = np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(number.max()) + 1
    deviations = values - mean
    sums = np.stack([np.bincount(number, weights=row, minlength=count) for row in deviations])  # (S, C)
    of_clusters, of_runs = sums.mean(axis=0), sums.sum(axis=1)
    sizes = np.bincount(number, minlength=count)
    residual = sums - of_clusters - of_runs[:, None] * sizes / questions
    parts = []  # (variance of the mean, its degrees of freedom)
    if count > 1:
        parts.append((float((of_clusters**2).sum()) * count / (count - 1) / questions**2, count - 1))
    if runs > 1:
        parts.append((float((of_runs**2).sum()) / (runs * (runs - 1) * questions**2), runs - 1))
    both = len(parts) == 2
    if both:
        shared = float((residual**2).sum()) * count / (count - 1) / (runs * (runs - 1) * questions**2)
        parts.append((-shared, (count - 1) * (runs - 1)))
    total = sum(variance for variance, _ in parts)
    if both and total < (largest := max(parts[:2]))[0]:
        total, parts = largest[0], [largest]
    least = -1.0 if difference else 0.0
    if total <= 1e-18:  # no value differs from another by more than rounding
        ends = difference_interval(max(0.0, -mean) * count, max(0.0, mean) * count, count) if difference else wilson(mean * count, count)
        p = min(1.0, 2.0 ** (1 - count)) if mean else 1.0
        return CrossedMean(mean=mean, error=0.0, freedom=math.inf, low=ends[0], high=ends[1], p=p, over_runs=runs > 1)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    error = math.sqrt(total)
    half = student_t(freedom) * error
    return CrossedMean(
        mean=mean,
        error=error,
        freedom=freedom,
        low=max(least, mean - half),
        high=min(1.0, mean + half),
        p=_tails(mean / error, freedom),
        over_runs=runs > 1,
    )


def _tails(t: float, freedom: float) -> float:
    """Two-sided p of a t value."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(t)))


def holm(ps: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted so that the chance of any false one is bounded (Holm 1979); in the given order."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[number]))
        adjusted[number] = least
    return adjusted


# --- resampling ---------------------------------------------------------------------------------------------------------


class Term(NamedTuple):
    """What one row, or one group of rows, adds to a figure: `top` over `base`, each summed within `part`.

    key: names the row or group, so that two models can be paired. cluster: what is resampled as a whole.
    """

    key: str
    cluster: str
    part: str
    top: float
    base: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of two models on the same n rows or groups. difference: b minus a; p: two-sided.

    low, high: the 95 % interval of the difference, None where no resample changes it.
    """

    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float


def cluster_of(question: Question) -> str:
    """The cluster of a question: its images, with all that is asked about them; the question itself where it has none."""
    return "+".join(image.digest for image in question.images) or question.id


def estimate(terms: Sequence[Term]) -> float:
    """The mean over parts of sum(top) / sum(base); a part whose base is 0 has no value and is skipped. NaN where none has one."""
    return float(_values(_table(terms, _clusters(terms), _parts(terms)).sum(axis=0)[None])[0])


def interval(terms: Sequence[Term], most: float | None) -> tuple[float | None, float | None]:
    """The 95 % interval of `estimate`. most: the largest value that the figure can have, None where there is none.

    Shares over distinct clusters are binomial and take Wilson's interval; so does a bounded figure that no resample changes. Both ends
    are None where there is no interval: with one cluster, or with neither a bound nor any variance.
    """
    clusters, value = _clusters(terms), estimate(terms)
    if math.isnan(value):
        return None, None
    if most == 1 and len(clusters) == len(terms) and len(_parts(terms)) == 1 and all(t.base == 1 and t.top in (0, 1) for t in terms):
        return wilson(sum(term.top for term in terms), len(terms))
    low, high = _ends(_bootstrap(_table(terms, clusters, _parts(terms)), clusters), len(clusters))
    if (low is None or low == high) and most is not None:
        low, high = (most * end for end in wilson(value / most * len(clusters), len(clusters)))
    return (None, None) if low == high else (low, high)


def paired(a: Sequence[Term], b: Sequence[Term]) -> Difference | None:
    """Two models on the rows that both have a term for; None where there is none, or where a figure of them has no value."""
    shared = {(term.key, term.part) for term in a} & {(term.key, term.part) for term in b}
    left, right = ([term for term in side if (term.key, term.part) in shared] for side in (a, b))
    cluster_by_key = {term.key: term.cluster for term in left}
    right = [term._replace(cluster=cluster_by_key[term.key]) for term in right]
    clusters, parts = _clusters(left), _parts(left)
    tables = [_table(side, clusters, parts) for side in (left, right)]
    values = [float(_values(table.sum(axis=0)[None])[0]) for table in tables] if shared else [math.nan]
    if any(map(math.isnan, values)):
        return None
    drawn = _bootstrap(tables[1], clusters) - _bootstrap(tables[0], clusters)
    low, high = _ends(drawn, len(clusters))
    low, high = (None, None) if low == high else (low, high)
    difference = values[1] - values[0]
    return Difference(
        n=len(left), a=values[0], b=values[1], difference=difference, low=low, high=high, p=_swapped(tables, clusters, difference)
    )


def _clusters(terms: Sequence[Term]) -> list[str]:
    return sorted({term.cluster for term in terms})


def _parts(terms: Sequence[Term]) -> list[str]:
    return sorted({term.part for term in terms})


def _table(terms: Sequence[Term], clusters: Sequence[str], parts: Sequence[str]) -> Floats:
    """Sums by cluster: (C, 2P), the tops of all parts before their bases."""
    rows, columns = ({name: number for number, name in enumerate(names)} for names in (clusters, parts))
    table = np.zeros((len(clusters), 2 * len(parts)))
    for term in terms:
        table[rows[term.cluster], columns[term.part]] += term.top
        table[rows[term.cluster], columns[term.part] + len(parts)] += term.base
    return table


def _values(sums: Floats) -> Floats:
    """Figures from sums (B, 2P): the mean of the parts that have a base; NaN where none has."""
    tops, bases = np.split(sums, 2, axis=1)
    there = bases > 0
    ratios = np.divide(tops, bases, out=np.zeros_like(tops), where=there)
    counts = there.sum(axis=1)
    figures: Floats = np.divide(ratios.sum(axis=1), counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return figures


def _bootstrap(table: Floats, clusters: Sequence[str]) -> Floats:
    """RESAMPLES figures, each over as many clusters drawn with replacement."""
    in_memory = RESAMPLES * len(clusters) <= CELLS
    return np.concatenate([_values(weights @ table) for weights in (_few_weights(tuple(clusters)) if in_memory else _weights(clusters))])


@lru_cache(maxsize=2)
def _few_weights(clusters: tuple[str, ...]) -> list[Floats]:
    """`_weights`, drawn once for the figures of one set."""
    return list(_weights(clusters))


def _weights(clusters: Sequence[str]) -> Iterator[Floats]:
    """How often each draw takes each cluster: (draws, C), in chunks."""
    for draws, generator in _chunks(clusters, "bootstrap"):
        picks = generator.integers(0, len(clusters), size=(draws, len(clusters)))
        picks += np.arange(draws)[:, None] * len(clusters)
        yield np.bincount(picks.ravel(), minlength=draws * len(clusters)).reshape(draws, len(clusters)).astype(np.float64)


def _swapped(tables: Sequence[Floats], clusters: Sequence[str], difference: float) -> float:
    """Share of random swaps within clusters with a difference at least as large; the observed one counts as one of them."""
    a, b = tables
    gap, beyond, drawn = b - a, 0, 0
    limit = abs(difference) * (1 - 1e-9) - 1e-12
    for draws, generator in _chunks(clusters, "swap"):
        moved = generator.integers(0, 2, size=(draws, len(clusters))) @ gap
        beyond += int((abs(_values(b.sum(axis=0) - moved) - _values(a.sum(axis=0) + moved)) >= limit).sum())
        drawn += draws
    return (beyond + 1) / (drawn + 1)


def _chunks(clusters: Sequence[str], purpose: str) -> Iterator[tuple[int, np.random.Generator]]:
    """RESAMPLES in chunks that fit into memory, with the generator that is keyed by the clusters."""
    key = hashlib.sha256("\n".join([purpose, *clusters]).encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
    size = max(1, CELLS // max(1, len(clusters)))
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start), generator


def _ends(drawn: Floats, clusters: int) -> tuple[float | None, float | None]:
    """The expanded percentile interval, with the tails of a t distribution over the clusters. Resamples without a value are skipped."""
    from scipy.special import ndtr

    known = drawn[~np.isnan(drawn)]
    if clusters < 2 or not len(known):
        return None, None
    tail = float(ndtr(-math.sqrt(clusters / (clusters - 1)) * student_t(clusters - 1)))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
