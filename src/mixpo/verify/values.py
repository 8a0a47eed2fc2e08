"""The value of a formula (numbers, pi, letters, roots, fractions, powers), so that plainly different ones need no computer algebra.

Letters stand for fixed positive numbers: formulas that are equal everywhere are equal there, so that a difference there proves them
different. Shy: whatever can be read in two ways, or is not known here, has no value. Never evaluates text as a program.
"""

from __future__ import annotations

import math
import re

MAX_LENGTH = 200
MAX_DEPTH = 20
FAR = 1e-6
"""A relative difference above it is no rounding."""
CANCELLED = 1e6
"""A sum that is smaller than a part of it by more than this factor may be rounding, and has no value."""
LETTERS = {letter: 1 + 0.6180339887498949 * number % 1 for number, letter in enumerate("abcdfghjklmnopqrstuvwxyz", start=1)}
"""Values of letters: between 1 and 2, far from each other. Case is left to the parser. Not e and i, which are numbers to some."""

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(\\[a-zA-Z]+)|([-+^/(){}\[\]]|[a-zA-Z]))")
_IGNORED = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,;! ]|~")
_MIXED = re.compile(r"\d\s*\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}")
"""1 1/2 or 1 times 1/2."""
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_TIMES = ("\\times", "\\cdot")


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
        reader = _Reader(_tokens(_IGNORED.sub(" ", latex)))
        result = reader.sum(0)
    except (_NoValueError, ArithmeticError, ValueError):
        return None
    return result if not reader.rest and math.isfinite(result) else None


def _tokens(latex: str) -> list[str]:
    tokens, position, latex = [], 0, latex.strip()
    while position < len(latex):
        match = _TOKEN.match(latex, position)
        if match is None:
            raise _NoValueError
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class _Reader:
    """Recursive descent over tokens; `rest` holds those still to come, the next one last."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens[::-1]

    def sum(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise _NoValueError
        negative = self._take("-")
        total = self._product(depth)
        total = -total if negative else total
        largest = 0.0
        while self._next() in ("+", "-"):
            sign = -1 if self.rest.pop() == "-" else 1
            term = self._product(depth)
            largest = max(largest, abs(total), abs(term))
            total += sign * term
        if largest > CANCELLED * abs(total):
            raise _NoValueError
        return total

    def _product(self, depth: int) -> float:
        result, divided = self._power(depth), False
        while (token := self._next()) is not None and token not in ("+", "-", ")", "}", "]"):
            if token in _TIMES:
                self.rest.pop()
                result *= self._power(depth)
            elif token in ("/", "\\div"):
                self.rest.pop()
                result, divided = result / self._power(depth), True
            elif divided or token[0].isdigit():
                raise _NoValueError  # "1/2 pi" divides by 2 or by 2 pi; "2 3" is no product that anybody writes
            else:
                result *= self._power(depth)
        return result

    def _power(self, depth: int) -> float:
        base = self._factor(depth)
        if not self._take("^"):
            return base
        exponent = self._group(depth) if self._next() == "{" else self._factor(depth)
        if self._next() == "^" or abs(exponent) > 100:
            raise _NoValueError
        return _real(base**exponent)

    def _factor(self, depth: int) -> float:
        token = self._next()
        if token in ("(", "{"):
            return self._group(depth)
        if token is None:
            raise _NoValueError
        self.rest.pop()
        if token[0].isdigit() or token[0] == ".":
            return float(token)
        if token.lower() in LETTERS:
            return LETTERS[token.lower()]
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            top = self._group(depth)
            return top / self._group(depth)
        if token == "\\sqrt":
            degree = self._group(depth) if self._next() == "[" else 2.0
            return _real(self._group(depth) ** (1 / degree))
        raise _NoValueError

    def _group(self, depth: int) -> float:
        opening = self._next()
        if opening not in _CLOSING:
            raise _NoValueError
        self.rest.pop()
        inside = self.sum(depth + 1)
        if not self._take(_CLOSING[opening]):
            raise _NoValueError
        return inside

    def _next(self) -> str | None:
        return self.rest[-1] if self.rest else None

    def _take(self, token: str) -> bool:
        if self._next() != token:
            return False
        self.rest.pop()
        return True


def _real(number: float | complex) -> float:
    if isinstance(number, complex):
        raise _NoValueError
    return number
