"""What holds for every text: nothing raises, an answer agrees with itself, order does not matter where it must not."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixpo.verify import CHECKS, check, extract, guess_kind
from mixpo.verify.check import judge
from mixpo.verify.extract import STYLES
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.number_words import read_words


def no_algebra(_predicted: str, _gold: str) -> Judgement:
    return Judgement("undecided", "not here")


EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)
"""The same examples in every run; a busy machine is no failure."""


def options(tolerance: float = 1e-6, choices: tuple[str, ...] = ()) -> Options:
    return Options(tolerance=tolerance, algebra=no_algebra, choices=choices)


MARKERS = ["Final answer:", "答案：", "\\boxed{", "}", "<think>", "</think>", "<answer>", "**", "$", "\n", "\\", "\\text{", "\\frac{1}{2}"]
WORDS = [
    "A",
    "(B)",
    "not",
    "7",
    "-",
    "%",
    "1/2",
    "yes",
    "no",
    "不",
    "是",
    "^",
    "cm",
    "=",
    ",",
    ".",
    "twenty",
    "e9",
    "{",
    "½",
    "²",
    "٣",
    "\ud800",
]
MARKS = st.sampled_from([*MARKERS, *WORDS])
TEXTS = st.one_of(st.text(max_size=60), st.lists(MARKS, max_size=12).map("".join), st.lists(MARKS, max_size=12).map(" ".join))
KINDS = sorted(CHECKS)
CHOICES = st.lists(TEXTS, max_size=11).map(tuple)


@EXAMPLES
@given(TEXTS, st.sampled_from(sorted(STYLES)))
def test_extract_never_raises_and_never_gives_an_empty_answer(text: str, style: str) -> None:
    answer = extract(text, style)
    assert answer is None or answer.strip()


@EXAMPLES
@given(TEXTS, TEXTS, st.sampled_from([*KINDS, "auto"]), CHOICES)
def test_checks_never_raise(predicted: str, gold: str, kind: str, choices: tuple[str, ...]) -> None:
    judgement = judge(predicted, gold, kind, options(choices=choices))
    assert judgement.outcome in ("correct", "wrong", "undecided")
    assert judgement.reason


@EXAMPLES
@given(TEXTS, st.sampled_from([*KINDS, "auto"]), CHOICES)
@example("", "number", ())
@example("A or B", "choice", ("B", "A"))
@example("yes and no", "yes_no", ())
@example("1e999999999", "number", ())
@example("1e999999999-2", "number", ())
def test_every_text_agrees_with_itself(text: str, kind: str, choices: tuple[str, ...]) -> None:
    assert check(text, text, kind, choices).outcome == "correct"
    assert judge(f" {text}\n", text, kind, options(choices=choices)).outcome == "correct"


@EXAMPLES
@given(TEXTS, TEXTS, st.sampled_from(["number", "yes_no"]))
def test_numbers_and_yes_no_are_symmetric(left: str, right: str, kind: str) -> None:
    if left.strip() and right.strip():
        assert judge(left, right, kind, options()).outcome == judge(right, left, kind, options()).outcome


@EXAMPLES
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
@example(10**6, 10**6 + 1)
def test_whole_numbers_agree_with_python(left: int, right: int) -> None:
    expected = "correct" if left == right else "wrong"
    for written in (str(left), f"{left:,}", f"${left:,}$", f"about {left} cm", f"{left} apples", f"x = {left}"):
        assert judge(written, str(right), "number", options()).outcome == expected
    # Written as a decimal, the tolerance counts.
    near = abs(left - right) <= Fraction(1, 10**6) * max(abs(left), abs(right))
    assert judge(f"{left}.0", str(right), "number", options()).outcome == ("correct" if near else "wrong")


@EXAMPLES
@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(-1e-4, 1e-4))
def test_tolerance_is_relative_as_math_isclose(value: float, change: float) -> None:
    other = value * (1 + change)
    if math.isclose(abs(change), 1e-5, rel_tol=1e-3) or (abs(value) < 1e-30 and value != 0):
        return  # on the border the rounding of floats decides
    expected = math.isclose(value, other, rel_tol=1e-5, abs_tol=0.0)
    assert (judge(repr(value), repr(other), "number", options(1e-5)).outcome == "correct") == expected


@EXAMPLES
@given(st.integers(-999, 999), st.integers(1, 999), st.integers(-999, 999), st.integers(1, 999))
def test_fractions_agree_with_exact_arithmetic(a: int, b: int, c: int, d: int) -> None:
    same = abs(Fraction(a, b) - Fraction(c, d)) <= Fraction(1, 10**6) * max(abs(Fraction(a, b)), abs(Fraction(c, d)))
    if b == 1 and d == 1:
        same = a == c
    sign = "-" if c < 0 else ""
    for other in (f"{c}/{d}", f"{sign}\\frac{{{abs(c)}}}{{{d}}}", f"${c} / {d}$"):
        assert judge(f"{a}/{b}", other, "number", options()).outcome == ("correct" if same else "wrong")


SPOKEN = {13: "thirteen", 21: "twenty-one", 40: "forty", 99: "ninety nine", 100: "one hundred", 117: "one hundred and seventeen"}
SPOKEN |= {342: "three hundred forty two", 1005: "one thousand five", 20000: "twenty thousand", 1200000: "one million two hundred thousand"}


@pytest.mark.parametrize(("value", "words"), SPOKEN.items())
def test_number_words(value: int, words: str) -> None:
    assert read_words(words) == [value]
    assert read_words(f"There are {words} of them.") == [value]
    assert check(words.title(), f"{value:,}", "number").outcome == "correct"


def test_separate_number_words_stay_separate() -> None:
    assert read_words("two or three") == [2, 3]
    assert read_words("one two") == [1, 2]
    assert read_words("someone often won") == []


@EXAMPLES
@given(st.integers(0, 99))
def test_chinese_number_words(value: int) -> None:
    digits = "零一二三四五六七八九"
    tens, units = divmod(value, 10)
    written = digits[value] if value < 10 else ("" if tens == 1 else digits[tens]) + "十" + (digits[units] if units else "")
    assert read_words(written) == [value]


@EXAMPLES
@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"))
def test_letters_in_any_wrapping(predicted: str, gold: str) -> None:
    expected = "correct" if predicted == gold else "wrong"
    wrappings = (
        "{0}",
        "({0})",
        "{0}.",
        "**{0}**",
        "[{0}]",
        "{0})",
        "$\\text{{{0}}}$",
        "\\boxed{{{0}}}",
        "Option {0}",
        "选{0}",
        "{0}: something",
    )
    for wrapping in wrappings:
        for letter in (predicted, predicted.lower()) if wrapping not in ("选{0}", "{0}: something") else (predicted,):
            assert check(wrapping.format(letter), gold, "choice").outcome == expected, wrapping.format(letter)


@EXAMPLES
@given(TEXTS)
def test_guess_always_has_a_check(gold: str) -> None:
    assert guess_kind(gold) in CHECKS


REPEATED = [("x", unit) for unit in (*MARKERS, *WORDS, "1,", "1.", "(", "^(", "A ", "1/", "= 1 ", " ", "a.", ". ", "the ", "1 or ", "> 1")]
REPEATED += [
    ("x", unit)
    for unit in ("\\boxed{1}, ", "\\boxed{1} and ", "1' ", "A. ", "二个", "H_1", "1^+", "1! ", "1-", "may 1 ", "# A ", "```\n", "\nI hope ")
]
REPEATED += [("答案", "*"), ("Final answer", "*"), ("answer", " _"), ("A", " "), ("G", " "), ("(", "A, ")]


@pytest.mark.slow
@pytest.mark.parametrize(("begin", "unit"), REPEATED)
def test_long_repetitive_text_takes_linear_time(begin: str, unit: str) -> None:
    """Four times the text takes about four times as long (quadratic time: sixteen), however fast the machine is."""
    assert any(seconds(begin, unit, 16_000) < 9 * seconds(begin, unit, 4_000) + 0.05 for _attempt in range(3))


def seconds(begin: str, unit: str, length: int) -> float:
    """Processor time of everything that reads an answer."""
    text = f"{begin}{unit * (length // len(unit))}x"
    start = time.process_time()
    for style in STYLES:
        extract(text, style)
    for kind in KINDS:
        judge(text, "x+1", kind, options(choices=("x", "y")))
        judge("x+1", text, kind, options(choices=("x", "y")))
        judge("x+1", text[:-1], kind, options(choices=("x", "y")))
    return time.process_time() - start
