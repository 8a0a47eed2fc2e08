"""Means over seeds and questions against numbers by hand; and Holm's adjustment."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from mixpo.evaluate.statistics import crossed_mean, difference_interval, holm, wilson


def test_two_seeds_three_questions_by_hand() -> None:
    # Deviations from the mean 1/2: rows [1/2, -1/2, 1/2] and [-1/2, -1/2, 1/2].
    result = crossed_mean(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), ["a", "b", "c"])
    assert result.mean == pytest.approx(0.5)
    # Means of the questions deviate by 0, -1/2, 1/2: V = (1/4 + 1/4) / (3 * 2) = 1/12.
    # Means of the seeds deviate by 1/6, -1/6: V = (2/36) / (2 * 1) = 1/36.
    # Residuals: [1/3, -1/6, -1/6] and the same negative: squares sum to 2 * (1/9 + 1/36 + 1/36) = 1/3; V = 1/3 / (2 * 1 * 2 * 3) = 1/36.
    variance = 1 / 12 + 1 / 36 - 1 / 36
    freedom = variance**2 / ((1 / 12) ** 2 / 2 + (1 / 36) ** 2 / 1 + (1 / 36) ** 2 / 2)
    assert result.error == pytest.approx(math.sqrt(variance))
    assert result.freedom == pytest.approx(freedom)
    assert result.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(variance), freedom))
    assert (result.low, result.high) == (0.0, 1.0)  # half-width above 1/2: cut to the range of shares
    assert result.over_runs


def test_one_seed_is_a_paired_t_test() -> None:
    gains = np.array([[1.0, 0.0, 0.0, 1.0, -1.0, 1.0, 0.0, 1.0]])
    result = crossed_mean(gains, [*"abcdefgh"], difference=True)
    expected = stats.ttest_1samp(gains[0], 0.0)
    assert result.p == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx(expected.confidence_interval(0.95))
    assert not result.over_runs


def test_equal_questions_leave_the_seeds() -> None:
    values = np.repeat([[0.2], [0.4], [0.3]], 50, axis=1)  # only seeds differ
    result = crossed_mean(values, [str(number) for number in range(50)])
    expected = stats.ttest_1samp([0.2, 0.4, 0.3], 0.0)
    assert (result.low, result.high) == pytest.approx(expected.confidence_interval(0.95))
    assert result.freedom == pytest.approx(2)


def test_the_variance_is_never_less_than_its_larger_part() -> None:
    # Seeds and questions cancel: all means equal, everything is residual.
    result = crossed_mean(np.array([[1.0, 0.0], [0.0, 1.0]]), ["a", "b"])
    assert (result.mean, result.error) == (0.5, 0.0)
    assert (result.low, result.high) == wilson(1, 2)


def test_clusters_count_as_one() -> None:
    """Twice the same questions about the same images know nothing more."""
    values = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    once = crossed_mean(values, [*"abcd"])
    twice = crossed_mean(np.hstack([values, values]), [*"abcdabcd"])
    apart = crossed_mean(np.hstack([values, values]), [*"abcdefgh"])
    assert twice.error == pytest.approx(once.error)
    assert apart.error < once.error


def test_no_difference_at_all() -> None:
    same = crossed_mean(np.zeros((3, 5)), [*"abcde"], difference=True)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert (same.low, same.high) == difference_interval(0, 0, 5)
    better = crossed_mean(np.ones((3, 5)), [*"abcde"], difference=True)
    assert (better.mean, better.p) == (1.0, 2 / 2**5)
    alone = crossed_mean(np.ones((1, 1)), ["a"], difference=True)
    assert alone.p == 1.0


def test_the_interval_covers_what_it_says() -> None:
    """Seeds, questions and noise drawn again and again: the interval of the mean holds the truth about 95 times in 100."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        values = 0.5 + 0.03 * generator.normal(size=(4, 1)) + 0.2 * generator.normal(size=(1, 60)) + 0.1 * generator.normal(size=(4, 60))
        result = crossed_mean(values, [str(number) for number in range(60)])
        held += result.low <= 0.5 <= result.high
    assert 0.92 <= held / 400 <= 0.99


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    raw = [0.001, 0.2, 0.02, 0.02]
    adjusted = holm(raw)
    assert all(a >= p for a, p in zip(adjusted, raw, strict=True))
    assert all(a <= b for a, b in pairwise(sorted(adjusted)))
