"""How an answer will be compared, guessed from the answer itself. Knows nothing about checking.

The guess is deliberately shy: what is not clearly a number or a formula is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixpo.types import AnswerKind

YES_NO = frozenset({"yes", "no", "是", "否"})

_UNITS = (
    r"(?:mm|cm|dm|m|km|in|ft|yd|mi|mg|g|kg|t|oz|lb|lbs|ml|mL|l|L|s|sec|ms|min|h|hr|hrs|Hz|kHz|V|mV|W|kW|J|kJ|N|Pa|kPa|A|mA|K|Ω|cal|kcal|mol"
    r"|m/s|km/h|mph|USD|years?|days?|hours?|minutes?|seconds?|degrees?|percent)(?:\^?[23]|[²³])?"
)
_NUMBER = re.compile(
    rf"[-+−]?\s*[$€£¥]?\s*(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\s*(?:%|°[CF]?|℃|℉|{_UNITS})?",
)
_LATEX = re.compile(r"\\[a-zA-Z]+|\$[^$]+\$|[\^_]\{")
_EXPRESSION = re.compile(r"(?:sqrt|pi|sin|cos|tan|log|ln|[a-zA-Z](?![a-zA-Z])|[\d\s.()\[\],+\-−*/^=√π²³<>≤≥·×÷])+")
_OPERATOR = re.compile(r"[+\-−*/^=√π²³<>≤≥·×÷(\[]|\b(?:sqrt|pi|sin|cos|tan|log|ln)\b")
_RANGE_OR_DATE = re.compile(r"\d+(?:\.\d+)?\s*[-–−]\s*\d+(?:\.\d+)?|\d+([-/])\d+\1\d+")


def guess_kind(answer: str | None, choices: Sequence[str] = ()) -> AnswerKind:
    """The answer kind that "auto" stands for."""
    if answer is None:
        return "none"
    if choices:
        return "choice"
    text = answer.strip()
    if text.rstrip(".。").casefold() in YES_NO:
        return "yes_no"
    if is_number(text):
        return "number"
    return "formula" if _is_formula(text) else "text"


def is_number(text: str) -> bool:
    """Whether the text is one number: sign, thousands separators, exponent, currency, percent and common units allowed."""
    return _NUMBER.fullmatch(text.strip().rstrip(".")) is not None


def _is_formula(text: str) -> bool:
    if _LATEX.search(text):
        return True
    if _RANGE_OR_DATE.fullmatch(text):
        return False
    return bool(_EXPRESSION.fullmatch(text) and _OPERATOR.search(text) and re.search(r"\d|=|[²³√π]", text))
