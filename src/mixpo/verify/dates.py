"""Dates and ranges of short answers by their numbers: "Dec 5, 2010" beside "2010-12-05". Only says that two may be the same."""

from __future__ import annotations

import re

_MONTHS = "january february march april may june july august september october november december"
_MONTH = {month: number for number, month in enumerate(_MONTHS.split(), start=1)}
_MONTH |= {month[:3]: number for month, number in _MONTH.items()} | {"sept": 9}
_TOKEN = re.compile(r"(?<![.\d])\d+\.\d+(?![.\d])|\d+|[^\W\d_]+")
_DIGIT = re.compile(r"\d")
_ORDINAL = frozenset({"st", "nd", "rd", "th", "of", "to", "from", "and", "between", "年", "月", "日", "号", "至", "到"})
_MAX_LENGTH = 60
"""A longer text is no date and no range."""


def is_same_date(left: str, right: str) -> bool:
    """Whether two texts hold the same two or more numbers and nothing else, months by number: in the same order, or in any with a date.

    Both are texts that went through `text.normal_text`.
    """
    if max(len(left), len(right)) > _MAX_LENGTH or not (_DIGIT.search(left) and _DIGIT.search(right)):
        return False
    numbers, others = _numbers(left), _numbers(right)
    if numbers is None or others is None or len(numbers) != len(others):
        return False
    is_date = len(numbers) == 3 or any(word in _MONTH for word in _TOKEN.findall(f"{left} {right}"))
    return numbers == others or (is_date and sorted(numbers) == sorted(others))


def _numbers(plain: str) -> list[float] | None:
    """The numbers of a text in order, or None where it holds other words or fewer than two of them."""
    numbers = []
    for token in _TOKEN.findall(plain):
        if token[0].isdecimal():
            numbers.append(float(token))
        elif token in _MONTH:
            numbers.append(float(_MONTH[token]))
        elif token not in _ORDINAL:
            return None
    return numbers if len(numbers) > 1 else None
