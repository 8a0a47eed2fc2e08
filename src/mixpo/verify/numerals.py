"""Numbers written in words: English up to the trillions, Chinese up to 99. Knows nothing about digits."""

from __future__ import annotations

import re

_UNITS = "zero one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_SMALL = {word: value for value, word in enumerate(f"{_UNITS} {_TEENS}".split())}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_WORDS.split(), start=2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORDS = frozenset({*_SMALL, *_TENS, *_SCALES, "hundred"})
_TOKEN = re.compile(r"[a-z]+")
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_NUMBER = re.compile(
    r"(?:([一二两三四五六七八九])?(十)([一二三四五六七八九])?|([零〇一二两三四五六七八九]))(?:个|只|张|条|本|块|人|名|种|次|位|颗|辆)?"
)


def read_words(text: str) -> list[int]:
    """Every number in words: "twenty-five apples" is [25], "two or three" is [2, 3], "没有" is []."""
    chinese = _CHINESE_NUMBER.fullmatch(text.strip(" .。"))
    if chinese:
        tens, ten, units, digit = chinese.groups()
        return [_CHINESE[digit]] if digit else [10 * _CHINESE.get(tens or "一", 1) * bool(ten) + _CHINESE.get(units or "零", 0)]
    lowered = text.lower()
    if lowered.strip(" .") == "none":
        return [0]
    runs: list[list[str]] = [[]]
    for token in _TOKEN.findall(lowered):
        if token in _WORDS:
            runs[-1].append(token)
        elif not (token == "and" and runs[-1] and runs[-1][-1] == "hundred"):
            runs.append([])
    return [number for run in runs if run for number in _read_run(run)]


def _read_run(words: list[str]) -> list[int]:
    """One unbroken run of number words. Words that do not compose ("two three") are separate numbers."""
    numbers: list[int] = []
    total, part, last = 0, 0, ""
    for word in words:
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * _SCALES[word], 0
        else:
            value = _SMALL.get(word, _TENS.get(word, 0))
            if last and not _composes(last, word):
                numbers.append(total + part)
                total, part = 0, 0
            part += value
        last = word
    return [*numbers, total + part]


def _composes(last: str, word: str) -> bool:
    """Whether `word` goes on with the number that ends in `last`: "twenty five", "hundred ten", "thousand two"."""
    if last in _SCALES or last == "hundred":
        return True
    return last in _TENS and 1 <= _SMALL.get(word, 0) <= 9
