"""What "auto" takes an answer for, and what an answer of a stated kind must be."""

import pytest

from mixpo.verify import CHECKS, check, guess_kind
from mixpo.verify.kinds import fits

KINDS = {
    "choice": ["A", "(b)", "(C)", "J."],
    "yes_no": ["yes", "No.", "否", "True.", "false", "对", "错", "正确"],
    "number": [
        "3/4",
        "½",
        "1 1/2",
        r"\frac{3}{4}",
        "$5$",
        "12.",
        "5 years",
        "9 V",
        "5元",
        "2^10",
        "5/8 inch",
        "-7",
        "12。",
        "1,234.5",
        "50%",
    ],
    "formula": ["2x", "2v", "x+1", "sqrt(3)", "e^x", "{1,2}", "x=3 or x=-3", r"\sqrt{2}", "(1, 2)", "$a$", r"\frac{x}{4}"],
    "text": [
        "b",
        "x",
        "K",
        "2024/05/06",
        "(red, blue)",
        "(top, 3)",
        "12 o'clock",
        "4 x 4",
        "2/3 cup",
        "3D",
        "7 b",
        "maybe",
        "none of A",
        "3:45",
        "seven",
        "红色",
    ],
}


@pytest.mark.parametrize(("kind", "gold"), [(kind, gold) for kind, golds in KINDS.items() for gold in golds])
def test_guess(kind: str, gold: str) -> None:
    assert guess_kind(gold) == kind
    # Guessed or stated, the verdict is the same.
    assert check("17", gold).outcome == check("17", gold, kind).outcome != "correct"


def test_choices_and_nothing() -> None:
    assert guess_kind("red", ["red", "blue"]) == "choice"
    assert guess_kind(None) == "none"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("number", ["5", "two", "5 apples", "1/2", "40%"], ["red", "2 or 3", "", "3 + 4"]),
        ("yes_no", ["yes", "不是", "Yes, it is", "true"], ["2", "maybe", "yes and no"]),
        ("choice", ["B", "(c)"], ["red", "Z", "AB"]),
        ("text", ["anything"], []),
        ("formula", ["anything"], []),
    ],
)
def test_stated_kinds(kind: str, good: list[str], bad: list[str]) -> None:
    assert kind in CHECKS
    assert all(fits(kind, answer) for answer in good)
    assert not any(fits(kind, answer) for answer in bad)
