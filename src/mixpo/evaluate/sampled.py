"""Figures of several sampled responses per question: mean@n, pass@k and maj@k. Pure functions, no files.

All are exact expectations over which k of the n samples are drawn, so the order of the samples changes nothing. Intervals resample
questions, or images with all their questions, as everywhere.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context
from functools import lru_cache, partial
from types import MappingProxyType

from mixpo.errors import EvaluateError
from mixpo.evaluate.score import Clusters, Comparison, compare_credits, credit, is_judged, loops, mean_of, no_answer_share
from mixpo.evaluate.statistics import Difference, Term, estimate, interval, paired
from mixpo.records import Prediction
from mixpo.types import Question
from mixpo.verify.kinds import guess_kind
from mixpo.verify.latex import key, to_latex
from mixpo.verify.number import single_number
from mixpo.verify.options import ANOTHER, read_options
from mixpo.verify.refusals import is_refusal
from mixpo.verify.text import normal_text
from mixpo.verify.wrapping import plain_characters, unwrap
from mixpo.verify.yes_no import read_yes_no

_EXACT = Context(prec=100)
"""More digits than a number that was read has: different numbers never have the same text."""

Questions = Mapping[str, Question]
"""By id. Their kind and choices decide which answers are the same vote; an unknown question's answers are compared as texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledFigure:
    """pass@k or maj@k over the n questions with at least k responses that count. value, low, high: shares."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledScore:
    """Sampled responses to `n` questions. accuracy: mean@k, the mean over questions of the share of correct responses.

    samples: responses in all. per_question: most responses of one question. The counts by outcome, cut, failed, loops, unread and excluded
    are of responses, as in `Score`. figures: pass@k and maj@k for k = 2, 4, 8, ... and per_question.
    """

    n: int
    samples: int
    per_question: int
    correct: int
    wrong: int
    malformed: int
    undecided: int
    cut: int
    accuracy: float
    low: float
    high: float
    mean_tokens: float
    no_answer: float | None
    failed: int = 0
    loops: int = 0
    unread: int = 0
    excluded: int = 0
    figures: tuple[SampledFigure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledDifference(Difference):
    """A figure of two models in percent, as `FigureDifference`: the mean, pass@k or maj@k."""

    name: str
    unit: str = "%"


def score_samples(
    predictions: Iterable[Prediction], clusters: Clusters = MappingProxyType({}), questions: Questions = MappingProxyType({})
) -> SampledScore:
    """Score several responses per question. Raises EvaluateError when there are none, or a sample is there twice."""
    by_question = _by_question(predictions)
    rows = [row for of_question in by_question.values() for row in of_question]
    outcomes = Counter(row.outcome for row in rows)
    credits = _credits(by_question, is_judged(rows))
    means = {name: sum(values) / len(values) for name, values in credits.items() if values}
    accuracy, low, high = mean_of(means, clusters)
    return SampledScore(
        n=len(means), samples=len(rows), per_question=max(map(len, by_question.values())),
        correct=outcomes["correct"], wrong=outcomes["wrong"], malformed=outcomes["malformed"], undecided=outcomes["undecided"],
        cut=sum(row.finish == "length" for row in rows), accuracy=accuracy, low=low, high=high,
        mean_tokens=sum(row.tokens for row in rows) / len(rows), no_answer=no_answer_share(rows),
        failed=sum(row.finish == "error" for row in rows), loops=sum(loops(row.text) for row in rows),
        unread=sum(row.unread for row in rows), excluded=len(rows) - sum(map(len, credits.values())),
        figures=tuple(_figure(name, terms) for name, terms in _terms(by_question, clusters, questions).items() if terms),
    )  # fmt: skip


def _figure(name: str, terms: Sequence[Term]) -> SampledFigure:
    low, high = interval(terms, 1.0)
    return SampledFigure(name=name, value=estimate(terms), low=low, high=high, n=len(terms))


def compare_samples(a: Iterable[Prediction], b: Iterable[Prediction], clusters: Clusters = MappingProxyType({})) -> Comparison:
    """Compare the means of two models question by question. Raises EvaluateError unless both answer exactly the same questions."""
    sides = [_by_question(rows) for rows in (a, b)]
    judged = is_judged(row for side in sides for rows in side.values() for row in rows)
    means = [
        {name: math.fsum(values) / len(values) if values else None for name, values in _credits(side, judged).items()} for side in sides
    ]
    return compare_credits(means[0], means[1], clusters, resample=True)


def sample_differences(
    a: Iterable[Prediction], b: Iterable[Prediction], clusters: Clusters = MappingProxyType({}), questions: Questions = MappingProxyType({})
) -> list[SampledDifference]:
    """mean@n, pass@k and maj@k of two models, paired by question; figures that one side lacks are skipped."""
    sides = [_by_question(rows) for rows in (a, b)]
    terms = [{**_mean_terms(side, clusters), **_terms(side, clusters, questions)} for side in sides]
    differences = []
    for name in terms[0]:
        pair = paired(terms[0][name], terms[1].get(name, ()))
        if pair is not None:
            scaled = {
                key: None if (value := getattr(pair, key)) is None else 100 * value for key in ("a", "b", "difference", "low", "high")
            }
            differences.append(SampledDifference(name=name, n=pair.n, p=pair.p, **scaled))  # type: ignore[arg-type]
    return differences


def _by_question(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """Responses by question. Raises EvaluateError when there are none, or a sample is there twice."""
    rows: dict[str, list[Prediction]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    for row in predictions:
        if (row.question, row.index) in seen:
            raise EvaluateError(
                f"question {row.question}: sample {row.index} is there twice; evaluate again with --force evaluate",
                code="answered-twice",
                key=row.question,
            )
        seen.add((row.question, row.index))
        rows[row.question].append(row)
    if not rows:
        raise EvaluateError("there are no sampled predictions to score; set evaluate.samples and evaluate again", code="no-predictions")
    return rows


def _credits(by_question: Mapping[str, Sequence[Prediction]], judged: bool) -> dict[str, list[float]]:
    """What the responses of each question count; those whose judge could not be read are excluded."""
    return {name: [value for row in rows if (value := credit(row, judged)) is not None] for name, rows in by_question.items()}


# --- pass@k and maj@k ---------------------------------------------------------------------------------------------------


def steps(n: int) -> tuple[int, ...]:
    """2, 4, 8, ... below n, and n; none for a single sample. The mean stands for k = 1."""
    return tuple(sorted({*(2**power for power in range(1, n.bit_length()) if 2**power < n), n})) if n > 1 else ()


def pass_at(n: int, correct: int, k: int) -> float:
    """Probability that one of k of the n responses is correct: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, unbiased)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority_at(votes: Sequence[tuple[str, bool]], k: int) -> float:
    """Expected accuracy of the most frequent answer among k of the responses (self-consistency, Wang et al. 2023).

    votes: (answer, whether it is correct); "" is a response without an answer: it is drawn, but casts no vote, and where none votes nothing
    is correct. Of answers with equally many votes each is taken with the same probability.
    """
    counts = Counter(answer for answer, _ in votes if answer)
    right = Counter(answer for answer, correct in votes if answer and correct)
    others = {answer: tuple(sorted(size for name, size in counts.items() if name != answer)) for answer in right}
    wins = [right[answer] / counts[answer] * _wins(counts[answer], others[answer], len(votes), k) for answer in sorted(right)]
    return math.fsum(wins)


@lru_cache(maxsize=1 << 14)
def _wins(own: int, others: tuple[int, ...], n: int, k: int) -> float:
    """Probability that an answer with `own` votes of n has the most among k of them, ties shared. others: votes of the other answers."""
    total = 0.0
    for most in range(1, min(own, k) + 1):
        # Answers with fewer votes than `most` can neither win nor tie: they are as good as no vote.
        rivals = [size for size in others if size >= most]
        ways = {(0, 0): 1}  # (drawn, ties) -> number of ways
        for size in rivals:
            grown: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), number in ways.items():
                for count in range(min(most, k - most - drawn) + 1):
                    grown[drawn + count, ties + (count == most)] += number * math.comb(size, count)
            ways = grown
        rest = n - own - sum(rivals)
        shares = (number * math.comb(rest, k - most - drawn) / (ties + 1) for (drawn, ties), number in ways.items())
        total += math.comb(own, most) * math.fsum(shares)
    return total / math.comb(n, k)


def vote(extracted: str | None, question: Question | None = None) -> str:
    """What a short answer votes for: option letters, yes or no, a number without its unit, else the normalized text; "" for no answer, and
    for one that says that it cannot tell.

    The ground truth is not used, so that right and wrong answers are grouped the same way.
    """
    plain = plain_characters(unwrap(extracted or ""))
    if is_refusal(plain):
        return ""
    kind, choices = (question.kind, question.choices) if question is not None else ("", ())
    if choices or kind == "choice":
        if named := read_options(plain, choices) - {ANOTHER}:
            return f"option {','.join(sorted(named))}"
    elif kind == "yes_no" and len(read := read_yes_no(plain)) == 1:
        return "yes" if True in read else "no"
    number = single_number(plain)
    if number is not None and number.value.is_finite():
        return str(number.value.normalize(_EXACT))
    return key(to_latex(plain)) if guess_kind(plain) == "formula" else normal_text(plain) or plain.strip()


# --- figures of a set ---------------------------------------------------------------------------------------------------

Estimator = Callable[[Sequence[Prediction], int], float]
"""(responses to a question, k) -> its share."""


def _passes(rows: Sequence[Prediction], k: int) -> float:
    return pass_at(len(rows), sum(row.outcome == "correct" for row in rows), k)


def _majority(rows: Sequence[Prediction], k: int, *, questions: Questions) -> float:
    question = questions.get(rows[0].question)
    return majority_at([(vote(row.extracted, question), row.outcome == "correct") for row in rows], k)


def _terms(by_question: Mapping[str, Sequence[Prediction]], clusters: Clusters, questions: Questions) -> dict[str, list[Term]]:
    """One term a question for each figure. Responses that a judge grades have no short answer to vote for, and pass@k counts its passes."""
    judged = is_judged(row for rows in by_question.values() for row in rows)
    counted = {name: [row for row in rows if credit(row, judged) is not None] for name, rows in by_question.items()}
    estimators: dict[str, Estimator] = {"pass": _passes} if judged else {"pass": _passes, "maj": partial(_majority, questions=questions)}
    return {
        f"{name}@{k}": [
            Term(question, clusters.get(question, question), "", estimator(rows, k), 1.0)
            for question, rows in counted.items()
            if len(rows) >= k
        ]
        for name, estimator in estimators.items()
        for k in steps(max(map(len, by_question.values())))
    }


def _mean_terms(by_question: Mapping[str, Sequence[Prediction]], clusters: Clusters) -> dict[str, list[Term]]:
    credits = _credits(by_question, is_judged(row for rows in by_question.values() for row in rows))
    terms = [Term(name, clusters.get(name, name), "", math.fsum(values) / len(values), 1.0) for name, values in credits.items() if values]
    return {f"mean@{max(map(len, by_question.values()))}": terms}
