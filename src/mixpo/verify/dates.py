"""Dates, ranges and times of day in short answers: "Dec 5, 2010" and "2010-12-05", "3:45 pm" and "15:45"."""

from __future__ import annotations

import re
from typing import NamedTuple

from mixpo.verify.judgement import Judgement

_MONTHS = "january february march april may june july august september october november december"
_MONTH = {month: number for number, month in enumerate(_MONTHS.split(), start=1)}
_MONTH |= {month[:3]: number for month, number in _MONTH.items()} | {"sept": 9}
_TOKEN = re.compile(r"(?<![.\d])\d+\.\d+(?![.\d])|\d+|[^\W\d_]+")
_DIGIT = re.compile(r"\d")
_ORDINAL = frozenset({"st", "nd", "rd", "th", "of", "to", "from", "and", "between", "年", "月", "日", "号", "至", "到"})
_MAX_LENGTH = 60
"""A longer text is no date and no range."""
_TIME = re.compile(r"(?:at )?(?:([ap])m |([上下])午 ?)?(\d{1,2})(?::(\d\d))?(?: ?([ap]) ?m)?")
"""In text that went through `text.normal_text`."""
_NOON = 12
_MINUTES = 60


def is_same_date(left: str, right: str) -> bool:
    """Whether two texts hold the same two or more numbers and nothing else, months by number: in the same order, or in any with a date.

    Both are texts that went through `text.normal_text`.
    """
    numbers, others = (_numbers(text) if len(text) <= _MAX_LENGTH and _DIGIT.search(text) else None for text in (left, right))
    if numbers is None or others is None:
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


class Time(NamedTuple):
    """hour: 0 to 23 where `sure`, else it may as well be twelve hours off."""

    hour: int
    minute: int
    sure: bool


def read_time(plain: str) -> Time | None:
    """The time that a text is, and nothing else; None for everything else."""
    match = _TIME.fullmatch(plain) if ":" in plain or plain.endswith("m") else None
    if match is None:
        return None
    front, front_zh, hours, minutes, behind = match.groups()
    hour, minute, half = int(hours), int(minutes or 0), front or front_zh or behind
    if hour > 2 * _NOON or minute >= _MINUTES or not (half or minutes):
        return None
    if half is None:
        return Time(hour % (2 * _NOON), minute, hour > _NOON or hours == "00")
    return Time(hour % _NOON + _NOON * (half in ("p", "下")), minute, True)


def compare_times(left: Time, right: Time) -> Judgement:
    """One that omits which half of the day it means may be either. "5:10" may also be the ratio 1 to 2, as "6:12" is."""
    if (left.hour, left.minute) != (right.hour, right.minute) and left.hour * right.minute == right.hour * left.minute != 0:
        return Judgement("undecided", "ratios or times of day")
    if left == right:
        return Judgement("correct", "times agree")
    may_agree = not (left.sure and right.sure) and (left.hour % _NOON, left.minute) == (right.hour % _NOON, right.minute)
    return Judgement("undecided", "morning or afternoon") if may_agree else Judgement("wrong", "times differ")
