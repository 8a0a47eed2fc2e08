"""Intervals and paired tests for figures that are no plain share: a ratio of sums, averaged over parts. Pure functions, seeded.

What is drawn as a whole is a unit: an image with all its questions, because answers about one image are not independent. The interval
is the bootstrap's percentile interval (Efron 1979), widened for few units (the expanded percentile interval of Hesterberg 2015). The
paired test swaps the two models within units at random (approximate randomization, Noreen 1989). Both draw RESAMPLES times by a
generator that is seeded with the units, so that the order of rows changes nothing and the same answers give the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixpo.evaluate.closed_form import Z95, wilson
from mixpo.types import Question

RESAMPLES = 5000
"""Draws of every interval and of every test; the smallest p is 1 / 5,001."""
CELLS = 1 << 22
"""Draws times units that are in memory together."""

Floats = NDArray[np.float64]


class Term(NamedTuple):
    """What one row, or one group of rows, adds to a figure: `top` over `base`, each summed within `part`.

    key: names the row or group, so that two models can be paired. unit: what is drawn as a whole.
    """

    key: str
    unit: str
    part: str
    top: float
    base: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of two models on the same n rows or groups. difference: b minus a; p: two-sided.

    low, high: the 95 % interval of the difference, None where no draw changes it, so that nothing can be said.
    """

    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float


def unit_of(question: Question) -> str:
    """What is drawn as a whole for intervals: the image, with all that is asked about it; the question itself where it has none."""
    return "+".join(image.digest for image in question.images) or question.id


def estimate(terms: Sequence[Term]) -> float:
    """The mean over parts of sum(top) / sum(base); a part whose base is 0 has no value and is left out. NaN where none has one."""
    return float(_values(_table(terms, _units(terms), _parts(terms)).sum(axis=0)[None])[0])


def interval(terms: Sequence[Term], most: float | None) -> tuple[float | None, float | None]:
    """The 95 % interval of `estimate`. most: the largest value that the figure can have, None where there is none.

    Shares of distinct units are exactly binomial and take Wilson's interval; so does a bounded figure that no draw changes. Where
    nothing can be said (one unit, or no bound and no spread) both ends are None.
    """
    units, value = _units(terms), estimate(terms)
    if math.isnan(value):
        return None, None
    if most == 1 and len(units) == len(terms) and len(_parts(terms)) == 1 and all(t.base == 1 and t.top in (0, 1) for t in terms):
        return wilson(sum(term.top for term in terms), len(terms))
    low, high = _ends(_bootstrap(_table(terms, units, _parts(terms)), units), len(units))
    if (low is None or low == high) and most is not None:
        low, high = (most * end for end in wilson(value / most * len(units), len(units)))
    return (None, None) if low == high else (low, high)


def paired(a: Sequence[Term], b: Sequence[Term]) -> Difference | None:
    """Two models on the rows that both have a term for; None where there is none, or where a figure of them has no value."""
    shared = {(term.key, term.part) for term in a} & {(term.key, term.part) for term in b}
    left, right = ([term for term in side if (term.key, term.part) in shared] for side in (a, b))
    unit_by_key = {term.key: term.unit for term in left}
    right = [term._replace(unit=unit_by_key[term.key]) for term in right]
    units, parts = _units(left), _parts(left)
    tables = [_table(side, units, parts) for side in (left, right)]
    values = [float(_values(table.sum(axis=0)[None])[0]) for table in tables] if shared else [math.nan]
    if any(map(math.isnan, values)):
        return None
    drawn = _bootstrap(tables[1], units) - _bootstrap(tables[0], units)
    low, high = _ends(drawn, len(units))
    low, high = (None, None) if low == high else (low, high)
    difference = values[1] - values[0]
    return Difference(
        n=len(left), a=values[0], b=values[1], difference=difference, low=low, high=high, p=_swapped(tables, units, difference)
    )


# --- draws --------------------------------------------------------------------------------------------------------------


def _units(terms: Sequence[Term]) -> list[str]:
    return sorted({term.unit for term in terms})


def _parts(terms: Sequence[Term]) -> list[str]:
    return sorted({term.part for term in terms})


def _table(terms: Sequence[Term], units: Sequence[str], parts: Sequence[str]) -> Floats:
    """Sums by unit: (U, 2P), the tops of all parts before their bases."""
    rows, columns = ({name: number for number, name in enumerate(names)} for names in (units, parts))
    table = np.zeros((len(units), 2 * len(parts)))
    for term in terms:
        table[rows[term.unit], columns[term.part]] += term.top
        table[rows[term.unit], columns[term.part] + len(parts)] += term.base
    return table


def _values(sums: Floats) -> Floats:
    """Figures from sums (B, 2P): the mean of the parts that have a base; NaN where none has."""
    tops, bases = np.split(sums, 2, axis=1)
    there = bases > 0
    ratios = np.divide(tops, bases, out=np.zeros_like(tops), where=there)
    counts = there.sum(axis=1)
    found: Floats = np.divide(ratios.sum(axis=1), counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return found


def _bootstrap(table: Floats, units: Sequence[str]) -> Floats:
    """RESAMPLES figures, each of as many units drawn with replacement."""
    found = []
    for draws, generator in _chunks(units, "bootstrap"):
        picks = generator.integers(0, len(units), size=(draws, len(units)))
        picks += np.arange(draws)[:, None] * len(units)
        weights = np.bincount(picks.ravel(), minlength=draws * len(units)).reshape(draws, len(units))
        found.append(_values(weights @ table))
    return np.concatenate(found)


def _swapped(tables: Sequence[Floats], units: Sequence[str], difference: float) -> float:
    """The share of random swaps within units that give a difference as large; the observed one counts as one of them."""
    a, b = tables
    gap, beyond, drawn = b - a, 0, 0
    limit = abs(difference) * (1 - 1e-9) - 1e-12
    for draws, generator in _chunks(units, "swap"):
        moved = generator.integers(0, 2, size=(draws, len(units))) @ gap
        beyond += int((abs(_values(b.sum(axis=0) - moved) - _values(a.sum(axis=0) + moved)) >= limit).sum())
        drawn += draws
    return (beyond + 1) / (drawn + 1)


def _chunks(units: Sequence[str], purpose: str) -> Iterator[tuple[int, np.random.Generator]]:
    """RESAMPLES in stretches that fit into memory, with the generator that is keyed by the units."""
    key = hashlib.sha256("\n".join([purpose, *units]).encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
    size = max(1, CELLS // max(1, len(units)))
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start), generator


def _ends(drawn: Floats, units: int) -> tuple[float | None, float | None]:
    """The expanded percentile interval: the tails are those of a t distribution over the units. Draws without a value are left out."""
    known = drawn[~np.isnan(drawn)]
    if units < 2 or not len(known):
        return None, None
    tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * _student(units - 1))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _student(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, by the Cornish-Fisher expansion (within 0.1 % from 8 degrees of freedom on)."""
    z, v = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + math.fsum(term / v**power for power, term in enumerate(terms, start=1)))
