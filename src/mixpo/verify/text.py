"""Short free-text answers, compared the way VQA does. Of numbers it knows only the first ten in words."""

from __future__ import annotations

import re
import unicodedata

from mixpo.verify.judgement import Judgement, Options

_NUMBER_WORDS = {
    word: str(value) for value, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
} | {"none": "0"}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_APOSTROPHES = re.compile("['’‘`´]")
_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = re.compile(r"\.(?!\d)|[^\w\s.:/,%$€£¥°+<>=≤≥^\-]|_|(?<!\d)[:/,]|[:/,](?!\d)|-(?!\d)|(?<=\w)-")
_INITIALS = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}")
_RELATION = re.compile(r" ?([<>=≤≥]) ?")
# Kept are signs that carry meaning in short answers: -5, 3:45, 1/2, C++, x>5, 50%.
_LEAD_IN = re.compile(r"(?:(?:final )?answer is|its|it is|this is|that is|they are|there is|there are|these are|答案是|答案为|这是|它是) *")


def check_text(predicted: str, gold: str, _options: Options) -> Judgement:
    """Equal after VQA normalisation. A longer answer that holds the other as whole words is undecided, not wrong."""
    left, right = normal_text(predicted), normal_text(gold)
    if not left or not right:
        same = "".join(predicted.split()) == "".join(gold.split())
        return Judgement("correct", "same text") if same else Judgement("wrong", "nothing but punctuation")
    if left == right or _LEAD_IN.sub("", left, count=1) == right or _same_letters(left, right):
        return Judgement("correct", "same text")
    if contains(left, right) or contains(right, left):
        return Judgement("undecided", "one text contains the other")
    return Judgement("wrong", "texts differ")


def normal_text(text: str) -> str:
    """Lower case, without articles, accents, punctuation and apostrophes ("dont" is "don't"); small numbers as digits."""
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = _DIGIT_COMMA.sub("", _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text)))
    text = _INITIALS.sub(lambda match: match.group().replace(".", ""), text)
    # Single spaces first: a pattern that starts with \s* takes quadratic time over long runs of them.
    words = _RELATION.sub(r"\1", " ".join(_PUNCTUATION.sub(" ", text).split())).split()
    kept = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_NUMBER_WORDS.get(word, word) for word in kept)


def _same_letters(left: str, right: str) -> bool:
    """ "ice cream" is "icecream"; where digits are about, a space may matter."""
    return left.replace(" ", "") == right.replace(" ", "") and not any(map(str.isdigit, left))


def contains(text: str, part: str) -> bool:
    """Whether `part` stands in `text` as whole words; "1" does not stand in "10" or "1.5". Chinese has no word borders."""
    if not part:
        return False
    if not part.isascii():
        return part in text
    return re.search(rf"(?<![\w.]){re.escape(part)}(?!\w|\.\d)", text, re.ASCII) is not None
