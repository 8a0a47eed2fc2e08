"""pass@k, maj@k and mean@k: by hand, and against a slow reference that goes through every draw of k responses."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from mixpo.evaluate.sampled import compare_samples, majority_at, pass_at, sample_differences, score_samples, steps, vote
from mixpo.evaluate.score import no_answer_share, score
from mixpo.evaluate.statistics import wilson
from mixpo.records import Prediction
from mixpo.types import Outcome, Question

NAMES: dict[str, Outcome] = {"c": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}


def row(question: str, outcome: str, index: int, extracted: str | None = None) -> Prediction:
    made = Prediction(question=question, mode="sampled", index=index, text="", tokens=5, finish="stop", outcome=NAMES[outcome])
    return replace(made, extracted=extracted)


def sampled(**outcomes: str) -> list[Prediction]:
    """Rows from "c7 w8 m": an outcome and the extracted answer of each response."""
    return [
        row(question, item[0], index, item[1:] or None) for question, items in outcomes.items() for index, item in enumerate(items.split())
    ]


def figures(rows: Sequence[Prediction], **more: object) -> dict[str, float]:
    return {figure.name: figure.value for figure in score_samples(rows, **more).figures}  # type: ignore[arg-type]


def slow_pass(correct: Sequence[bool], k: int) -> Fraction:
    draws = list(itertools.combinations(correct, k))
    return Fraction(sum(any(draw) for draw in draws), len(draws))


def slow_majority(votes: Sequence[tuple[str, bool]], k: int) -> Fraction:
    """Every draw, every tie; of answers that are partly right, their share."""
    right = {answer: [ok for name, ok in votes if name == answer] for answer, _ in votes}
    total, draws = Fraction(0), list(itertools.combinations(votes, k))
    for draw in draws:
        counts = Counter(answer for answer, _ in draw if answer)
        best = [answer for answer, count in counts.items() if count == max(counts.values())]
        total += sum((Fraction(sum(right[answer]), len(right[answer]) * len(best)) for answer in best), Fraction(0))
    return total / len(draws)


def test_by_hand() -> None:
    assert pass_at(4, 1, 2) == pytest.approx(1 / 2)  # 3 of the 6 draws of two hold the right one
    assert pass_at(4, 2, 2) == pytest.approx(5 / 6)
    assert (pass_at(4, 0, 4), pass_at(4, 1, 4), pass_at(4, 4, 1)) == (0.0, 1.0, 1.0)
    votes = [("7", True), ("7", True), ("8", False), ("9", False)]
    assert majority_at(votes, 4) == 1.0
    # Of two: 77 (1), 78 78 79 79 (half each), 89 (none).
    assert majority_at(votes, 2) == pytest.approx((1 + 4 / 2) / 6)
    assert majority_at([("7", True), ("8", False)], 2) == 0.5
    # A response without an answer casts no vote.
    assert majority_at([("7", True), ("", False), ("", False)], 3) == 1.0
    assert majority_at([("", False), ("", False)], 2) == 0.0
    assert majority_at([("7", True), ("", False)], 1) == 0.5


def test_against_every_draw() -> None:
    rng = random.Random(5)
    for _ in range(120):
        n = rng.randint(1, 8)
        names = [rng.choice(["a", "b", "c", "d", ""]) for _ in range(n)]
        right = {name: rng.random() < 0.5 for name in "abcd"} | {"": False}
        votes = [(name, right[name] and rng.random() < 0.9) for name in names]
        for k in range(1, n + 1):
            assert majority_at(votes, k) == pytest.approx(float(slow_majority(votes, k)), abs=1e-12)
            assert pass_at(n, sum(ok for _, ok in votes), k) == pytest.approx(float(slow_pass([ok for _, ok in votes], k)), abs=1e-12)


def test_one_draw_is_the_mean() -> None:
    votes = [("7", True), ("8", False), ("7", True), ("", False), ("9", False)]
    assert majority_at(votes, 1) == pytest.approx(2 / 5) == pass_at(5, 2, 1)


def test_pass_at_k_is_unbiased() -> None:
    """The mean over many sets of 6 responses is the true probability for 3, which drawing the first 3 estimates worse."""
    rng, p, n, k = random.Random(0), 0.3, 6, 3
    values = [pass_at(n, sum(rng.random() < p for _ in range(n)), k) for _ in range(20_000)]
    assert sum(values) / len(values) == pytest.approx(1 - (1 - p) ** k, abs=0.005)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, ()), (2, (2,)), (3, (2, 3)), (4, (2, 4)), (10, (2, 4, 8, 10)), (64, (2, 4, 8, 16, 32, 64))]
)
def test_steps(n: int, expected: tuple[int, ...]) -> None:
    assert steps(n) == expected


def test_many_responses_are_quick() -> None:
    votes = [(str(number), number == 0) for number in [0] * 20 + [1] * 20 + list(range(2, 26))]
    assert majority_at(votes, 32) == pytest.approx(0.5, abs=1e-6)  # two leaders and many single votes


QUESTION = Question(id="q", text="Which?", images=(), answer="B", kind="choice", choices=("cat", "dog", "0.5 m"))


@pytest.mark.parametrize(
    ("answers", "question"),
    [
        (["B", "(B)", "B. dog", "dog", "**B**"], QUESTION),
        (["C", "0.5 m", "(C) 0.5 m"], QUESTION),
        (["yes", "Yes.", "Yes, there is"], replace(QUESTION, kind="yes_no", choices=())),
        (["0.5", "1/2", ".50", "$\\frac{1}{2}$", "0.5 cm", "**0.5**"], None),
        (["1,200", "1200", "$1200"], None),
        (["x^2+1", "$x^{2} + 1$"], None),
        (["The lake.", "lake", "the Lake"], None),
    ],
)
def test_the_same_answer_is_the_same_vote(answers: list[str], question: Question | None) -> None:
    assert len({vote(answer, question) for answer in answers}) == 1
    assert vote(answers[0], question)


@pytest.mark.parametrize(
    ("answers", "question"),
    [
        (["A", "B", "A and B", "neither cat nor dog"], QUESTION),
        (["yes", "no", "perhaps"], replace(QUESTION, kind="yes_no", choices=())),
        (["0.5", "5", "-5", "five lakes", "x+5", "x-5"], None),
        (["lake", "river", "湖"], None),
        (["9" * 40, "9" * 39 + "8"], None),
    ],
)
def test_other_answers_are_other_votes(answers: list[str], question: Question | None) -> None:
    assert len({vote(answer, question) for answer in answers}) == len(answers)


@pytest.mark.parametrize("nothing", [None, "", "  ", "..", "I cannot tell."])
def test_no_answer_is_no_vote(nothing: str | None) -> None:
    assert vote(nothing) == vote(nothing, QUESTION) == ""


def test_figures_of_a_set() -> None:
    rows = sampled(a="c7 c7 w8 m", b="w1 w1 w2 c3", c="m m m m")
    result = score_samples(rows)
    assert (result.n, result.samples, result.per_question) == (3, 12, 4)
    assert (result.correct, result.wrong, result.malformed, result.undecided) == (3, 4, 5, 0)
    assert result.no_answer == 5 / 12
    assert result.accuracy == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    found = figures(rows)
    assert list(found) == ["pass@2", "pass@4", "maj@2", "maj@4"]
    assert found["pass@4"] == pytest.approx(2 / 3)
    assert found["pass@2"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert found["maj@4"] == pytest.approx((1 + 0 + 0) / 3)
    # a: 77 7- 7- right, 78 78 half, 8- wrong. b: 3 with each of three others half.
    assert found["maj@2"] == pytest.approx(((3 + 2 / 2) / 6 + 3 / 2 / 6 + 0) / 3)


def test_order_changes_nothing() -> None:
    rows = sampled(a="c7 c7 w8 m", b="w1 w1 w2 c3", c="m c4 w5 w5")
    assert score_samples(random.Random(1).sample(rows, len(rows))) == score_samples(rows)


def test_one_sample_has_no_further_figures() -> None:
    assert score_samples(sampled(a="c7", b="w8")).figures == ()


def test_intervals_are_those_of_the_questions() -> None:
    """All samples agree: a share of questions, with Wilson's interval; and copies about one image tell nothing new."""
    rows = [r for n in range(40) for r in sampled(**{f"q{n}": "c1 c1" if n % 4 else "w2 w2"})]
    for figure in score_samples(rows).figures:
        assert (figure.value, figure.n) == (0.75, 40)
        assert (figure.low, figure.high) == wilson(30, 40)
    copies = [replace(r, question=f"{r.question}-{n}") for r in rows for n in range(4)]
    together = score_samples(copies, {r.question: r.question.partition("-")[0] for r in copies}).figures[0]
    alone = score_samples(rows).figures[0]
    assert None not in (together.low, together.high, alone.low, alone.high)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.12)  # type: ignore[operator]


def test_the_bootstrap_covers_a_fractional_figure() -> None:
    rng = random.Random(2)
    rows = [row(f"q{n}", "c" if rng.random() < 0.3 else "w", i, "1") for n in range(200) for i in range(4)]
    figure = next(f for f in score_samples(rows).figures if f.name == "pass@2")
    values = [pass_at(4, sum(r.outcome == "correct" for r in rows[4 * n : 4 * n + 4]), 2) for n in range(200)]
    mean = sum(values) / 200
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / 199 / 200)
    assert figure.low == pytest.approx(mean - half, abs=0.1 * half)
    assert figure.high == pytest.approx(mean + half, abs=0.1 * half)


def test_choices_of_the_question_decide_the_vote() -> None:
    rows = sampled(q="cB cdog wA wC")
    assert figures(rows, questions={"q": QUESTION})["maj@4"] == 1.0
    assert figures(rows)["maj@4"] == 0.5  # a question that is not known: four texts, one vote each


def test_failed_responses_do_not_vote_and_stay_in_the_denominator() -> None:
    rows = [replace(r, finish="error") if r.outcome == "undecided" else r for r in sampled(a="c7 u u u", b="u u u u")]
    result = score_samples(rows)
    assert (result.accuracy, result.failed, result.no_answer) == (1 / 8, 7, 0.0)
    assert figures(rows) == pytest.approx({"pass@2": 1 / 4, "pass@4": 1 / 2, "maj@2": 1 / 4, "maj@4": 1 / 2})


def test_a_judge_has_passes_but_no_votes() -> None:
    judged = [replace(r, score=1.0 if r.outcome == "correct" else 0.2, judge="j") for r in sampled(a="c w", b="w w")]
    judged += [replace(judged[0], question="c", unread=True, score=None), replace(judged[0], question="c", index=1)]
    result = score_samples(judged)
    assert (result.n, result.excluded, result.unread, result.no_answer) == (3, 1, 1, None)
    assert result.accuracy == pytest.approx((0.6 + 0.2 + 1.0) / 3)
    (figure,) = result.figures
    assert (figure.name, figure.value, figure.n) == ("pass@2", 0.5, 2)  # c has one response that counts


def test_differences_are_paired() -> None:
    a = sampled(**{f"q{n}": "c1 w2" if n % 2 else "w2 w3" for n in range(20)})
    b = sampled(**{f"q{n}": "c1 c1" if n % 2 else "w2 w3" for n in range(20)})
    found = {row.name: row for row in sample_differences(a, b)}
    assert list(found) == ["mean@2", "pass@2", "maj@2"]
    assert [found[name].difference for name in found] == pytest.approx([25.0, 0.0, 25.0])
    assert (found["mean@2"].a, found["mean@2"].b, found["mean@2"].n) == (25.0, 50.0, 20)
    assert found["mean@2"].low > 0  # type: ignore[operator]
    assert found["mean@2"].p < 0.01
    assert (found["pass@2"].low, found["pass@2"].high, found["pass@2"].p) == (None, None, 1.0)
    whole = compare_samples(a, b)
    assert (whole.n, whole.only_a, whole.only_b, whole.difference) == (20, 0, 10, 0.25)
    assert whole.low > 0
    fewer = {row.name for row in sample_differences(a, sampled(**{f"q{n}": "c1 w2 w3" for n in range(20)}))}
    assert fewer == {"pass@2", "maj@2"}  # means over two and over three responses, and what both have


def test_share_without_an_answer() -> None:
    greedy = [replace(r, mode="cot") for r in sampled(a="c7", b="m", c="m", d="w8", e="u")]
    assert score(greedy).no_answer == 2 / 5
    greedy[4] = replace(greedy[4], finish="error")
    assert score(greedy).no_answer == 2 / 4  # a response that never came has no answer to parse
    assert no_answer_share([replace(r, score=0.5) for r in greedy]) is None
