"""Intervals and paired tests: against SciPy, published tables and slow loops; coverage and level by simulation; what cannot be said."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixpo.evaluate.statistics import Term, difference_interval, estimate, interval, mcnemar, mean_interval, paired, student_t, wilson


def test_wilson_by_hand() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    expected = stats.binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_equals_the_binomial_test(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(1, 4) == 2 * (1 + 5) / 32
    assert mcnemar(3, 3) == 1.0


def test_many_disagreements_stay_exact() -> None:
    assert mcnemar(4600, 5100) == pytest.approx(stats.binomtest(4600, 9700).pvalue, rel=1e-9)
    assert mcnemar(0, 100_000) == 0.0


@pytest.mark.parametrize(
    ("freedom", "point"),
    # Student (1908) as every table prints it: two-sided 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (8, 2.306), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_student_t_as_printed_in_tables(freedom: int, point: float) -> None:
    assert student_t(freedom) == pytest.approx(point, abs=5e-4)
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40).filter(lambda values: np.var(values) > 1e-9))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((max(0.0, low), min(1.0, high)), abs=1e-9)


def test_two_clusters_have_the_widest_tails() -> None:
    """With one degree of freedom the tails are those of the smallest and the largest resample."""
    assert interval([Term("a", "a", "", 1.0, 2.0), Term("b", "b", "", 3.0, 4.0)], None) == (0.5, 0.75)


def test_difference_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    n, shares = 150, (0.05, 0.12, 0.83)
    draws = rng.multinomial(n, shares, size=4000)
    inside = [low <= 0.07 <= high for low, high in (difference_interval(int(a), int(b), n) for a, b, _ in draws)]
    assert 0.935 < np.mean(inside) < 0.975


def means(values: Sequence[float], cluster: str = "u") -> list[Term]:
    return [Term(f"k{n}", f"{cluster}{n}", "", value, 1.0) for n, value in enumerate(values)]


def answers(rng: random.Random, images: int, skill: float = 1.0, each: int = 6) -> list[tuple[str, str, bool, bool]]:
    """POPE in small: (image, category, there, said); answers about one image share its difficulty."""
    rows = []
    for image in range(images):
        hard = rng.gauss(0, 1)
        for category in ("adversarial", "popular", "random"):
            for number in range(each):
                right = rng.random() < 1 / (1 + math.exp(-(skill + hard)))
                rows.append((f"i{image}", category, number % 2 == 0, (number % 2 == 0) == right))
    return rows


def f1_terms(rows: Sequence[tuple[str, str, bool, bool]]) -> list[Term]:
    return [Term(f"{n}", image, part, 2.0 * (there and said), float(there) + said) for n, (image, part, there, said) in enumerate(rows)]


def slow_f1(rows: Sequence[tuple[str, str, bool, bool]]) -> float:
    """The mean of three F1 from precision and recall."""
    found = []
    for category in ("adversarial", "popular", "random"):
        part = [row for row in rows if row[1] == category]
        hits = sum(there and said for _, _, there, said in part)
        precision, recall = hits / sum(said for *_, said in part), hits / sum(there for *_, there, _ in part)
        found.append(2 * precision * recall / (precision + recall))
    return sum(found) / 3


def test_the_mean_of_three_f1_against_a_slow_bootstrap_over_images() -> None:
    rows = answers(random.Random(4), 80)
    terms = f1_terms(rows)
    assert estimate(terms) == pytest.approx(slow_f1(rows))
    by_image = [[row for row in rows if row[0] == f"i{image}"] for image in range(80)]
    rng = random.Random(7)
    drawn = [slow_f1([row for image in rng.choices(by_image, k=80) for row in image]) for _ in range(1500)]
    low, high = interval(terms, 1.0)
    wide = stats.norm.cdf(-math.sqrt(80 / 79) * stats.t.ppf(0.975, 79))  # Hesterberg's tails
    # Both ends have a standard error of about 0.06 of the width by the number of draws.
    width = high - low  # type: ignore[operator]
    assert [low, high] == pytest.approx(np.quantile(drawn, [wide, 1 - wide]), abs=0.15 * width)


def test_a_ratio_of_means_against_scipy() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(5, 11, 60).astype(float)
    top = np.clip(base + rng.integers(-4, 2, 60), 1, 10).astype(float)
    terms = [Term(str(n), str(n), "", t, b) for n, (t, b) in enumerate(zip(top, base, strict=True))]
    assert estimate(terms) == pytest.approx(top.sum() / base.sum())
    wide = 2 * stats.norm.cdf(-math.sqrt(60 / 59) * stats.t.ppf(0.975, 59))
    theirs = stats.bootstrap(
        (top, base), lambda t, b, axis: t.sum(axis=axis) / b.sum(axis=axis), paired=True, vectorized=True, n_resamples=20_000,
        confidence_level=1 - wide, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = interval(terms, None)
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.12 * (theirs.high - theirs.low))


def test_a_mean_of_marks_is_close_to_students_interval() -> None:
    marks = np.random.default_rng(5).choice([0.0, 0.3, 0.5, 1.0], 218)
    low, high = stats.t.interval(0.95, 217, loc=marks.mean(), scale=stats.sem(marks))
    assert interval(means(list(marks)), 1.0) == pytest.approx([low, high], abs=0.1 * (high - low))


def test_shares_of_distinct_units_take_wilsons_interval() -> None:
    assert interval(means([1.0, 1.0, 0.0, 1.0]), 1.0) == wilson(3, 4)
    shared = [Term(f"k{n}", f"u{n // 2}", "", value, 1.0) for n, value in enumerate([1.0, 1.0, 0.0, 1.0])]
    assert interval(shared, 1.0) != wilson(3, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "each"), [(24, 2), (40, 6)])
def test_the_interval_covers_the_truth_where_rows_as_units_do_not(images: int, each: int) -> None:
    """300 simulated benchmarks whose true figure is known from a very large one."""
    truth = slow_f1(answers(random.Random(0), 60_000 // each, each=each))
    covered = naive = 0
    for seed in range(300):
        rows = answers(random.Random(f"c{seed}"), images, each=each)
        low, high = interval(f1_terms(rows), 1.0)
        covered += low <= truth <= high  # type: ignore[operator]
        low, high = interval([term._replace(cluster=term.key) for term in f1_terms(rows)], 1.0)
        naive += low <= truth <= high  # type: ignore[operator]
    # The standard error of a coverage of 95 % is 1.3 points.
    assert 0.91 <= covered / 300 <= 0.99
    assert naive < covered - (30 if each > 2 else 0)


@pytest.mark.slow
def test_the_paired_test_keeps_its_level() -> None:
    """Models of equal skill on the same images: p below 0.05 in about 5 % of 400 simulations; of unequal skill: in most."""
    false, true = 0, 0
    for seed in range(400):
        rng = random.Random(f"p{seed}")
        images = [rng.gauss(0, 1) for _ in range(30)]
        sides = []
        for skill in (1.0, 1.0, 2.0):
            rows = [
                (f"i{n}", part, k % 2 == 0, (k % 2 == 0) == (rng.random() < 1 / (1 + math.exp(-(skill + hard)))))
                for n, hard in enumerate(images)
                for part in ("adversarial", "popular", "random")
                for k in range(4)
            ]
            sides.append(f1_terms(rows))
        false += paired(sides[0], sides[1]).p < 0.05  # type: ignore[union-attr]
        true += paired(sides[0], sides[2]).p < 0.05  # type: ignore[union-attr]
    assert 0.025 <= false / 400 <= 0.08
    assert true / 400 > 0.7


def test_the_paired_test_against_scipy() -> None:
    rng = np.random.default_rng(8)
    a = rng.choice([0.0, 0.5, 1.0], 40)
    b = np.clip(a + rng.choice([-0.5, 0.0, 0.5], 40, p=[0.15, 0.5, 0.35]), 0, 1)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    ours = paired(means(list(a)), means(list(b)))
    assert ours is not None
    assert ours.difference == pytest.approx(float(b.mean() - a.mean()))
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02)
    low, high = stats.t.interval(0.95, 39, loc=(b - a).mean(), scale=stats.sem(b - a))
    assert [ours.low, ours.high] == pytest.approx([low, high], abs=0.12 * (high - low))


def test_the_order_of_rows_changes_nothing() -> None:
    terms = f1_terms(answers(random.Random(1), 20))
    turned = random.Random(2).sample(terms, len(terms))
    assert interval(terms, 1.0) == interval(turned, 1.0)
    other = f1_terms(answers(random.Random(5), 20))
    assert paired(terms, other) == paired(turned, other)


def test_a_copy_of_every_row_narrows_nothing() -> None:
    """Questions asked twice about one image are drawn with it."""
    terms = f1_terms(answers(random.Random(1), 20))
    twice = [*terms, *(term._replace(key=f"{term.key} again") for term in terms)]
    assert interval(twice, 1.0) == pytest.approx(interval(terms, 1.0))


def test_what_cannot_be_said() -> None:
    assert math.isnan(estimate([]))
    assert interval([], 1.0) == (None, None)
    assert interval([Term("k", "u", "", 3.0, 4.0)], None) == (None, None)
    assert interval([Term(f"k{n}", f"u{n}", "", 8.0, 8.0) for n in range(9)], None) == (None, None)  # no bound, no spread
    perfect = [Term(f"k{n}", f"u{n}", "", 2.0, 2.0) for n in range(9)]
    assert interval(perfect, 1.0) == wilson(9, 9)  # never 100 to 100
    assert estimate([Term("k", "u", "a", 0.0, 0.0), Term("k", "u", "b", 1.0, 2.0)]) == 0.5  # a part without a base has no value
    assert paired([], []) is None
    assert paired(means([1.0]), means([1.0], "v")) is not None


def test_a_comparison_takes_the_rows_that_both_have() -> None:
    a, b = means([1.0, 0.0, 1.0]), means([1.0, 1.0])
    found = paired(a, b)
    assert found is not None
    assert (found.n, found.a, found.b, found.difference) == (2, 0.5, 1.0, 0.5)
    same = paired(a, a)
    assert same is not None
    assert (same.difference, same.low, same.high, same.p) == (0.0, None, None, 1.0)
    # Three equal gains are no proof: one in eight ways to swap them looks like that, and one in eight the other way round.
    gains = paired(means([0.0] * 3), means([1.0] * 3))
    assert gains is not None
    assert gains.p == pytest.approx(0.25, abs=0.03)
