"""Numbers from saved predictions: accuracy with its interval, breakdowns, and paired comparisons. Pure functions, no files.

What counts: the denominator is every question asked. `malformed` and `undecided` answers are not correct, so an accuracy is
never flattered by answers that could not be read; both are also counted separately, so that the reader sees how much of the
rest is known to be wrong. All intervals are 95 %. Nothing here is random: the same predictions give the same numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mixpo.errors import EvaluateError
from mixpo.evaluate.degenerate import loops
from mixpo.records import Prediction

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

EXACT_LIMIT = 1000
"""Up to this many discordant questions McNemar's p is the exact binomial; past it chi-square with continuity correction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model on one set in one mode. `accuracy` is correct / n; shares follow from the counts.

    cut: answers that ended at the length limit. failed: answers that an engine error prevented. loops: answers that end in a phrase
    repeated over and over. All overlap the outcomes. Where a judge marked the answers, accuracy is the mean mark as a share of the
    best one, over the answers with a mark. unread: answers whose judge could not be read. excluded: those, and failed ones where there
    are marks; they count nowhere.
    domains: the same for the questions of each domain, in alphabetical order, "" for those without one; empty inside a domain, and
    where no question has a domain.
    """

    n: int
    correct: int
    wrong: int
    malformed: int
    undecided: int
    cut: int
    failed: int
    accuracy: float
    low: float
    high: float
    mean_tokens: float
    loops: int = 0
    unread: int = 0
    excluded: int = 0
    domains: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledScore:
    """Mean accuracy of sampled answers: the mean over `n` questions of each question's share of correct samples.

    failed, unread, excluded: answers, as in `Score`.
    """

    n: int
    samples: int
    accuracy: float
    low: float
    high: float
    mean_tokens: float
    failed: int = 0
    unread: int = 0
    excluded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sets of answers to the same questions. `difference` is accuracy of b minus accuracy of a; p is two-sided (McNemar)."""

    n: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p: float


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


def is_judged(rows: Iterable[Prediction]) -> bool:
    """Whether a judge marked these answers. One that only found the short answers did not."""
    return any(row.score is not None or (row.unread and not row.others) for row in rows)


def credit(row: Prediction, judged: bool) -> float | None:
    """What an answer counts: 1 or 0, or the judge's mark as a share of the best. None where a judge could not be read: not a zero."""
    if judged:
        return row.score
    return None if row.unread else float(row.outcome == "correct")


def score(predictions: Iterable[Prediction]) -> Score:
    """Score one answer for each question. Raises EvaluateError when there is none, or two answers to one question."""
    rows = list(by_question(predictions).values())
    domains: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        domains[row.domain].append(row)
    # Rows without a domain are a group of their own, unless no row has one.
    named = {name: _tally(domains[name], {}) for name in sorted(domains)} if any(domains) else {}
    return _tally(rows, named)


def _tally(rows: Sequence[Prediction], domains: Mapping[str, Score]) -> Score:
    outcomes = [row.outcome for row in rows]
    correct, judged = outcomes.count("correct"), is_judged(rows)
    credits = [value for row in rows if (value := credit(row, judged)) is not None]
    accuracy = math.fsum(credits) / len(credits) if credits else 0.0
    low, high = _mean_interval(credits, accuracy) if judged and credits else wilson(correct if credits else 0, len(credits))
    return Score(
        n=len(rows),
        correct=correct,
        wrong=outcomes.count("wrong"),
        malformed=outcomes.count("malformed"),
        undecided=outcomes.count("undecided"),
        cut=sum(row.finish == "length" for row in rows),
        failed=sum(row.finish == "error" for row in rows),
        accuracy=accuracy,
        low=low,
        high=high,
        mean_tokens=sum(row.tokens for row in rows) / len(rows),
        loops=sum(loops(row.text) for row in rows),
        unread=sum(row.unread for row in rows),
        excluded=len(rows) - len(credits),
        domains=domains,
    )


def score_samples(predictions: Iterable[Prediction]) -> SampledScore:
    """Mean accuracy of several sampled answers per question.

    The interval is normal over the questions' means, because samples of one question are not independent; when all means
    are equal (no spread to estimate from) it is Wilson's over the questions.
    """
    shares: dict[str, list[Prediction]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    tokens = failed = unread = 0
    for row in predictions:
        if (row.question, row.index) in seen:
            raise EvaluateError(f"question {row.question}: sample {row.index} is there twice; evaluate again with --force evaluate")
        seen.add((row.question, row.index))
        shares[row.question].append(row)
        tokens += row.tokens
        failed += row.finish == "error"
        unread += row.unread
    if not seen:
        raise EvaluateError("there are no sampled predictions to score; set evaluate.samples and evaluate again")
    judged = is_judged(row for rows in shares.values() for row in rows)
    credits = [[value for row in rows if (value := credit(row, judged)) is not None] for rows in shares.values()]
    means = [sum(values) / len(values) for values in credits if values] or [0.0]
    mean = math.fsum(means) / len(means)
    low, high = _mean_interval(means, mean)
    return SampledScore(
        n=len(means), samples=len(seen), accuracy=mean, low=low, high=high, mean_tokens=tokens / len(seen), failed=failed,
        unread=unread, excluded=len(seen) - sum(map(len, credits)),
    )  # fmt: skip


def _mean_interval(means: Sequence[float], mean: float) -> tuple[float, float]:
    n = len(means)
    if min(means) == max(means):
        return wilson(mean * n, n)
    variance = math.fsum((value - mean) ** 2 for value in means) / (n - 1)
    half = Z95 * math.sqrt(variance / n)
    return max(0.0, mean - half), min(1.0, mean + half)


def comparable(a: Iterable[Prediction], b: Iterable[Prediction]) -> bool:
    """Whether `compare` finds a question that counts on both sides; False where a judge could not be read on any."""
    left, right = list(a), list(b)
    judged = is_judged([*left, *right])
    counted = ({row.question for row in rows if credit(row, judged) is not None} for rows in (left, right))
    return bool(set.intersection(*counted)) or {row.question for row in left} != {row.question for row in right}


def compare(a: Iterable[Prediction], b: Iterable[Prediction]) -> Comparison:
    """Compare two sets of answers question by question. Raises EvaluateError unless both answer exactly the same questions.

    The interval of the difference is Agresti and Min's (2005): Wald after adding 1/2 to each cell of the 2 x 2 table, which
    keeps its coverage when few questions differ.
    """
    left, right = by_question(a), by_question(b)
    if left.keys() != right.keys():
        raise EvaluateError(
            f"the answers are about different questions ({len(left.keys() - right.keys())} only in the first, "
            f"{len(right.keys() - left.keys())} only in the second); evaluate both on the same set"
        )
    if is_judged(left.values()) or is_judged(right.values()):
        return _compare_marks(left, right)
    read = [question for question in left if not left[question].unread and not right[question].unread]
    if not read:
        raise EvaluateError("the judge could be read on no question of both sides; look at its replies in the predictions")
    right_a, right_b = ({question for question in read if side[question].outcome == "correct"} for side in (left, right))
    only_a, only_b = len(right_a - right_b), len(right_b - right_a)
    low, high = _difference_interval(only_a, only_b, len(read))
    difference = (only_b - only_a) / len(read)
    return Comparison(n=len(read), only_a=only_a, only_b=only_b, difference=difference, low=low, high=high, p=mcnemar(only_a, only_b))


def _compare_marks(left: Mapping[str, Prediction], right: Mapping[str, Prediction]) -> Comparison:
    """Paired comparison of judge's marks on the questions that both have one for; interval and p are normal."""
    marks = [(left[question].score, right[question].score) for question in left]
    differences = [b - a for a, b in marks if a is not None and b is not None]
    if not differences:
        raise EvaluateError("no question has a judge's mark on both sides; look at the judge's replies in the predictions")
    n, mean = len(differences), math.fsum(differences) / len(differences)
    spread = math.fsum((value - mean) ** 2 for value in differences) / (n - 1) / n if n > 1 else 0.0
    half = Z95 * math.sqrt(spread)
    p = math.erfc(abs(mean) / math.sqrt(2 * spread)) if spread else float(mean == 0)
    only_a, only_b = sum(value < 0 for value in differences), sum(value > 0 for value in differences)
    return Comparison(n=n, only_a=only_a, only_b=only_b, difference=mean, low=mean - half, high=mean + half, p=p if n > 1 else 1.0)


def _difference_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
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


def by_question(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """One answer for each question. Raises EvaluateError when there is none, or two answers to one question."""
    rows: dict[str, Prediction] = {}
    for row in predictions:
        if row.question in rows:
            raise EvaluateError(f"question {row.question}: answered twice in mode {row.mode!r}; evaluate again with --force evaluate")
        rows[row.question] = row
    if not rows:
        raise EvaluateError("there are no predictions to score; evaluate first")
    return rows
