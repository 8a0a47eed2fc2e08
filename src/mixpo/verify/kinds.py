"""The kind of an answer, guessed from the answer itself: what "auto" stands for, in the data's rows and in `check`.

The guess is shy: what is not clearly anything else is text, the comparison that hardly ever calls a right answer wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixpo.types import AnswerKind
from mixpo.verify.number import read_numbers, single_number
from mixpo.verify.text import normal_text
from mixpo.verify.units import PATTERN
from mixpo.verify.wrapping import plain_characters
from mixpo.verify.yes_no import read_yes_no

_YES_NO = frozenset({"yes", "no", "true", "false", "是", "否", "对", "错", "正确", "错误"})
# Upper case only, unless in brackets: "b" alone may be a variable or a label, and text compares it well.
_OPTION = re.compile(r"[A-J](?:\s*(?:[,;、，&]|and|和|与)\s*[A-J])*|\([A-Ja-j]\)")
_LATEX = re.compile(r"\\[a-zA-Z{]|\$[^$]+\$|[\^_]\{")
_EXPRESSION = re.compile(r"(?:sqrt|pi|sin|cos|tan|log|ln|[a-zA-Z](?![a-zA-Z])|[\d\s.()\[\]{},+\-−*/^=√π²³<>≤≥·×÷∞∪∩∈±])+")
_OPERATOR = re.compile(r"[+\-−*/^=√π²³<>≤≥·×÷±(\[{]|\b(?:sqrt|pi|sin|cos|tan|log|ln)\b")
_QUANTITY = re.compile(r"\d|[=^²³√π]")
_PRODUCT = re.compile(r"-?\d+(?:\.\d+)?[a-ceknpu-z]")
_EQUATION = re.compile(r"[a-zA-Z]\s*=\s*[-−√π(\d]")
_RATIO = re.compile(r"\d{1,4}\s*比\s*\d{1,4}|\d{1,4}\s*:\s*(?:\d|[1-9]\d{2,3}|[6-9]\d)")
"""Two minutes digits up to 59 would be a time of day, which is text."""
_UNIT_BEHIND = re.compile(rf"(?i)(?<=[\w)}}π])\s*(?:{PATTERN})$")
_RANGE_OR_DATE = re.compile(r"\d+(?:\.\d+)?\s*[-–−]\s*\d+(?:\.\d+)?|\d+([-/])\d+\1\d+")


def guess_kind(answer: str | None, choices: Sequence[str] = ()) -> AnswerKind:
    """The answer kind that "auto" stands for; "none" where there is no answer.

    A lone letter from A to J is an option, even if the options stand only in the picture. A fraction such as 3/4 is a number,
    a date or a range is text, and so is a lone letter in lower case.
    """
    if answer is None:
        return "none"
    text = answer.strip().rstrip(".。")
    if choices or _OPTION.fullmatch(text):
        return "choice"
    if normal_text(text) in _YES_NO:
        return "yes_no"
    if single_number(text):
        return "number"
    return "formula" if _is_formula(text) else "text"


def fits(kind: str, answer: str) -> bool:
    """Whether an answer can be compared as `kind`, for a kind that somebody states: one number, one of yes and no, a letter."""
    if kind == "number":
        return len(read_numbers(answer) or ()) == 1
    if kind == "yes_no":
        return len(read_yes_no(answer)) == 1
    return kind != "choice" or guess_kind(answer) == "choice"


def _is_formula(text: str) -> bool:
    if _LATEX.search(text) or _PRODUCT.fullmatch(text) or _EQUATION.match(text) or _RATIO.fullmatch(text):
        return True
    if _RANGE_OR_DATE.fullmatch(text) or not _QUANTITY.search(text):
        return False
    bare = _UNIT_BEHIND.sub("", plain_characters(text))
    return bool(_EXPRESSION.fullmatch(bare) and _OPERATOR.search(bare) and _QUANTITY.search(bare))
