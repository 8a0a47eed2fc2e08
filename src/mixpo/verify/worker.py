"""The program inside a formula worker: one JSON request per line in, one JSON reply per line out. Run as a file, never imported.

Parses with math-verify's LaTeX grammar alone (its plain-expression reader evaluates Python) and compares with SymPy. "correct" needs
a proof, or decimals within the tolerance; "wrong" needs values that differ at every sample point; all else is undecided. Imports
nothing of mixpo, so that it starts fast and the parent's state cannot matter.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from typing import Any

MEMORY_LIMIT = 4 << 30
"""Address space; a formula that needs more fails alone and takes nothing else with it."""
GRACE_S = 2
"""The parent kills a worker at the wall-clock limit; should the parent be gone, the worker ends itself this much later."""
DIGITS = 20
"""Digits to which a difference is evaluated; SymPy raises its working precision until they are right, or gives up."""
SAMPLES = ("17/13", "3/19", "43/41", "5/7", "101/37")
"""Values of letters: positive numbers, as lengths and counts are."""
AGREEING_SAMPLES = 2

_NO_LETTERS = re.compile(
    r"\\(?:begin|end|text(?:bf|it|rm)?|mathrm|mbox|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])(?:and|or|mod|gcd|lcm)(?![a-zA-Z])"
)
"""Commands, words and environments, which are no letters of a formula."""
_UNIT = re.compile(r"(?<=[\w)}])\s+[mgshlL]$|(?<=\\pi)\s+[mgshlL]$")


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    _limit_memory()
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        _reply(replies, "undecided", f"math-verify cannot be imported: {error}")
        return
    judge("\\frac{x^2-1}{x-1}", "x+1", 0.0)  # grammars and the rest of SymPy are loaded before the clock runs
    _reply(replies, "ready", "")
    for line in sys.stdin:
        request = json.loads(line)
        _set_limits(request["timeout_s"], request["wall_s"])
        outcome, reason = judge(request["predicted"], request["gold"], request["tolerance"])
        _set_limits(0, 0)
        _reply(replies, outcome, reason)


def judge(predicted: str, gold: str, tolerance: float) -> tuple[str, str]:
    """(outcome, reason) of one comparison of two LaTeX formulas."""
    try:
        left, right = parse(predicted), parse(gold)
        if left is None or right is None:
            return "undecided", f"cannot parse the {'answer' if left is None else 'ground truth'}"
        same = compare(left, right, tolerance)
    # The libraries raise whatever their own bugs raise; all of it means "could not tell", and only here is that known.
    except Exception as error:
        return "undecided", f"formula comparison failed: {type(error).__name__} {error}"[:200]
    if same is None:
        return "undecided", "neither shown to be equal nor to differ"
    return ("correct", "formulas agree") if same else ("wrong", "formulas differ")


@functools.lru_cache(maxsize=256)
def parse(latex: str) -> Any:
    """A SymPy object, or None where only a part of the text could be read. All answers to a question meet the same ground truth."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_latex
    from sympy import Basic, MatrixBase

    parsed = parse_latex(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    if not parsed or not isinstance(parsed[0], (Basic, MatrixBase)) or _drops_letters(latex, str(parsed[0])):
        return None
    return parsed[0]


def _drops_letters(latex: str, read: str) -> bool:
    """Whether the parser took letters for a unit and left them out, as of "2ab" and "k = 2mg". A unit behind a space is one."""
    rest = _NO_LETTERS.sub(" ", _UNIT.sub("", latex)).lower()
    return not {letter for letter in rest if "a" <= letter <= "z" and letter != "e"} <= set(read.lower())


def compare(left: Any, right: Any, tolerance: float) -> bool | None:
    """Whether two SymPy objects are the same, part by part; None where that cannot be told."""
    from sympy import Equality, Expr, FiniteSet, Interval, MatrixBase, Tuple

    left, right = _solved(_assigned(left, right)), _solved(_assigned(right, left))
    if left == right:
        return True
    if isinstance(left, Equality) and isinstance(right, Equality):
        return _same_equation(left, right)
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
        return left.shape == right.shape and _all_same(list(left), list(right), tolerance)
    if isinstance(left, FiniteSet) and isinstance(right, FiniteSet):
        return _same_set(list(left.args), list(right.args), tolerance)
    if isinstance(left, Interval) and isinstance(right, Interval):
        if (left.left_open, left.right_open) != (right.left_open, right.right_open):
            return False
        return _all_same([left.start, left.end], [right.start, right.end], tolerance)
    left, right = _point(left, right), _point(right, left)
    if isinstance(left, Tuple) and isinstance(right, Tuple):
        return len(left) == len(right) and _all_same(list(left), list(right), tolerance)
    if isinstance(left, Expr) and isinstance(right, Expr):
        return _same_expression(left, right, tolerance)
    several = left if isinstance(left, FiniteSet) else right
    if isinstance(left, Expr) != isinstance(right, Expr) and isinstance(several, FiniteSet) and len(several.args) > 1:
        return False  # one value is not several values
    return None


def _assigned(one: Any, other: Any) -> Any:
    """ "x = 5" and "f(x) = x^2" stand for their right-hand side, next to something that is no equation."""
    from sympy import Equality, Symbol
    from sympy.core.function import AppliedUndef

    if isinstance(one, Equality) and not isinstance(other, Equality) and isinstance(one.lhs, (Symbol, AppliedUndef)):
        return one.rhs
    return one


def _point(one: Any, other: Any) -> Any:
    """ "(2, 3)" is read as an interval and "(3, 2)" as a point; next to a point both are points."""
    from sympy import Interval, Tuple

    if isinstance(one, Interval) and isinstance(other, Tuple) and one.left_open and one.right_open:
        return Tuple(one.start, one.end)
    return one


def _solved(value: Any) -> Any:
    """An inequality in one symbol, or two of them at once ("1 < x < 2"), as the set that it describes, if SymPy can solve it."""
    from sympy import And, Equality
    from sympy.core.relational import Relational

    if not isinstance(value, (Relational, And)) or isinstance(value, Equality) or len(value.free_symbols) != 1:
        return value
    try:
        return value.as_set()
    except NotImplementedError:
        return value


def _same_equation(left: Any, right: Any) -> bool | None:
    """Two equations are the same when their sides' differences are proportional once denominators and repeated factors are gone."""
    from sympy import PolynomialError, cancel, fraction, sqf_part, together

    sides = [fraction(together(equation.lhs - equation.rhs))[0] for equation in (left, right)]
    try:
        return not cancel(sqf_part(sides[0]) / sqf_part(sides[1])).free_symbols
    except PolynomialError:
        return True if not cancel(sides[0] / sides[1]).free_symbols else None


def _same_expression(left: Any, right: Any, tolerance: float) -> bool | None:
    """Only rounded decimals need a tolerance; exact formulas that nearly agree are different."""
    from sympy import Float

    if left.is_infinite or right.is_infinite:
        return False if left.is_extended_real and right.is_extended_real else None
    points = _points(left, right)
    if left.atoms(Float) or right.atoms(Float):
        near = [_near(left.subs(point), right.subs(point), tolerance) for point in points]
        reported = [value for value in near if value is not None]
        return all(reported) if len(reported) >= min(AGREEING_SAMPLES, len(points)) and len(set(reported)) == 1 else None
    differences = [value for point in points if (value := _differs((left - right).subs(point))) is not None]
    if differences and all(differences):
        return False
    if any(differences) or not _is_zero(left - right):
        return None
    # What holds for positive letters alone, as √(x²) = x does, is left to people.
    return None if any(_differs((left - right).subs(point)) for point in _points(left, right, sign=-1)) else True


def _differs(difference: Any) -> bool | None:
    """Whether a constant is shown not to be zero; None where that takes more digits than SymPy tries, or it has no value."""
    from sympy.core.evalf import PrecisionExhausted

    try:
        value = difference.evalf(DIGITS, strict=True)
    except PrecisionExhausted:
        return False
    if not value.is_number or not value.is_finite:
        return None
    return not value.is_zero


def _is_zero(difference: Any) -> bool:
    """Whether a difference is shown to be zero, its letters taken to be positive."""
    from sympy import Symbol, expand, simplify, sqrtdenest

    positive = {symbol: Symbol(symbol.name, positive=True) for symbol in difference.free_symbols}
    difference = difference.subs(positive)
    for rewrite in (expand, simplify, lambda value: simplify(sqrtdenest(value))):
        if rewrite(difference) == 0:
            return True
    return not difference.free_symbols and difference.equals(0) is True


def _near(left: Any, right: Any, tolerance: float) -> bool | None:
    one, other = left.evalf(DIGITS), right.evalf(DIGITS)
    if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
        return None
    return bool(abs(one - other) <= tolerance * max(abs(one), abs(other)))


def _same_set(left: list[Any], right: list[Any], tolerance: float) -> bool | None:
    """Order does not matter; each element needs a partner of its own."""
    if len(left) != len(right):
        return False
    for element in left:
        opinions = [compare(element, other, tolerance) for other in right]
        if True in opinions:
            right = [other for position, other in enumerate(right) if position != opinions.index(True)]
        else:
            return None if None in opinions else False
    return True


def _all_same(left: list[Any], right: list[Any], tolerance: float) -> bool | None:
    opinions = [compare(one, other, tolerance) for one, other in zip(left, right, strict=False)]
    if False in opinions:
        return False
    return None if None in opinions else True


def _points(*expressions: Any, sign: int = 1) -> list[dict[Any, Any]]:
    """Values for the symbols by name, different for each symbol and point; one empty point when there are no symbols."""
    from sympy import Rational

    symbols = sorted({symbol for expression in expressions for symbol in expression.free_symbols}, key=str)
    if not symbols:
        return [{}]
    names = sorted({str(symbol) for symbol in symbols})
    return [
        {symbol: sign * (Rational(sample) + Rational(names.index(str(symbol)), 3 + number)) for symbol in symbols}
        for number, sample in enumerate(SAMPLES)
    ]


def _reply(replies: Any, outcome: str, reason: str) -> None:
    replies.write(json.dumps({"outcome": outcome, "reason": reason}) + "\n")
    replies.flush()


def _set_limits(processor_s: float, wall_s: float) -> None:
    """Without a handler either signal ends the process even inside compiled code. Windows has neither; there the parent alone watches."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, processor_s)
        signal.setitimer(signal.ITIMER_REAL, wall_s + GRACE_S if wall_s else 0)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ValueError, OSError):
        return  # macOS refuses; the time limit still holds


if __name__ == "__main__":
    main()
