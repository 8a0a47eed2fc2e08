"""The values of formulas: against values worked out here, and never sure where there are two readings."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpo.verify import check
from mixpo.verify.values import LETTERS, differ, value


@pytest.mark.parametrize(
    ("latex", "number"),
    [
        (r"2\sqrt{3}", 2 * math.sqrt(3)),
        (r"\frac{\pi}{4}", math.pi / 4),
        (r"-\frac{1}{2}", -0.5),
        (r"\sqrt[3]{8}", 2.0),
        (r"3\pi-2\sqrt{5}+1", 3 * math.pi - 2 * math.sqrt(5) + 1),
        (r"\left(1+\sqrt{2}\right)^2", (1 + math.sqrt(2)) ** 2),
        (r"2^{-3}", 0.125),
        (r"-2^2", -4.0),
        (r"2\cdot 3\times 4", 24.0),
        ("8/2/2", 2.0),
        ("(1)(2)", 2.0),
        (".5", 0.5),
        (r"\frac{\sqrt{2}}{2}", math.sqrt(0.5)),
        ("2x", 2 * LETTERS["x"]),
        ("x(y+1)^2", LETTERS["x"] * (LETTERS["y"] + 1) ** 2),
        (r"\frac{ab}{2}-\pi r^2", LETTERS["a"] * LETTERS["b"] / 2 - math.pi * LETTERS["r"] ** 2),
    ],
)
def test_values(latex: str, number: float) -> None:
    assert value(latex) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(
    "latex",
    [
        "", "x2", "e^x", "2i", "x=3", "x_1", "f'", "1/2x", r"\sqrt{1-x}", "10^{12}+x-10^{12}", "(x+1)^2-x^2-2x-1", "10^{20}(x-x)",
        r"1\frac{1}{2}", r"1/2\pi", "2 3", r"\log 2", r"\frac12", "1/0", "2^3^4", "9^{999}", r"\sqrt{-1}", "(1", "1)", "2,5",
        "10^10^10", "(" * 50 + "1" + ")" * 50, "1" * 300, r"\sin{1}", "3:4", r"30^{\circ}", "__import__('os')", "5!", "½", "٣",
    ],
)  # fmt: skip
def test_what_has_no_value_here(latex: str) -> None:
    assert value(latex) is None


@pytest.mark.parametrize(
    ("left", "right", "tolerance", "apart"),
    [
        (r"\sqrt{2}", r"\sqrt{3}", 1e-6, True),
        (r"\sqrt{8}", r"2\sqrt{2}", 1e-6, False),
        (r"\sqrt{2}", "1.41421356", 1e-6, False),
        (r"\sqrt{2}", "1.5", 0.1, False),
        ("x", r"\sqrt{2}", 1e-6, True),
        ("(x+1)^2", "x^2+2x+1", 0.0, False),
        ("(x+1)^2", "x^2+1", 1e-6, True),
        (r"\sqrt{x^2}", "x", 0.0, False),
        (r"\frac{x^2-1}{x-1}", "x+1", 0.0, False),
        ("(x+1)^{20}-(x+1)^{20}+x", "x", 0.0, False),
        ("xy", "yx", 0.0, False),
        ("(x+1)^2-x^2-2x-1", "0", 0.0, False),
        ("0", "0", 1e-6, False),
        ("-1", "1", 1e-6, True),
    ],
)
def test_plainly_different(left: str, right: str, tolerance: float, apart: bool) -> None:
    assert differ(left, right, tolerance) == differ(right, left, tolerance) == apart


def test_letters_stand_for_different_numbers() -> None:
    places = sorted(LETTERS.values())
    assert all(1 < place < 2 for place in places)
    assert min(after - before for before, after in itertools.pairwise(places)) > 1e-3


@pytest.mark.slow
def test_what_differs_here_is_never_equal_to_sympy() -> None:
    """Expressions and rewritten forms of them by sympy, which says what is equal: equal ones must not differ here, and others do."""
    x, y = sympy.symbols("x y", positive=True)
    rng = random.Random(0)
    seen: Counter[bool] = Counter()
    for _ in range(60):
        a, b, c = rng.randint(1, 9), rng.randint(-9, 9), rng.randint(1, 4)
        one = rng.choice([(a * x + b) ** c, a * x * (y + b), (x**2 - b**2) / (x + a), sympy.sqrt(a) * x + b * y, (x + y) ** c / a])
        for other in (sympy.expand(one), sympy.factor(one), sympy.together(one), one + 1, one * 2, one.subs(x, y)):
            apart = differ(sympy.latex(one), sympy.latex(other), 0.0)
            seen[apart] += 1
            assert not apart or sympy.simplify(one - other) != 0
    assert min(seen[True], seen[False]) > 100


@given(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from([*"123xyz+-/^(){}[]. ", "\\pi", "\\frac", "\\sqrt", "\\cdot"])).map("".join))
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_never_raises_and_never_differs_from_itself(text: str) -> None:
    assert value(text) is None or math.isfinite(value(text) or 0.0)
    assert not differ(text, text, 0.0)


def test_the_check_agrees_without_computer_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.verify.pool.FormulaPool.compare", lambda *_args: pytest.fail("computer algebra was asked"))
    assert check(r"3\sqrt{2}", r"2\sqrt{3}", "formula").outcome == "wrong"
    assert check("x^2+2x", "x^2+3x", "formula").outcome == "wrong"
    # A convention that is read in two ways stays undecided.
    assert check(r"\frac{1}{2}\pi", r"\frac{\pi}{3}", "formula").outcome == "undecided"
