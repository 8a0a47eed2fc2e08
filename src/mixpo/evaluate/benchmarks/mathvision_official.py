"""MATH-V's own rule: the extraction of its `evaluate.py`, and its comparison to two decimals. Its `eval` of model text is replaced.

Here numbers, fractions, roots, pi and arithmetic have a value; anything else, which the script would run as Python, has none.
"""

from __future__ import annotations

import math
import re

LETTERS = "ABCDE"
ANNOUNCEMENTS = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
"""In this order, each also with a capital T."""
_BOX = re.compile(r"oxed\{(.*)\}", re.DOTALL)
_LATEX = ("\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ")
_REMOVED = (*_LATEX, "{m}^3", "m^3", "{units}", "units", "{km}", "km", "\\!", "\\$", "$")
"""What is deleted from an answer, in this order, once spaces and line breaks are gone."""
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[a-z]+|.", re.DOTALL)
_SIGNS = {"\\cdot": "*", "\\times": "*", "\\div": "/", ":": "/"}
_BASE, _EXPONENT = 1000, 5000
"""Powers of larger numbers are not exact, and have no value where they overflow."""
_LONGEST = 300
"""A longer answer has no value."""


def extract_official(response: str) -> str:
    """The short answer that the script takes from a response."""
    text = response.strip()
    for letter in LETTERS:
        ends = (f" {letter}.", f" ({letter}).")
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith(ends) or text.startswith(starts):
            text = letter
    last = text.rpartition("is ")[2].rstrip(".")
    if _is_float(last):
        text = last
    if "oxed{" not in text:
        for phrase in (form for plain in ANNOUNCEMENTS for form in (plain, plain.replace("the", "The"))):
            if phrase in text:
                text = text.rpartition(phrase)[2].strip().split("\n")[0].split(". ")[0]
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.rpartition("oxed{")[2]
    answer = _normalised(text)
    for letter in LETTERS.lower():
        answer = answer.replace(f"({letter})", letter)
    for letter in LETTERS.lower():
        answer = answer.replace(f"{{{letter}}}", letter)
    return answer.rstrip(".").lstrip(":").strip()


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _normalised(text: str) -> str:
    """The content of the last box, or the whole, in lower case, without what stands before an equals sign, units, spaces and degrees."""
    text = text.lower().replace("{}", "")
    boxes = _BOX.findall(text)
    answer = boxes[-1] if boxes else text
    if "}" in answer and ("{" not in answer or answer.index("}") < answer.index("{")):
        answer = answer.partition("}")[0]
    answer = answer.rpartition("=")[2].rpartition("\\approx")[2]
    answer = answer.replace(" ", "").replace("\\,", "").replace("\\\\", "\\").replace("\n", "").replace("bmatrix", "pmatrix")
    for part in _REMOVED:
        answer = answer.replace(part, "")
    answer = answer.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\%", "")
    answer = "0" + answer if answer.startswith(".") else answer
    answer = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", answer)
    quotient = re.fullmatch(r"(-?\d+)/(-?\d+)", "1/2" if answer == "0.5" else answer)
    return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else answer


def same_official(gold: str, answer: str) -> bool:
    """Equal text, ignoring case, or equal values after rounding to two decimals. An empty side equals nothing."""
    left, right = gold.lower().strip(), answer.lower().strip()
    if not left or not right:
        return False
    if left == right or _parts(left) == _parts(right):
        return True
    one, other = value_of(left), value_of(right)
    return one is not None and other is not None and round(one, 2) == round(other, 2)


def _parts(text: str) -> str | list[float | str]:
    """The rounded members of a tuple or list in brackets; other text as it is."""
    members = text[1:-1].split(",")
    if len(members) < 2 or text[0] + text[-1] not in ("()", "[]"):
        return text
    values = [value_of(member) for member in members]
    return text if None in values else [text[0], *(round(value, 2) for value in values if value is not None)]


# --- values -------------------------------------------------------------------------------------------------------------


def value_of(latex: str) -> float | None:
    """The value of a plain formula, up to a brace that was never opened; None where it has letters or cannot be read."""
    tokens = [_SIGNS.get(token, token) for token in _TOKEN.findall(latex) if token not in (" ", "$", "\\displaystyle")]
    if len(latex) > _LONGEST:
        return None
    try:
        reader = _ValueReader(tokens)
        value = reader.sum()
        return value if reader.peek() in ("", "}") and math.isfinite(value) else None
    except (ValueError, ArithmeticError, IndexError, RecursionError):
        return None


class _ValueReader:
    """Reads sums of products of powers; ValueError where that is not possible."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._position = tokens, 0

    def peek(self) -> str:
        """The next token, "" at the end."""
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def take(self) -> str:
        """The next token, which is passed."""
        self._position += 1
        return self._tokens[self._position - 1]

    def sum(self) -> float:
        """Terms joined by + and -."""
        total = self._product()
        while self.peek() in ("+", "-"):
            total += self._product() if self.take() == "+" else -self._product()
        return total

    def _product(self) -> float:
        """Factors joined by *, / and by standing side by side."""
        result = self._power()
        while self.peek() not in ("", "+", "-", ")", "}", "]"):
            sign = self.peek() if self.peek() in ("*", "/") else ""
            if sign:
                self.take()
            factor = self._power()
            result = result / factor if sign == "/" else result * factor
        return result

    def _power(self) -> float:
        if self.peek() in ("+", "-"):
            return self._power() if self.take() == "+" else -self._power()
        base = self._atom()
        if self.peek() != "^":
            return base
        self.take()
        exponent = self._atom()
        if isinstance(base, int) and isinstance(exponent, int) and abs(base) <= _BASE and 0 <= exponent <= _EXPONENT:
            return int(base**exponent)  # exact, so that 3^1008 / 3^1009 has a value
        return math.pow(base, exponent)

    def _atom(self) -> float:
        token = self.take()
        if token == "\\pi" or token == "π":
            return math.pi
        if token == "\\frac":
            return self._atom() / self._atom()
        if token == "\\sqrt":
            degree = self._bracketed("]") if self.peek() == "[" and self.take() else 2.0
            return math.pow(self._atom(), 1 / degree)
        if token in ("(", "{"):
            return self._bracketed(")" if token == "(" else "}")
        return int(token) if token.isdigit() else float(token)

    def _bracketed(self, closing: str) -> float:
        value = self.sum()
        if self.take() != closing:
            raise ValueError(closing)
        return value
