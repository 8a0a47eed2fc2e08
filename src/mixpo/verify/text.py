"""Short free-text answers, compared the way VQA does, dates and times of day included. Of number words it knows only the first ten."""

from __future__ import annotations

import re
import unicodedata

from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.number_words import SMALL
from mixpo.verify.wrapping import plain_latex, unwrap

_NUMBER_WORDS = {word: str(value) for word, value in SMALL.items() if value <= 10} | {"none": "0", "infinity": "∞", "a°": "a"}
_ARTICLES = frozenset({"a", "an", "the"})
_LABEL = re.compile(r"(?<![\w'.])[Aa](?=\s*[).,:;、，/&→⇒=<>~-]|\s+(?:and|or)\b)|(?<=\band )A\b|(?<=\bor )A\b|(?<=\w )A(?= [^A-Z])")
_LABELLED = "A°"
"""A letter of a list, or next to a bracket or a colon, or within a sentence ("Sample A is heavier") is no article. Not in titles."""
_APOSTROPHES = re.compile("['’‘`´]")
# Kept are signs that carry meaning in short answers: -5, 3:45, 1/2, C++, C#, x>5, 50%, ∞.
_PUNCTUATION = re.compile(r"\.(?!\d)|[^\w\s.:/,%$€£¥°+<>=≤≥^\-#∞]|_|(?<![^\W\d_])#|(?<!\d)[:/,]|[:/,](?!\d)|-(?![\d∞])|(?<=\w)-")
_CLOCK_WORDS = re.compile(r"\b(?:half|quarter|past|oclock|noon|midnight)\b|点(?:半|[一二三四五]|整)")
_RELATION = re.compile(r" ?([<>=≤≥]) ?")
_LATEX = re.compile(r"[\\_^]")
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z)\]])\s?_(?:\{(\d{1,4})\}|(\d))\s?")
_CHARGE = re.compile(r"(?<=[A-Za-z)\d])\s?\^(?:\{(\d?[-+])\}|([-+]))")
_LEAD_IN = re.compile(r"(?:(?:final )?answer is|its|it is|this is|that is|they are|there is|there are|these are|答案是|答案为|这是|它是) *")
_SIGN = re.compile(r"[-−|_^+{}'′]")
_LETTER = re.compile(r"[^\W\d_]")
_LONG_WORD = re.compile(r"[^\W\d_]{2}")
_SMALL_WORDS = frozenset({"to", "from", "and", "of", "in", "on", "at", "between", "until", "till"})
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_FULL_NAMES = {day[:3]: day for day in _DAYS.split()} | {"tues": "tuesday", "thur": "thursday", "thurs": "thursday"}
_FULL_NAMES |= {word: str(place) for place, word in enumerate(_ORDINALS.split(), start=1)}
_JOINTS = re.compile(r"[=,]")
LETTERS = 4
"""So few letters in a row may be a product, or the name of a line."""
_ENDING = re.compile(r"(?<=[a-z]{2})s$|(?<=\d)(?:st|nd|rd|th)$")
_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name: number for number, month in enumerate(_MONTHS.split(), start=1) for name in (month, month[:3])} | {"sept": 9}
_DATE_TOKEN = re.compile(r"(?<![.\d])\d+\.\d+(?![.\d])|\d+|[^\W\d_]+")
_DATE_WORDS = frozenset({"st", "nd", "rd", "th", "of", "to", "from", "and", "between", "年", "月", "日", "号", "至", "到"})
_DATE_LENGTH = 60
"""A longer text is no date and no range."""
_TIME = re.compile(r"(?:at )?(?:([ap])m |([上下])午 ?)?(\d{1,2})(?::([0-5]\d))?(?: ?([ap]) ?m)?")
_NOON = 12


def check_text(predicted: str, gold: str, _options: Options) -> Judgement:
    """Equal after VQA normalisation. A longer answer that holds the other as whole words is undecided, not wrong."""
    if _LATEX.search(predicted) or _LATEX.search(gold):
        predicted, gold = _plain_subscripts(predicted), _plain_subscripts(gold)
    left, right = normal_text(predicted), normal_text(gold)
    if not left or not right:
        return Judgement("wrong", "nothing but punctuation")
    # "ice cream" is "icecream"; where digits are about, a space may matter.
    is_spaced = left.replace(" ", "") == right.replace(" ", "") and not any(map(str.isdigit, left))
    if left == right or is_spaced or _LEAD_IN.sub("", left, count=1) == right:
        # A lone symbol is what its signs say: -x is not x, a_{n+1} not a_n+1, 2R not 2r.
        if _LETTER.search(left) and not _LONG_WORD.search(left) and _signs(predicted) != _signs(gold):
            return Judgement("undecided", "signs differ")
        return Judgement("correct", "same text")
    if any(_CLOCK_WORDS.search(one) and ":" in other for one, other in ((left, right), (right, left))):
        return Judgement("undecided", "a spelled-out time")
    if (time := _time(left)) and (other := _time(right)):
        return _compare_times(time, other)
    if contains(left, right) or contains(right, left):
        return Judgement("undecided", "one text contains the other")
    words, others = _stems(left) or [left], _stems(right) or [right]
    if words == others or _is_same_date(left, right):
        return Judgement("undecided", "the same words in another form")
    if predicted.isupper() and rearranged(predicted, gold):
        return Judgement("undecided", "the same letters in another order")  # AB and BA are one line
    if set(words) < set(others) or set(others) < set(words):
        return Judgement("undecided", "one text has all words of the other")
    return Judgement("wrong", "texts differ")


def _is_same_date(left: str, right: str) -> bool:
    """Whether both hold the same two or more numbers and nothing else, months by number: in order, or in any order with a date."""
    numbers, others = _date_numbers(left), _date_numbers(right)
    if numbers is None or others is None:
        return False
    is_date = len(numbers) == 3 or any(word in _MONTH for word in _DATE_TOKEN.findall(f"{left} {right}"))
    return numbers == others or (is_date and sorted(numbers) == sorted(others))


def _date_numbers(plain: str) -> list[float] | None:
    """The numbers in order; None where there are other words, or fewer than two numbers."""
    tokens = [token for token in _DATE_TOKEN.findall(plain[: _DATE_LENGTH + 1]) if token not in _DATE_WORDS]
    if len(plain) > _DATE_LENGTH or len(tokens) < 2 or not all(token[0].isdecimal() or token in _MONTH for token in tokens):
        return None
    return [float(_MONTH.get(token, token)) for token in tokens]


def _time(plain: str) -> tuple[int, int, bool] | None:
    """(hour from 0 to 23, minute, whether the half of the day is sure) of a text that is a time and nothing else."""
    match = _TIME.fullmatch(plain) if ":" in plain or plain.endswith("m") else None
    if match is None or int(match.group(3)) > 2 * _NOON:
        return None
    front, front_zh, hours, minutes, behind = match.groups()
    hour, half = int(hours), front or front_zh or behind
    if half is None:
        return (hour % (2 * _NOON), int(minutes), hour > _NOON or hours == "00") if minutes else None
    return hour % _NOON + _NOON * (half in ("p", "下")), int(minutes or 0), True


def _compare_times(left: tuple[int, int, bool], right: tuple[int, int, bool]) -> Judgement:
    """One that omits which half of the day it means may be either. "5:10" may also be the ratio 1 to 2, as "6:12" is."""
    if left[:2] != right[:2] and left[0] * right[1] == right[0] * left[1] != 0:
        return Judgement("undecided", "ratios or times of day")
    if left == right:
        return Judgement("correct", "times agree")
    may_agree = not (left[2] and right[2]) and (left[0] % _NOON, left[1]) == (right[0] % _NOON, right[1])
    return Judgement("undecided", "morning or afternoon") if may_agree else Judgement("wrong", "times differ")


def rearranged(left: str, right: str) -> bool:
    """Whether two short texts hold the same letters, in any order."""
    return len(left) <= LETTERS and sorted(left) == sorted(right)


def _plain_subscripts(text: str) -> str:
    """Without the LaTeX of a chemical formula: "$\\mathrm{H_2O}$" is "H2O", "\\text{Na}^+" is "Na+"."""
    plain = plain_latex(unwrap(text) or text)
    plain = _SUBSCRIPT.sub(r"\1\2", plain)
    return " ".join(_CHARGE.sub(r"\1\2", plain).split())


def normal_text(text: str) -> str:
    """Lower case, without articles, accents, punctuation and apostrophes ("dont" is "don't"); small numbers as digits."""
    if ("A" in text or "a" in text) and not (text.isupper() and " " in text and text.replace(" ", "").isalpha()):
        text = _LABEL.sub(_LABELLED, text)
    text = text.casefold() if text.isascii() else _unaccented(text)
    text = _APOSTROPHES.sub("", text)
    # Single spaces first: a pattern that starts with \s* takes quadratic time over long runs of them.
    words = _RELATION.sub(r"\1", " ".join(_PUNCTUATION.sub(" ", text).split())).split()
    # What stands last is no article: "vitamin a".
    kept = [*(word for word in words[:-1] if word not in _ARTICLES), *words[-1:]]
    return " ".join(_NUMBER_WORDS.get(word, word) for word in kept)


def _unaccented(text: str) -> str:
    text = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKC", "".join(character for character in text if not unicodedata.combining(character)))


def _signs(text: str) -> list[str]:
    """What tells symbols apart that are the same text otherwise; of a lone letter the case does not."""
    return sorted(_SIGN.findall(text) + (re.findall("[A-Z]", text) if re.search(r"\d", text) else []))


def _stems(text: str) -> list[str]:
    """The words in order of the alphabet, without the endings of plurals and of ordinals, and the small words of ranges and dates."""
    return sorted(_FULL_NAMES.get(word) or _ENDING.sub("", word) for word in _JOINTS.sub(" ", text).split() if word not in _SMALL_WORDS)


def contains(text: str, part: str) -> bool:
    """Whether `part` is in `text` as whole words; "1" is not in "10" or "1.5"."""
    return part != "" and re.search(whole_words(part), text, re.ASCII) is not None


def whole_words(part: str) -> str:
    """A pattern of `part` as whole words. Chinese has no word borders."""
    return rf"(?<![\w.-]){re.escape(part)}(?![\w^]|\.\d)" if part.isascii() else re.escape(part)
