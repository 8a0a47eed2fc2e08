"""Times of day in short answers: "03:45" is "3:45", and "3:45 pm" is "15:45". Knows nothing about time zones and seconds."""

from __future__ import annotations

import re
from typing import NamedTuple

from mixpo.verify.judgement import Judgement

_TIME = re.compile(r"(?:at )?(?:([ap])m |([上下])午 ?)?(\d{1,2})(?::(\d\d))?(?: ?([ap]) ?m)?")
"""In text that went through `text.normal_text`."""
_NOON = 12
_MINUTES = 60


class Time(NamedTuple):
    """hour: 0 to 23 where `sure`, else it may as well be twelve hours off."""

    hour: int
    minute: int
    sure: bool


def read_time(plain: str) -> Time | None:
    """The time that a text is, and nothing beside it; None for everything else."""
    match = _TIME.fullmatch(plain) if ":" in plain or plain.endswith("m") else None
    if match is None or int(match.group(3)) > 2 * _NOON or int(match.group(4) or 0) >= _MINUTES:
        return None
    hour, half = int(match.group(3)) % (2 * _NOON), match.group(1) or match.group(2) or match.group(5)
    minute = int(match.group(4) or 0)
    if half is None:
        return Time(hour, minute, hour > _NOON or match.group(3) == "00") if match.group(4) else None
    return Time(hour % _NOON + _NOON * (half in ("p", "下")), minute, True)


def compare_times(left: Time, right: Time) -> Judgement:
    """One that leaves out which half of the day it means may be either. "5:10" may also be the ratio 1 to 2, as "6:12" is."""
    if (left.hour, left.minute) != (right.hour, right.minute) and left.hour * right.minute == right.hour * left.minute != 0:
        return Judgement("undecided", "ratios or times of day")
    if left.minute != right.minute or left.hour % _NOON != right.hour % _NOON:
        return Judgement("wrong", "times differ")
    if left.sure and right.sure:
        return Judgement("correct", "times agree") if left.hour == right.hour else Judgement("wrong", "times differ")
    same = left.hour == right.hour and left.sure == right.sure
    return Judgement("correct", "times agree") if same else Judgement("undecided", "morning or afternoon")
