"""Numbers from saved predictions: accuracy with its interval, breakdowns, and paired comparisons. Pure functions, no files.

What counts: the denominator is every question asked. `malformed` and `undecided` answers are not correct, so an accuracy is
never flattered by answers that could not be read; both are also counted separately, so that the reader sees how much of the
rest is known to be wrong. All intervals are 95 %: in closed form for right and wrong where no two questions share an image, else by
drawing images with all their questions. The same predictions give the same numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from mixpo.errors import EvaluateError
from mixpo.evaluate.statistics import Term, difference_interval, interval, mcnemar, mean_interval, paired, wilson
from mixpo.records import Prediction

LONGEST_CYCLE = 64
"""Maximum number of words of a phrase that counts as a repetition."""
TAIL = 600
"""Only the last words are checked: a loop does not end by itself."""
SHORTEST_LOOP = 12
"""Fewer repeated words than this are a list or a table."""
SHORTEST_CHARACTERS = 48
"""Fewer repeated characters than this within a word are a number or a line."""

UNREADABLE = (
    "no question counts on both sides, because the judge's replies could not be read or the answers never came; "
    "`mixpo retry` asks for them again"
)

Clusters = Mapping[str, str]
"""By question id, its cluster (`mixpo.evaluate.statistics.cluster_of`); a question that is not named is one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model on one set in one mode. `accuracy` is correct / n; shares follow from the counts.

    cut: answers that ended at the length limit. failed: answers that an engine error prevented. loops: answers that end in a phrase
    repeated over and over. All overlap the outcomes. Where a judge graded the answers, accuracy is the mean score as a share of the
    maximum, over the answers with a score. unread: answers whose judge could not be read. excluded: those, and failed ones where there
    are scores; they count nowhere. no_answer: the share of received responses without a final answer that can be parsed, None where a
    judge grades whole responses.
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
    no_answer: float | None = None
    loops: int = 0
    unread: int = 0
    excluded: int = 0
    domains: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sets of answers to the same questions. `difference` is accuracy of b minus accuracy of a; p is two-sided."""

    n: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p: float


def is_judged(rows: Iterable[Prediction]) -> bool:
    """Whether a judge graded these answers (one that only extracted short answers did not)."""
    return any(row.score is not None or (row.unread and not row.others) for row in rows)


def credit(row: Prediction, judged: bool) -> float | None:
    """What an answer counts: 1 or 0, or the judge's score as a share of the maximum. None where a judge could not be read: not a zero."""
    if judged:
        return row.score
    return None if row.unread else float(row.outcome == "correct")


def score(predictions: Iterable[Prediction], clusters: Clusters = MappingProxyType({})) -> Score:
    """Score one answer for each question. Raises EvaluateError when there is none, or two answers to one question."""
    rows = list(by_question(predictions).values())
    domains: dict[str, list[Prediction]] = defaultdict(list)
    for row in rows:
        domains[row.domain].append(row)
    # Rows without a domain are a group of their own, unless no row has one.
    named = {name: _tally(domains[name], clusters, {}) for name in sorted(domains)} if any(domains) else {}
    return _tally(rows, clusters, named)


def _tally(rows: Sequence[Prediction], clusters: Clusters, domains: Mapping[str, Score]) -> Score:
    outcomes = [row.outcome for row in rows]
    judged = is_judged(rows)
    credits = {row.question: value for row in rows if (value := credit(row, judged)) is not None}
    plain = not judged and _are_distinct(credits, clusters)
    low, high = wilson(math.fsum(credits.values()), len(credits)) if plain else _drawn(credits, clusters)
    return Score(
        n=len(rows),
        correct=outcomes.count("correct"),
        wrong=outcomes.count("wrong"),
        malformed=outcomes.count("malformed"),
        undecided=outcomes.count("undecided"),
        cut=sum(row.finish == "length" for row in rows),
        failed=sum(row.finish == "error" for row in rows),
        accuracy=math.fsum(credits.values()) / len(credits) if credits else 0.0,
        low=low,
        high=high,
        mean_tokens=sum(row.tokens for row in rows) / len(rows),
        no_answer=no_answer_share(rows),
        loops=sum(loops(row.text) for row in rows),
        unread=sum(row.unread for row in rows),
        excluded=len(rows) - len(credits),
        domains=domains,
    )


def _drawn(credits: Mapping[str, float], clusters: Clusters) -> tuple[float, float]:
    """The interval of the mean of what questions count, by resampling clusters."""
    low, high = interval(_terms(credits, clusters), 1.0) if credits else wilson(0, 0)
    # A bounded mean always has one.
    assert low is not None
    assert high is not None
    return low, high


def _are_distinct(questions: Collection[str], clusters: Clusters) -> bool:
    return len({clusters.get(question, question) for question in questions}) == len(questions)


def _terms(credits: Mapping[str, float], clusters: Clusters) -> list[Term]:
    return [Term(question, clusters.get(question, question), "", value, 1.0) for question, value in credits.items()]


def mean_of(values: Mapping[str, float], clusters: Clusters) -> tuple[float, float, float]:
    """The mean of one value in [0, 1] per question, and its interval: Student's t, or the bootstrap where questions share images."""
    low, high = mean_interval(list(values.values())) if _are_distinct(values, clusters) else _drawn(values, clusters)
    return math.fsum(values.values()) / len(values) if values else 0.0, low, high


def no_answer_share(rows: Iterable[Prediction]) -> float | None:
    """The share of received responses without a final answer that can be parsed; None where a judge grades whole responses."""
    received = [row for row in rows if row.finish != "error"]
    if is_judged(received):
        return None
    return sum(row.outcome == "malformed" for row in received) / len(received) if received else 0.0


def comparable(a: Iterable[Prediction], b: Iterable[Prediction]) -> bool:
    """Whether `compare` finds a question that counts on both sides; False where a judge could not be read on any."""
    left, right = list(a), list(b)
    judged = is_judged([*left, *right])
    counted = ({row.question for row in rows if credit(row, judged) is not None} for rows in (left, right))
    return bool(set.intersection(*counted)) or {row.question for row in left} != {row.question for row in right}


def compare(a: Iterable[Prediction], b: Iterable[Prediction], clusters: Clusters = MappingProxyType({})) -> Comparison:
    """Compare two sets of answers question by question. Raises EvaluateError unless both answer exactly the same questions.

    Of questions that share no image Agresti and Min's interval and McNemar's test. Else, and for a judge's scores, images are drawn with
    all their questions, and the test swaps the two sides within images.
    """
    left, right = by_question(a), by_question(b)
    judged = is_judged([*left.values(), *right.values()])
    of_a, of_b = ({name: credit(row, judged) for name, row in side.items()} for side in (left, right))
    return compare_credits(of_a, of_b, clusters, resample=judged)


def compare_credits(a: Mapping[str, float | None], b: Mapping[str, float | None], clusters: Clusters, *, resample: bool) -> Comparison:
    """Compare what each question counts on both sides; None counts nowhere. resample: the values are not 0 and 1."""
    if a.keys() != b.keys():
        raise EvaluateError(
            f"the answers are about different questions ({len(a.keys() - b.keys())} only in the first, "
            f"{len(b.keys() - a.keys())} only in the second); evaluate both on the same set",
            code="questions-differ",
        )
    both = {name: (x, y) for name, x in a.items() if x is not None and (y := b[name]) is not None}
    if not both:
        raise EvaluateError(UNREADABLE, code="nothing-graded")
    of_a, of_b = ({name: pair[side] for name, pair in both.items()} for side in (0, 1))
    gains = [of_b[name] - of_a[name] for name in of_a]
    only_a, only_b = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    if resample or not _are_distinct(of_a, clusters):
        low, high, p = _resampled(of_a, of_b, clusters)
    else:
        low, high, p = *difference_interval(only_a, only_b, len(gains)), mcnemar(only_a, only_b)
    return Comparison(n=len(gains), only_a=only_a, only_b=only_b, difference=math.fsum(gains) / len(gains), low=low, high=high, p=p)


def _resampled(of_a: Mapping[str, float], of_b: Mapping[str, float], clusters: Clusters) -> tuple[float, float, float]:
    """Interval and p over clusters. Where no draw changes the difference, the interval is that of as many independent questions."""
    pair = paired(_terms(of_a, clusters), _terms(of_b, clusters))
    assert pair is not None  # both sides have the same questions
    if pair.low is not None and pair.high is not None:
        return pair.low, pair.high, pair.p
    drawn = len({clusters.get(name, name) for name in of_a})
    loss, gain = (math.fsum(max(0.0, sign * (of_b[name] - of_a[name])) for name in of_a) / len(of_a) * drawn for sign in (-1, 1))
    return *difference_interval(loss, gain, drawn), pair.p


def by_question(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """One answer for each question. Raises EvaluateError when there is none, or two answers to one question."""
    rows: dict[str, Prediction] = {}
    for row in predictions:
        if row.question in rows:
            raise EvaluateError(
                f"question {row.question}: answered twice in mode {row.mode!r}; evaluate again with --force evaluate",
                code="answered-twice",
                key=row.question,
            )
        rows[row.question] = row
    if not rows:
        raise EvaluateError("there are no predictions to score; evaluate first", code="no-predictions")
    return rows


# --- repetition: the first symptom of a broken preference-tuned model ---------------------------------------------------


def loops(text: str) -> bool:
    """Whether the end of the text is one phrase at least four times in a row (words; characters where a language has no spaces).

    The length limit may cut the last word, and a loop of characters may be a word of its own.
    """
    words = text.split()
    if len(text) > 12 * max(1, len(words)):
        words = list(text.replace(" ", ""))
    return _ends_in_loop(words[-TAIL:], SHORTEST_LOOP) or _ends_in_loop(list(words[-1][-TAIL:]) if words else [], SHORTEST_CHARACTERS)


def _ends_in_loop(words: list[str], shortest: int) -> bool:
    return any(_run(words, period) >= max(3 * period, shortest) for period in range(1, min(LONGEST_CYCLE, len(words) // 4) + 1))


def _run(words: list[str], period: int) -> int:
    """How many words from the end equal the one `period` words before them; the last one may be the beginning of it."""
    if len(words) <= period or not words[-1 - period].startswith(words[-1]):
        return 0
    length = 1
    while length + period < len(words) and words[-1 - length] == words[-1 - length - period]:
        length += 1
    return length
