"""Number words: English up to the trillions, Chinese up to 99,999,999. Knows nothing about digits."""

from __future__ import annotations

import re

_SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
SMALL = {word: value for value, word in enumerate(_SMALL_WORDS.split())}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_WORDS.split(), start=2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = SMALL | _TENS
_WORDS = frozenset({*_VALUES, *_SCALES, "hundred"})
NUMBER_WORD = "|".join(_WORDS)
_DIGIT, _LARGE = "|".join(list(SMALL)[1:10]), "|".join(["hundred", *_SCALES])
_PART = rf"(?:(?:{'|'.join(_TENS)})(?: (?:{_DIGIT}))?|{'|'.join(reversed(SMALL))})"
"""Below a hundred; longer words come first."""
_AND, _GROUP = "(?:(?<=hundred )and )?", rf"(?:{_PART} )?(?:{_LARGE})"
_ENGLISH = re.compile(rf"(?:\b(minus|negative) )?\b({_GROUP}(?: {_AND}{_GROUP})*(?: {_AND}{_PART})?|{_PART})\b")
_TOKEN = re.compile(r"[a-z]+")
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000}
_COUNTED = "[个只张条本块人名种次位颗辆根座棵朵栋层家间支杯瓶盒箱句页幅扇件所架艘枚首篇项]"
_CHINESE_NUMBER = re.compile(f"(负?)([零〇一二两三四五六七八九十百千万]{{1,16}})(?:{_COUNTED})?")
_CHINESE_COUNT = re.compile(f"(?<![零〇一二两三四五六七八九十百千万第负每几])([零〇一二两三四五六七八九十百千万]{{1,16}})(?:{_COUNTED})")
_NONE = frozenset({"none", "没有"})


def read_words(text: str) -> list[int]:
    """Every number word: "twenty-five apples" is [25], "two or three" is [2, 3], "没有" is []."""
    chinese = _CHINESE_NUMBER.fullmatch(text.strip(" .。"))
    if chinese:
        value = _read_chinese(chinese.group(2))
        return [-value if chinese.group(1) else value]
    if counts := read_counts(text):
        return counts
    lowered = text.lower()
    if lowered.strip(" .。") in _NONE:
        return [0]
    numbers = _ENGLISH.findall(" ".join(_TOKEN.findall(lowered)))
    return [(-1 if sign else 1) * _read_english(words.split()) for sign, words in numbers]


def read_counts(text: str) -> list[int]:
    """The Chinese numbers in front of a measure word: "有三个" is [3]."""
    return [_read_chinese(digits) for digits in _CHINESE_COUNT.findall(text)]


def read_whole(text: str) -> int | None:
    """The number that a text of number words is; None for all others."""
    tokens = _TOKEN.findall(text.lower())
    tokens = tokens[1:] if tokens[:1] in (["minus"], ["negative"]) else tokens
    if not _CHINESE_NUMBER.fullmatch(text.strip(" .。")) and not (tokens and all(token in _WORDS for token in tokens)):
        return None
    numbers = read_words(text)
    return numbers[0] if len(numbers) == 1 and not any(map(str.isdigit, text)) else None


def _read_chinese(digits: str) -> int:
    """ "三百零五" is 305, "三百五" 350, "一万二千" 12000; digits alone are read one by one, as in "二〇二四"."""
    if len(digits) > 1 and not any(character in _CHINESE_SCALES or character == "万" for character in digits):
        return int("".join(str(_CHINESE[character]) for character in digits))
    total, part, digit, below = 0, 0, None, 1
    for character in digits:
        if character == "万":
            total, part, digit, below = (total + part + (digit or 0)) * 10_000, 0, None, 1000
        elif scale := _CHINESE_SCALES.get(character):
            part, digit, below = part + (1 if digit is None else digit) * scale, None, scale // 10
        else:
            below = 1 if digit == 0 or character in "零〇" else below
            digit = _CHINESE[character]
    return total + part + (digit or 0) * below


def _read_english(words: list[str]) -> int:
    total, part = 0, 0
    for word in words:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * _SCALES[word], 0
        else:
            part += _VALUES.get(word, 0)
    return total + part
