"""Compare the numbers of a short answer with those of the ground truth. What may be the same in another form is undecided."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal

from mixpo.verify.judgement import UNSURE, Judgement, Options, decide
from mixpo.verify.number import MAX_LENGTH, Number, distinct, equal, is_bound, read_numbers, single_number
from mixpo.verify.number_words import read_counts, read_whole
from mixpo.verify.refusals import UNSEEN, is_refusal
from mixpo.verify.text import check_text

_DIGIT = re.compile(r"\d")
_VAGUE = re.compile(
    r"(?i)\b(?:first|second|fourth|fifth|sixth|seventh|eighth|ninth|tenth|half|quarter|third|dozen|couple|pair|several|few|many|double|triple|twice|thrice|once|FY\s?\d{2,4})\b|半|几|双|分之|第|\d:\d|\b(?-i:[IVX]{2,})\b"
    r"|[一二两三四五六七八九十百千万](?:度|元|角|岁|分|小时|天|年|月|日|点|[厘毫分千]?米|千?克|公[里斤]|毫?升|平方|立方)"
)
_NOTHING = re.compile(r"(?i)\b(?:no|none|nothing|without|not any)\b|没有|无|都不")
_GLUED = re.compile(r"(?<![A-Za-z])(?:[A-Z]|Rs\.?)(?=\d)")
"""A letter that may be a misread sign: S24 for $24."""
_COUNT = re.compile(
    r"(?i)\W*(?:(?:there|here) (?:are|is|were|was) )?(exactly |only |just )?([a-z]+(?:-[a-z]+)?)\s+(?=[a-z]|\d+(?:s\b|-[a-z]))"
)
_FACTORIAL = re.compile(r"\d!(?!\s*=)")
_REMARK = re.compile(r"(?:\s\([^()]*\)|(?<=\d)\s?[x×])\s*$")
"""A calculation in brackets behind a number, as in "6.2 (18.5 - 12.3)", or an "x" for times."""
_DOWN = re.compile(
    r"(?i)\b(?:de(?:crease|cline)[sd]?|drop(?:ped|s)?|fell|fall|loss|lost|lower|less|below|reduction|reduced|down)\b|[降减跌]"
)
"""Words that stand for a minus."""
_PARTS = re.compile(r"(?i)\b(?:hal(?:f|ves)|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|dozen)s?)\b|半|分之")
"""Quantities whose number words are not their value."""
_POINT = re.compile(
    r"(?i)[a-z]\s+point\s+(?:zero|one|two|three|four|five|six|seven|eight|nine)|[零〇一二三四五六七八九十]点[零〇一二三四五六七八九]"
)
_OF_NUMBER = re.compile(r"\bof (?:the )?\d|的")


def check_number(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare as numbers. Symmetric. One of several numbers matching is undecided; none matching is wrong."""
    if max(len(predicted), len(gold)) > MAX_LENGTH:
        return Judgement("undecided", "too long for a number")
    if single_number(predicted) is None and (is_refusal(predicted) or UNSEEN.search(predicted)):
        return UNSURE
    left, right = read_numbers(predicted), read_numbers(gold)
    if left is None or right is None:
        judgement = options.algebra(predicted, gold)
        one, other = single_number(_REMARK.sub("", predicted)), single_number(_REMARK.sub("", gold))
        is_remark = judgement.outcome == "wrong" and one is not None and other is not None and equal(one, other, options.tolerance)
        return Judgement("undecided", "a remark behind the number") if is_remark else judgement
    if not left and not right:
        return check_text(predicted, gold, options)
    if any(_PARTS.search(text) and not _DIGIT.search(text) for text in (predicted, gold)):
        return Judgement("undecided", "not in plain digits")
    left, right = _with_count(predicted, left), _with_count(gold, right)
    judgement = _compare(left, right, options.tolerance) if left and right else Judgement("wrong", "no number")
    if judgement.outcome == "correct" and is_bound(predicted) != is_bound(gold):
        return Judgement("undecided", "a bound or a label")
    doubt = judgement.outcome == "wrong" and _doubt(predicted, gold, left, right, options.tolerance)
    return Judgement("undecided", doubt) if doubt else judgement


def _with_count(text: str, numbers: list[Number]) -> list[Number]:
    """With the spelled-out count in a sentence with digits: "Two bars are above 4" counts two. "One" may be no count."""
    if not _DIGIT.search(text):
        return numbers
    values = [] if text.isascii() else read_counts(text)
    if count := _COUNT.match(text):
        value = 0 if count.group(2).lower() in ("no", "none") else read_whole(count.group(2))
        values += [value] if value is not None and (value != 1 or count.group(1)) else []
    return distinct([*(Number(value=Decimal(value)) for value in values), *numbers]) if values else numbers


def _doubt(predicted: str, gold: str, left: list[Number], right: list[Number], tolerance: float) -> str:
    """Why numbers that differ may be the same all the same, or ""."""
    if _FACTORIAL.search(f"{predicted} {gold}"):
        return "an exclamation or a factorial"
    if _GLUED.search(f"{predicted} {gold}"):
        one, other = (read_numbers(_GLUED.sub(" ", text)) or [] for text in (predicted, gold))
        if one and other and _compare(one, other, tolerance).outcome != "wrong":
            return "a letter in front of the number"
    if not left or not right:
        words = gold if left else predicted
        # "There are no cubes" counts to nought.
        is_vague = _VAGUE.search(words) or (_NOTHING.search(words) and not any(number.value for number in left or right))
        return "not in plain digits" if is_vague else ""
    sizes = [[replace(number, value=number.value.copy_abs()) for number in numbers] for numbers in (left, right)]
    if _DOWN.search(f"{predicted} {gold}") and len(left) == len(right) == 1 and equal(sizes[0][0], sizes[1][0], tolerance):
        return "a spelled-out minus"
    if any(_POINT.search(text) or (_PARTS.search(text) and _OF_NUMBER.search(text)) for text in (predicted, gold)):
        return "a part of a number"
    # 3M is a company, 3 million, and to careless writers 3 metres.
    return "upper and lower case" if predicted.casefold() == gold.casefold() else ""


def _compare(left: list[Number], right: list[Number], tolerance: float) -> Judgement:
    if len(left) == len(right):
        in_order = [equal(one, other, tolerance) for one, other in zip(left, right, strict=True)]
        if len(left) == 1:
            return decide(in_order[0], "numbers")
        if all(in_order):
            return Judgement("correct", "numbers agree in order")
    if any(equal(one, other, tolerance) is not False for one in left for other in right):
        return Judgement("undecided", "several numbers")
    return Judgement("wrong", "numbers differ")
