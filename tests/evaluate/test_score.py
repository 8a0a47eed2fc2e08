"""Scores against hand-computed numbers, scipy, and simulation."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mixpo.errors import EvaluateError
from mixpo.evaluate.sampled import score_samples
from mixpo.evaluate.score import compare, loops, score
from mixpo.evaluate.statistics import difference_interval, wilson
from mixpo.evaluate.yes_no import gold_of, yes_no
from mixpo.records import Prediction, read_rows, write_rows
from mixpo.types import Question, Response
from mixpo.verify import Verifier


def prediction(question: str, outcome: str, **values: object) -> Prediction:
    base = Prediction(question=question, mode="cot", text="x", tokens=10, finish="stop", outcome="correct")
    return replace(base, outcome=outcome, **values)  # type: ignore[arg-type]


def answers(outcomes: str, **values: object) -> list[Prediction]:
    """One answer a letter: c(orrect), w(rong), m(alformed), u(ndecided)."""
    names = {"c": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}
    return [prediction(f"q{n}", names[letter], **values) for n, letter in enumerate(outcomes)]


def test_score_counts_everything_that_was_asked() -> None:
    rows = [
        *answers("ccwmu"),
        prediction("q5", "malformed", finish="length", tokens=40),
        prediction("q6", "undecided", finish="error", tokens=0),
    ]
    result = score(rows)
    assert (result.n, result.correct, result.wrong, result.malformed, result.undecided) == (7, 2, 1, 2, 2)
    assert (result.cut, result.failed) == (1, 1)
    assert result.accuracy == 2 / 7
    assert (result.low, result.high) == wilson(2, 7)
    assert result.mean_tokens == 90 / 7


def test_rows_without_a_domain_are_a_group_of_their_own() -> None:
    rows = [prediction("a", "correct", domain="x"), prediction("b", "wrong"), prediction("c", "correct")]
    found = score(rows).domains
    assert {name: (part.n, part.correct) for name, part in found.items()} == {"": (2, 1), "x": (1, 1)}
    assert score(rows[1:]).domains == {}  # no row has one: there are no families to show


def test_domains_add_up() -> None:
    rows = [replace(row, domain="sum" if n % 3 else "choice") for n, row in enumerate(answers("cwcwmucccw"))]
    result = score(rows)
    assert list(result.domains) == ["choice", "sum"]
    assert sum(d.n for d in result.domains.values()) == result.n
    assert sum(d.correct for d in result.domains.values()) == result.correct
    assert result.domains["choice"].accuracy == 2 / 4  # answers 0, 3, 6, 9: c w c w
    assert score(answers("cw")).domains == {}


def test_sampled_mean_by_hand() -> None:
    outcomes = {"a": "cw", "b": "cc", "c": "wwwc"}
    names = {"c": "correct", "w": "wrong"}
    rows = [prediction(q, names[letter], mode="sampled", index=i) for q, text in outcomes.items() for i, letter in enumerate(text)]
    result = score_samples(rows)
    half = 4.30265 * math.sqrt(0.1458333 / 3)  # Student's t, 2 degrees of freedom
    assert (result.n, result.samples) == (3, 8)
    assert result.accuracy == pytest.approx(7 / 12)
    assert (result.low, result.high) == pytest.approx((max(0.0, 7 / 12 - half), 1.0), abs=1e-6)
    narrow = score_samples([replace(row, question=f"{row.question}{copy}") for row in rows for copy in range(10)])
    half = 2.04523 * math.sqrt(0.0972222 * 30 / 29 / 30)
    assert (narrow.low, narrow.high) == pytest.approx((7 / 12 - half, 7 / 12 + half), abs=1e-5)
    middle = score_samples([row for row in rows if row.question != "b"])
    assert middle.accuracy == pytest.approx(0.375)


def test_sampled_interval_without_spread_is_not_empty() -> None:
    rows = [prediction(f"q{n}", "correct", mode="sampled", index=i) for n in range(10) for i in range(4)]
    assert (score_samples(rows).low, score_samples(rows).high) == wilson(10, 10)


def test_comparison_by_hand() -> None:
    both, only_a, only_b, neither = 50, 5, 15, 30
    a = answers("c" * both + "c" * only_a + "w" * only_b + "w" * neither)
    b = answers("c" * both + "m" * only_a + "c" * only_b + "u" * neither)
    result = compare(a, b)
    assert (result.n, result.only_a, result.only_b) == (100, 5, 15)
    assert result.difference == pytest.approx(0.10)
    assert (result.low, result.high) == pytest.approx((0.012064, 0.184014), abs=2e-6)
    assert result.p == pytest.approx(stats.binomtest(5, 20).pvalue)


def test_comparison_turns_around() -> None:
    a, b = answers("ccwwcwcwmc"), answers("cwccwcccuw")
    there, back = compare(a, b), compare(b, a)
    assert (there.difference, there.low, there.high, there.p) == pytest.approx((-back.difference, -back.high, -back.low, back.p))
    assert compare(a, a).difference == 0.0
    assert compare(a, a).p == 1.0


def test_comparison_does_not_depend_on_order() -> None:
    a, b = answers("ccwwcwcwmc"), answers("cwccwcccuw")
    assert compare(random.Random(1).sample(a, len(a)), b) == compare(a, b)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 500, 500), (3, 0, 4)])
def test_difference_interval_contains_the_difference(only_a: int, only_b: int, n: int) -> None:
    rows_a = answers("c" * only_a + "w" * only_b + "w" * (n - only_a - only_b))
    rows_b = answers("w" * only_a + "c" * only_b + "w" * (n - only_a - only_b))
    result = compare(rows_a, rows_b)
    assert -1 <= result.low <= result.difference <= result.high <= 1
    assert result.low < result.high


def test_other_questions_are_refused() -> None:
    with pytest.raises(EvaluateError, match="1 only in the first, 2 only in the second"):
        compare([*answers("cc"), prediction("x", "wrong")], [*answers("cc"), prediction("y", "wrong"), prediction("z", "wrong")])


@pytest.mark.parametrize("rows", [[], [prediction("q", "wrong"), prediction("q", "correct")]])
def test_nothing_and_twice_are_refused(rows: list[Prediction]) -> None:
    for function in (score, score_samples):
        with pytest.raises(EvaluateError):
            function(rows)


def test_scoring_saved_predictions_again_gives_the_same_numbers(tmp_path: Path) -> None:
    rows = [
        replace(row, domain="sum" if n % 2 else "", extracted=None if n % 5 == 0 else "7") for n, row in enumerate(answers("cwmucc" * 50))
    ]
    write_rows(tmp_path / "p.parquet", Prediction, rows)
    again = read_rows(tmp_path / "p.parquet", Prediction)
    assert again == rows
    assert score(again) == score(rows)
    assert score(random.Random(0).sample(again, len(again))) == score(rows)


def test_yes_no_equals_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(3)
    gold = {f"q{n}": rng.choice(["yes", "no"]) for n in range(80)}
    said = {q: rng.choice(["yes", "no", "maybe"]) for q in gold}
    rows = [prediction(q, "correct" if said[q] == gold[q] else "wrong", extracted=said[q].title() + ".") for q in gold]
    result = yes_no([*rows, prediction("other", "correct")], gold, {name: name for name in gold})
    truth, guess = [gold[q] == "yes" for q in gold], [said[q] == "yes" for q in gold]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess, average="binary")
    assert (result.precision, result.recall, result.f1) == pytest.approx((precision, recall, f1))
    assert result.yes_ratio == sum(guess) / 80
    assert result.n == 80


def test_yes_no_by_the_word_and_not_by_the_whole_answer() -> None:
    """Of what the verifier reads as yes, all counts as yes; what is wrong for another reason does not."""
    said = ["Yes, there is a dog", "yes", "No, there is none", "7", "True", "是的", "maybe", "Yes and no"]
    asked = [Question(id=f"q{n}", text="Is it?", images=(), answer=("no", "False", "否")[n % 3], kind="yes_no") for n in range(len(said))]
    with Verifier() as verifier:
        verdicts = [
            verifier.verify_all(question, [Response(question=question.id, index=0, text=f"Final answer: {text}")])[0]
            for question, text in zip(asked, said, strict=True)
        ]
    rows = [prediction(v.question, v.outcome, extracted=v.extracted) for v in verdicts]
    gold = {question.id: gold_of(question) for question in asked}
    result = yes_no([*rows, prediction("hit", "correct", extracted="Yes, it is")], {**gold, "hit": "yes"}, {q: q for q in [*gold, "hit"]})  # type: ignore[dict-item]
    # Four times a yes to what is not so, once a yes to what is.
    assert (result.precision, result.recall) == (1 / 5, 1.0)
    assert result.yes_ratio == 5 / 9
    assert gold_of(replace(asked[0], answer="是")) == "yes"
    assert gold_of(replace(asked[0], kind="text", answer="yes")) is None


def test_the_interval_of_f1_is_drawn_by_image() -> None:
    """Ten questions about each of eight images that stand and fall together are eight observations, not eighty."""
    gold = {f"q{n}": "yes" if n % 2 else "no" for n in range(80)}
    rows = [prediction(q, "correct" if (n // 10) % 2 else "wrong", extracted="yes") for n, q in enumerate(gold)]
    by_image = yes_no(rows, gold, {q: f"image {n // 10}" for n, q in enumerate(gold)})
    by_question = yes_no(rows, gold, {q: q for q in gold})
    assert by_image.f1 == by_question.f1 == 0.5
    assert by_image.high - by_image.low > 2 * (by_question.high - by_question.low)  # type: ignore[operator]


def test_yes_no_without_any_yes() -> None:
    result = yes_no(
        [prediction("a", "malformed"), prediction("b", "correct", extracted="no")], {"a": "yes", "b": "no"}, {"a": "a", "b": "b"}
    )
    assert (result.precision, result.recall, result.f1, result.yes_ratio) == (0.0, 0.0, 0.0, 0.0)


# --- marks of a judge, and answers that go round in circles ---------------------------------------------------------------


def marks(*values: float | None) -> list[Prediction]:
    return [prediction(f"q{n}", "undecided" if v is None else "wrong", score=v, judge="j #1") for n, v in enumerate(values)]


def test_a_mark_that_could_not_be_read_is_no_zero() -> None:
    result = score(marks(1.0, 0.5, None))
    assert (result.accuracy, result.n, result.excluded) == (0.75, 3, 1)
    many = marks(*[1.0, 0.5, 0.8, 0.9, 0.1, 0.6] * 10)
    expected = stats.t.interval(0.95, 59, loc=0.65, scale=stats.sem([row.score for row in many]))
    assert (score(many).low, score(many).high) == pytest.approx(expected, abs=0.01)
    assert score(answers("cw")).excluded == 0


def test_marks_are_compared_where_both_sides_have_one() -> None:
    a, b = marks(0.5, 0.5, 0.2, None, 0.4), marks(1.0, 0.7, 0.1, 1.0, None)
    result = compare(a, b)
    assert (result.n, result.only_a, result.only_b) == (3, 1, 2)
    assert result.difference == pytest.approx(0.2)
    # Of the eight ways to swap +0.5, +0.2 and -0.1 four give a mean as large as 0.2: + + -, + + +, and their opposites.
    assert result.p == pytest.approx(4 / 8, abs=0.02)
    same = compare(a, a)
    assert (same.difference, same.p) == (0.0, 1.0)
    assert same.low < 0 < same.high
    rng = np.random.default_rng(3)
    a_many, b_many = rng.integers(0, 11, 50) / 10, rng.integers(2, 11, 50) / 10
    many = compare(marks(*a_many), marks(*b_many))
    theirs = stats.permutation_test(
        (a_many, b_many), lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    assert many.p == pytest.approx(theirs.pvalue, abs=0.02)
    low, high = stats.t.interval(0.95, 49, loc=(b_many - a_many).mean(), scale=stats.sem(b_many - a_many))
    assert [many.low, many.high] == pytest.approx([low, high], abs=0.12 * (high - low))
    with pytest.raises(EvaluateError, match="no question counts on both sides, because the judge"):
        compare(marks(None), marks(1.0))


def test_yes_no_by_domain() -> None:
    rows = [prediction(f"q{n}", "correct", domain="xy"[n % 2], extracted="yes") for n in range(4)]
    result = yes_no(rows, dict.fromkeys(("q0", "q1", "q2", "q3"), "yes"), {f"q{n}": f"q{n}" for n in range(4)})
    assert {name: part.f1 for name, part in result.domains.items()} == {"x": 1.0, "y": 1.0}
    assert yes_no(rows[:1], {"q0": "yes"}, {"q0": "q0"}).domains == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False), ("Final answer: 3", False), ("no " * 12, False), ("no " * 14, True), ("So " + "the cat sat on the mat. " * 4, True),
        ("So " + "the cat sat on the mat. " * 2, False), ("图中" + "有一只猫" * 8, True), ("0 0 0 0 1 1 1 1 2 2 2 2", False),
        ("First I look at the picture and then I count what it shows, which gives me seven of them in all.", False),
        (" ".join(str(n) for n in range(500)), False), (" ".join(["a b c d e f g h"] * 4) + " x", False),
        ("So " + "the cat sat on the mat. " * 5 + "the cat sa", True), ("I count them one by one, so the answer is " + "7" * 80, True),
        ("| a | b | " + "-" * 40, False), ("So " + "the cat sat on the mat. " * 5 + "the dog", False),
    ],
)  # fmt: skip
def test_loops(text: str, expected: bool) -> None:
    assert loops(text) is expected
    assert score([prediction("q", "correct", text=text)]).loops == int(expected)


# --- several questions about one image ---------------------------------------------------------------------------------------------


def copied(rows: list[Prediction], times: int) -> tuple[list[Prediction], dict[str, str]]:
    """Every question `times` times about the same image, always with the same outcome; and the image of each."""
    copies = [replace(row, question=f"{row.question}-{n}") for row in rows for n in range(times)]
    return copies, {row.question: row.question.partition("-")[0] for row in copies}


def test_copies_about_the_same_image_tell_nothing_new() -> None:
    """Four copies of 40 answers are worth 40 answers, not 160: alone they would halve the interval."""
    rows = answers("ccccwccmccwccccwccccwcuccwccccwcccccwccc")
    copies, clusters = copied(rows, 4)
    alone, together, naive = score(rows), score(copies, clusters), score(copies)
    width = alone.high - alone.low
    assert together.accuracy == alone.accuracy == naive.accuracy
    assert together.high - together.low == pytest.approx(width, rel=0.1)
    assert naive.high - naive.low == pytest.approx(width / 2, rel=0.1)
    assert (score(rows, clusters).low, score(rows, clusters).high) == wilson(alone.correct, 40)  # no image is shared: nothing changes


def test_copies_make_no_difference_surer() -> None:
    a, b = answers("ccccwwwwwwcccccccccwccccwwcccc"), answers("ccwcccccwwccccwccccwccccwccccc")
    rows_a, clusters = copied(a, 5)
    rows_b, _ = copied(b, 5)
    alone, together, naive = compare(a, b), compare(rows_a, rows_b, clusters), compare(rows_a, rows_b)
    assert (together.n, together.only_a, together.only_b) == (150, 10, 25)
    assert together.difference == alone.difference
    # Swapping within images is McNemar's test on the images: 2 against 5 of them.
    assert together.p == pytest.approx(alone.p, abs=0.02)
    assert alone.p == pytest.approx(0.453, abs=1e-3)
    assert naive.p < 0.02
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_shared_images_against_a_cluster_robust_interval() -> None:
    """Of a mean over 120 images with one to six questions each: the linearised standard error of survey statistics, worked out here."""
    rng = np.random.default_rng(5)
    rows, clusters = [], {}
    for image in range(120):
        skill = rng.beta(2, 1)
        for number in range(rng.integers(1, 7)):
            name = f"i{image}q{number}"
            clusters[name] = f"i{image}"
            rows.append(prediction(name, "correct" if rng.random() < skill else "wrong"))
    found = score(rows, clusters)
    sums = [sum((row.outcome == "correct") - found.accuracy for row in rows if clusters[row.question] == f"i{i}") for i in range(120)]
    error = math.sqrt(120 / 119 * sum(value**2 for value in sums)) / len(rows)
    expected = found.accuracy - 1.98 * error, found.accuracy + 1.98 * error
    assert (found.low, found.high) == pytest.approx(expected, abs=0.1 * error)
    domains = score([replace(row, domain="x") for row in rows], clusters).domains
    assert (domains["x"].low, domains["x"].high) == (found.low, found.high)


def test_sampled_answers_about_shared_images() -> None:
    rows = [prediction(f"q{n}", "wrong" if n % 3 else "correct", mode="sampled", index=i) for n in range(30) for i in (0, 1)]
    copies, clusters = copied(rows, 3)
    alone, together = score_samples(rows), score_samples(copies, clusters)
    assert together.n == 90
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_equal_answers_about_shared_images_have_an_interval() -> None:
    """No draw changes anything, and still one image of four could have been different."""
    rows, clusters = copied(answers("ccww"), 3)
    found = compare(rows, rows, clusters)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert (found.low, found.high) == difference_interval(0, 0, 4)
    better, _ = copied(answers("cccc"), 3)
    worse, _ = copied(answers("wwww"), 3)
    found = compare(worse, better, clusters)
    assert (found.low, found.high) == difference_interval(0, 4, 4)
    only = compare([worse[0], worse[1]], [better[0], better[1]], clusters)  # a single image
    assert -1 <= only.low < only.difference == only.high == 1
