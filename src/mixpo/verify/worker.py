"""The program inside a formula worker: one JSON request per line in, one JSON reply per line out. Run as a file, never imported.

Uses math-verify's LaTeX grammar alone (its plain-expression reader evaluates Python) and a second, numeric opinion. Replies "wrong"
only when both say so. Imports nothing of mixpo, so that it starts fast and the parent's state cannot matter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import Any

MEMORY_LIMIT = 4 << 30
"""Address space; a formula that needs more fails alone and takes nothing else with it."""
GRACE_S = 2
"""The parent kills a worker at the time limit; should the parent be gone, the worker ends itself this much later."""
DIGITS = 40
EXACT = 1e-20
SAMPLES = ("17/13", "-31/19", "43/41", "-5/7", "101/37")
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
    _reply(replies, "ready", "")
    for line in sys.stdin:
        request = json.loads(line)
        _set_alarm(int(request["timeout_s"]) + 1 + GRACE_S)
        outcome, reason = judge(request["predicted"], request["gold"], request["tolerance"])
        _set_alarm(0)
        _reply(replies, outcome, reason)


def judge(predicted: str, gold: str, tolerance: float) -> tuple[str, str]:
    """(outcome, reason) of one comparison of two LaTeX formulas."""
    try:
        left, right = _parse(predicted), _parse(gold)
        if left is None or right is None:
            return "undecided", f"cannot parse the {'answer' if left is None else 'ground truth'}"
        return _compare(left, right, tolerance)
    # The libraries raise whatever their own bugs raise; all of it means "could not tell", and only here is that known.
    except Exception as error:
        return "undecided", f"formula comparison failed: {type(error).__name__}"


def _parse(latex: str) -> Any:
    """A sympy object, or None where only a part of the text could be read."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Basic, MatrixBase

    found = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    if not found or not isinstance(found[0], (Basic, MatrixBase)) or _drops_letters(latex, str(found[0])):
        return None
    return found[0]


def _drops_letters(latex: str, read: str) -> bool:
    """Whether the parser took letters for a unit and left them out, as of "2ab" and "k = 2mg". A unit behind a space is one."""
    rest = _NO_LETTERS.sub(" ", _UNIT.sub("", latex)).lower()
    return not {letter for letter in rest if "a" <= letter <= "z" and letter != "e"} <= set(read.lower())


def _compare(left: Any, right: Any, tolerance: float) -> tuple[str, str]:
    from math_verify import verify

    second = same_value(left, right, tolerance)
    if second is not None and _is_decisive(left, right):
        return ("correct", "values agree") if second else ("wrong", "values differ")
    first = verify(right, left, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    # Of two equations that were not looked at in numbers, such as dy/dx = 2x and dy/dx = 3x, the first opinion proves nothing.
    if first and (second or (second is None and not _are_equations(left, right))):
        return "correct", "formulas agree"
    if not first and second is False:
        return "wrong", "formulas differ"
    return "undecided", "two ways of comparing disagree"


def same_value(left: Any, right: Any, tolerance: float) -> bool | None:
    """The second opinion: compare values at sample points, part by part. None where there is nothing to evaluate."""
    from sympy import Equality, Expr, FiniteSet, Interval, MatrixBase, Tuple

    left, right = _assigned(left, right), _assigned(right, left)
    left, right = _solution_set(left), _solution_set(right)
    if isinstance(left, Equality) and isinstance(right, Equality):
        return _same_equation(left, right, tolerance)
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
    if isinstance(left, Expr) != isinstance(right, Expr):
        return _differs_in_size(left, right)
    return None


def _assigned(one: Any, other: Any) -> Any:
    """ "x = 5" and "f(x) = x^2" stand for their right-hand side, beside something that is no equation."""
    from sympy import Equality, Symbol
    from sympy.core.function import AppliedUndef

    if isinstance(one, Equality) and not isinstance(other, Equality) and isinstance(one.lhs, (Symbol, AppliedUndef)):
        return one.rhs
    return one


def _point(one: Any, other: Any) -> Any:
    """ "(2, 3)" is read as an interval and "(3, 2)" as a point; beside a point both are points."""
    from sympy import Interval, Tuple

    if isinstance(one, Interval) and isinstance(other, Tuple) and one.left_open and one.right_open:
        return Tuple(one.start, one.end)
    return one


def _solution_set(value: Any) -> Any:
    """An inequality in one symbol, or two of them at once ("1 < x < 2"), as the set that it describes, if sympy can solve it."""
    from sympy import And, Equality
    from sympy.core.relational import Relational

    if not isinstance(value, (Relational, And)) or isinstance(value, Equality) or len(value.free_symbols) != 1:
        return value
    try:
        return value.as_set()
    except NotImplementedError:
        return value


def _same_equation(left: Any, right: Any, tolerance: float) -> bool | None:
    """Two equations are the same when their sides' differences are proportional: the ratio is one constant at every point."""
    differences = (left.lhs - left.rhs, right.lhs - right.rhs)
    values = [pair for point in _points(*differences) if (pair := _values(differences, point)) is not None]
    values = [(one, other) for one, other in values if abs(one) > EXACT and abs(other) > EXACT]
    if len(values) < AGREEING_SAMPLES:
        return None
    return all(_near(one * values[0][1], other * values[0][0], max(tolerance, EXACT)) for one, other in values)


def _same_expression(left: Any, right: Any, tolerance: float) -> bool | None:
    from sympy import Float

    if left == right:
        return True
    if left.is_infinite or right.is_infinite:
        return False if left.is_extended_real and right.is_extended_real else None
    # Only rounded decimals need a tolerance; exact formulas that nearly agree are different.
    limit = tolerance if left.atoms(Float) or right.atoms(Float) else EXACT
    points = _points(left, right)
    values = [pair for point in points if (pair := _values((left, right), point)) is not None]
    if any(not _near(one, other, limit) for one, other in values):
        return False
    return True if len(values) >= min(AGREEING_SAMPLES, len(points)) else None


def _same_set(left: list[Any], right: list[Any], tolerance: float) -> bool | None:
    """Order does not matter; each element needs a partner of its own."""
    if len(left) != len(right):
        return False
    for element in left:
        opinions = [same_value(element, other, tolerance) for other in right]
        if True in opinions:
            right = [other for position, other in enumerate(right) if position != opinions.index(True)]
        else:
            return None if None in opinions else False
    return True


def _all_same(left: list[Any], right: list[Any], tolerance: float) -> bool | None:
    opinions = [same_value(one, other, tolerance) for one, other in zip(left, right, strict=False)]
    if False in opinions:
        return False
    return None if None in opinions else True


def _differs_in_size(left: Any, right: Any) -> bool | None:
    """One value is not several values."""
    from sympy import FiniteSet

    several = left if isinstance(left, FiniteSet) else right
    return False if isinstance(several, FiniteSet) and len(several.args) > 1 else None


def _points(*expressions: Any) -> list[dict[Any, Any]]:
    """Values for the symbols by name, different for each symbol and point; one empty point when there are no symbols."""
    from sympy import Rational

    symbols = sorted({symbol for expression in expressions for symbol in expression.free_symbols}, key=str)
    if not symbols:
        return [{}]
    names = sorted({str(symbol) for symbol in symbols})
    return [
        {symbol: Rational(sample) + Rational(names.index(str(symbol)), 3 + number) for symbol in symbols}
        for number, sample in enumerate(SAMPLES)
    ]


def _values(expressions: tuple[Any, Any], point: dict[Any, Any]) -> tuple[complex, complex] | None:
    """Both values at a point as high-precision numbers, or None where either is undefined."""
    found = [expression.subs(point).evalf(DIGITS) for expression in expressions]
    if all(value.is_number and value.is_finite and not value.free_symbols for value in found):
        return found[0], found[1]
    return None


def _near(one: Any, other: Any, limit: float) -> bool:
    return bool(abs(one - other) <= limit * max(abs(one), abs(other), EXACT))


def _is_decisive(left: Any, right: Any) -> bool:
    """Constants, and inequalities that were solved: there the second opinion is exact, and math-verify's rounding is not wanted."""
    from sympy import And, Expr, Set
    from sympy.core.relational import Relational

    if isinstance(left, Expr) and isinstance(right, Expr):
        return not left.free_symbols and not right.free_symbols
    solved = _solution_set(left), _solution_set(right)
    return all(isinstance(value, Set) for value in solved) and any(isinstance(value, (Relational, And)) for value in (left, right))


def _are_equations(left: Any, right: Any) -> bool:
    from sympy import Equality

    return isinstance(left, Equality) and isinstance(right, Equality)


def _reply(replies: Any, outcome: str, reason: str) -> None:
    replies.write(json.dumps({"outcome": outcome, "reason": reason}) + "\n")
    replies.flush()


def _set_alarm(seconds: int) -> None:
    """Without a handler the alarm ends the process even inside compiled code. Windows has no alarm; there the parent alone watches."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


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
