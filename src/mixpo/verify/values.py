"""The value of a formula (numbers, pi, letters, roots, fractions, powers), so that plainly different ones need no computer algebra.

Letters stand for fixed positive numbers: formulas that are equal everywhere are equal there, so that a difference there proves them
different. Shy: whatever can be read in two ways, or is not known here, has no value. Python parses the signs; nothing is executed.
"""

from __future__ import annotations

import ast
import math
import operator
import re

MAX_LENGTH = 200
FAR = 1e-6
"""A relative difference above it is no rounding."""
CANCELLED = 1e6
"""A sum that is smaller than a part of it by more than this factor may be rounding, and has no value."""
MAX_POWER = 100
LETTERS = {letter: 1 + 0.6180339887498949 * number % 1 for number, letter in enumerate("abcdfghjklmnopqrstuvwxyz", start=1)}
"""Values of letters: between 1 and 2, far from each other. Case is left to the parser. Not e and i, which are numbers to some."""

_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\(?:frac|sqrt|pi|times|cdot|div)(?![a-zA-Z])|[-+^/(){}\[\]]|[a-zA-Z])", re.ASCII)
_IGNORED = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,;! ]|~")
_MIXED = re.compile(r"\d\s*\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}")
"""1 1/2 or 1 times 1/2."""
_PYTHON = {"{": "(", "}": ")", "^": "**", "\\times": "*", "\\cdot": "*", "\\div": "/"}
_BEGINS, _ENDS = re.compile(r"[\w.({\[]|\\(?:frac|sqrt|pi)"), re.compile(r"[\w.)}\]]|\\pi")
"""Tokens that begin or end a factor; two side by side are a product, which "@" stands for until it is clear that it may be one."""
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.MatMult: operator.mul, ast.Div: operator.truediv}


class _NoValueError(Exception):
    """The formula is not one that can be read here."""


def differ(left: str, right: str, tolerance: float) -> bool:
    """Whether both LaTeX formulas have plainly different values. False also means that it cannot be told here."""
    values = value(left), value(right)
    if values[0] is None or values[1] is None:
        return False
    return abs(values[0] - values[1]) > max(FAR, tolerance) * max(abs(values[0]), abs(values[1]))


def value(latex: str) -> float | None:
    """The value of a formula with its letters at `LETTERS`, or None."""
    if len(latex) > MAX_LENGTH or _MIXED.search(latex):
        return None
    try:
        result = _read(ast.parse(_as_python(_IGNORED.sub(" ", latex).strip()), mode="eval").body)
    except (_NoValueError, ArithmeticError, SyntaxError, RecursionError):
        return None
    return result if math.isfinite(result) else None


def _as_python(latex: str) -> str:
    parts, last, position = [], "", 0
    while position < len(latex):
        if (match := _TOKEN.match(latex, position)) is None:
            raise _NoValueError
        token, position = match.group(1), match.end()
        if last and _ENDS.match(last) and _BEGINS.match(token) and last + token not in ("}{", "]{"):
            if token[0] in ".0123456789":
                raise _NoValueError  # "2 3" is no product that anybody writes
            parts.append("@")
        parts.append(_PYTHON.get(token, token.removeprefix("\\")))
        last = token
    return " ".join(parts)


def _read(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id="pi"):
            return math.pi
        case ast.Name(id=name) if name.lower() in LETTERS:
            return LETTERS[name.lower()]
        case ast.UnaryOp(op=ast.USub(), operand=inside):
            return -_read(inside)
        case ast.List(elts=[inside]):
            return _read(inside)
        case ast.Call(func=ast.Call(func=ast.Name(id="frac"), args=[top]), args=[bottom]):
            return _read(top) / _read(bottom)
        case ast.Call(func=ast.Name(id="sqrt"), args=[inside]):
            return _power(_read(inside), 0.5)
        case ast.Call(func=ast.Subscript(value=ast.Name(id="sqrt"), slice=degree), args=[inside]):
            return _power(_read(inside), 1 / _read(degree))
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent) if not _is(exponent, ast.Pow):
            return _power(_read(base), _read(exponent))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS and not _is_ambiguous(node):
            values = _read(left), _read(right)
            result: float = _OPERATORS[type(sign)](*values)
            if isinstance(sign, (ast.Add, ast.Sub)) and max(map(abs, values)) > CANCELLED * abs(result):
                raise _NoValueError
            return result
    raise _NoValueError


def _is(node: ast.expr, *signs: type[ast.operator]) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, signs)


def _is_ambiguous(node: ast.BinOp) -> bool:
    """A product without a sign behind a quotient: "1/2 pi" divides by 2 or by 2 pi."""
    left = node.left
    while isinstance(left, ast.BinOp) and _is(left, ast.Mult, ast.MatMult):
        left = left.left
    return isinstance(node.op, ast.MatMult) and _is(left, ast.Div)


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_POWER or (base < 0 and not exponent.is_integer()):
        raise _NoValueError
    return float(base**exponent)
