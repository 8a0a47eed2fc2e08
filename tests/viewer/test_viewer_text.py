"""Formulas are found, prices are not, and a difference never cuts a formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpo.report.text_diff import DiffSpan, difference
from mixpo.viewer.text import TextPart, brief, formulas, parts, plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a $x$ b", [("inline", "x")]),
        ("$x^2$, $y$", [("inline", "x^2"), ("inline", "y")]),
        ("$$a\n+b$$", [("display", "a\n+b")]),
        (r"\(a\) and \[b\]", [("inline", "a"), ("display", "b")]),
        (r"so \boxed{\frac{1}{2}}.", [("inline", r"\boxed{\frac{1}{2}}")]),
        ("costs $5 and $6", []),
        ("from $5 to $6.", []),
        ("US$ 5 or A$3$", []),
        ("$ x $", []),
        (r"so $ \angle A $, $ x = 3 $.", [("inline", r" \angle A "), ("inline", " x = 3 ")]),
        ("$ 5 and $ 6", []),
        ("$ 5 = 4 euros and $ 6", []),
        (r"\begin{align} a &= b \\ &= 3 \end{align} is", [("display", r"\begin{align} a &= b \\ &= 3 \end{align}")]),
        ("\\begin{gather*}\na\n\\end{gather*}", [("display", "\\begin{gather*}\na\n\\end{gather*}")]),
        (r"$\begin{bmatrix} 1 \end{bmatrix}$", [("inline", r"\begin{bmatrix} 1 \end{bmatrix}")]),
        (r"\begin{itemize} \item a \end{itemize}, \begin{align} a \end{cases}", []),
        ("$x", []),
        (r"\$5 and \$6", []),
        ("$" + "x" * 3000 + "$", []),
        ("答案是$\\frac{1}{2}$。", [("inline", r"\frac{1}{2}")]),
    ],
)
def test_formulas(text: str, found: list[tuple[str, str]]) -> None:
    assert [(how, tex) for _, _, how, tex in formulas(text)] == found


def test_a_formula_that_differs_is_marked_as_one() -> None:
    left, right = difference("so $x = 5$ it is", "so $x = 7$ it was")
    assert TextPart("own", "$x = 5$", "inline", "x = 5") in parts(left)
    assert TextPart("own", "$x = 7$", "inline", "x = 7") in parts(right)


def test_a_formula_that_is_shared_is_not_marked() -> None:
    left, _ = difference("by $a+b$ it is one", "by $a+b$ it is two")
    assert TextPart("same", "$a+b$", "inline", "a+b") in parts(left)


@given(st.lists(st.tuples(st.sampled_from(["same", "own", "kept"]), st.text("$ab\\()[]{}boxed 5\n中")), max_size=6))
def test_no_letter_is_lost(made: list[tuple[str, str]]) -> None:
    pieces = [DiffSpan(kind, text) for kind, text in made]  # type: ignore[arg-type]
    assert "".join(part.text for part in parts(pieces)) == "".join(text for _, text in made)


def test_a_hostile_text_takes_no_time() -> None:
    begun = ("$", "\\(", "\\boxed{", "$$a", "\\begin{align}", "$ =", "$ x\n")
    for text in (*(start * 5_000 for start in begun), "$" * 20_000, "$ " + "=" * 20_000):
        assert "".join(part.text for part in plain(text)) == text


def test_the_beginning_of_a_question() -> None:
    assert brief("<image><image>\nHow many\n  shapes?") == "How many shapes?"
    assert len(brief("word " * 100)) == 120
