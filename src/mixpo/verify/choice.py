"""Multiple choice: which option a short answer names, by letter or by text.

Readings are tried from the surest kind to the loosest, and the first kind that finds anything decides. Two options named at once are
undecided when one of them is right. The article in "A cat" is not an option.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.number import Number, equal, single_number
from mixpo.verify.plain import plain_characters
from mixpo.verify.text import check_text, contains, normal_text
from mixpo.verify.wrapping import unwrap

LETTERS = "ABCDEFGHIJ"

_LONE = re.compile(r"[\s(\[{<*\"'.【（]*([A-Ja-j])[\s)\]}>*\"'.,:;、。】）]*")
_SEVERAL = re.compile(r"[\s(\[*]*[A-J](?:(?:[\s(\[*)\].,;、&+/和与或]|(?i:and|or)\b)*[A-J]){1,9}[\s)\].*]*")
_LEADING = re.compile(r"[\s(\[*【]*([A-Ja-j])(?:[\])}】]\s*[.:、,-]?|[.:、,*]+(?=[\s\W]|[^\x00-\x7f])|\s+[-=]+(?=\s)|\s+)\s*(?=\S)")
_NAMED = re.compile(
    r"(?i:\b(?:option|choice|answer(?:\s+(?:is|would be|should be))?|letter|select|choose|pick)|选项?|选择|答案(?:是|为|应为)?)"
    r"[\s:*(\[\"']*(?:([A-J])(?![A-Za-z'])|([a-j])(?=[\s)\].*\"']*$))"
)
_NAMED_AFTER = re.compile(
    r"(?<![A-Za-z])\(?([B-HJ]|A(?=\)|\s+is\s+(?:the\s+)?(?:correct|right)))\)?\s*(?:is\s+(?:the\s+)?(?:correct|right)|选项|项|正确)"
)
_BRACKETED = re.compile(r"[(\[]\s*([A-Ja-j])\s*[)\]]")
_STANDALONE = re.compile(r"(?<![A-Za-z'.])(?:([B-HJ])(?![A-Za-z'])|([AI])(?=\s*[.,;:)\]]*\s*$|\s*(?:,|and|or|&)\s*[(\[]?[B-J]\b))")
_NEGATION = re.compile(r"(?i)\b(?:not|no|isn't|neither|nor|except|none|rather than|instead of)\b|不|非|除")


def check_choice(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare the option that `predicted` names with `gold`, a letter (or several: "A,C") or the text of an option."""
    texts = options.choices
    wanted = _gold_letters(gold, texts)
    if not wanted:
        return check_text(predicted, gold, options)
    answer = plain_characters(unwrap(predicted) or predicted)
    if len(wanted) > 1:
        return _compare_sets(answer, wanted)
    named = read_options(answer, texts)
    if not named:
        return Judgement("wrong", "names none of the options") if texts else Judgement("undecided", "names no option letter")
    # Options may have the same text; whoever names one of them means the same.
    alike = wanted | _letters_of(dict(zip(LETTERS, texts, strict=False)).get(min(wanted), ""), texts)
    if named <= alike:
        return Judgement("correct", "same option")
    if named & alike:
        return Judgement("undecided", "names several options")
    return Judgement("wrong", "another option")


def read_options(answer: str, texts: tuple[str, ...] = ()) -> frozenset[str]:
    """The letters of the options that `answer` names; empty when it names none."""
    for reading in READINGS:
        if found := reading(answer, texts):
            return found
    return frozenset()


def _exact(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """A lone letter, or exactly an option's text. Where the texts are letters themselves, both readings count."""
    lone = _LONE.fullmatch(answer)
    letters = frozenset(lone.group(1).upper()) if lone else _listed(answer)
    return letters | _letters_of(answer, texts)


def _listed(answer: str) -> frozenset[str]:
    """The letters of a list that holds nothing else: "A, C", "(A) and (B)", "AC"."""
    return frozenset(re.findall("[A-J]", re.sub(r"(?i)and|or", "", answer))) if _SEVERAL.fullmatch(answer) else frozenset()


def _leading(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """ "B. 7", "(B) 7", "B) 7"; with a bare space ("B 7"), or in lower case, only when the option's text follows."""
    match = _LEADING.match(answer)
    if not match:
        return frozenset()
    letter = match.group(1)
    said = _letters_of(answer[match.end() :], texts)
    bare = not match.group().strip("* \t")[1:].strip() or letter.islower()
    if bare and letter.upper() not in said:
        return frozenset()
    return frozenset(letter.upper()) | said


def _named(answer: str, _texts: tuple[str, ...]) -> frozenset[str]:
    """ "option B", "the answer is B", "B is correct", "选B"."""
    if _NEGATION.search(answer):
        return frozenset()
    found = {(match.group(1) or match.group(2)).upper() for match in _NAMED.finditer(answer)}
    return frozenset(found | {match.group(1) for match in _NAMED_AFTER.finditer(answer)})


def _loose(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters in brackets or alone, and option texts inside a phrase. Under a negation every option stays possible."""
    found = {match.group(1).upper() for match in _BRACKETED.finditer(answer)}
    found |= {match.group(1) or match.group(2) for match in _STANDALONE.finditer(answer)}
    found |= _contained(answer, texts)
    if found and _NEGATION.search(answer):
        return frozenset(LETTERS)
    return frozenset(found)


READINGS: tuple[Callable[[str, tuple[str, ...]], frozenset[str]], ...] = (_exact, _leading, _named, _loose)


class _Option(NamedTuple):
    """A choice's text in the forms it is compared in."""

    letter: str
    text: str
    plain: str
    number: Number | None


@functools.lru_cache(maxsize=256)
def _options(texts: tuple[str, ...]) -> tuple[_Option, ...]:
    """The forms of one question's choices; all its responses ask for them."""
    return tuple(_Option(letter, text, normal_text(text), single_number(text)) for letter, text in zip(LETTERS, texts, strict=False))


def _letters_of(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters of the options whose text `answer` is."""
    number, plain = (single_number(answer), normal_text(answer)) if texts else (None, "")
    found = set()
    for option in _options(texts):
        if number and option.number:
            same = equal(number, option.number, 0.0) is True
        else:
            same = plain == option.plain and (bool(plain) or answer.strip() == option.text.strip())
        if same:
            found.add(option.letter)
    return frozenset(found)


def _contained(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Options whose text stands in the answer, less those that only stand inside a longer one ("cat" in "black cat")."""
    plain = normal_text(answer)
    kept = set()
    for option in sorted(_options(texts), key=lambda option: -len(option.plain)):
        if contains(plain, option.plain):
            kept.add(option.letter)
            plain = plain.replace(option.plain, "\n")
    return frozenset(kept)


def _gold_letters(gold: str, texts: tuple[str, ...]) -> frozenset[str]:
    lone = _LONE.fullmatch(gold)
    if lone and (not texts or lone.group(1).upper() in LETTERS[: len(texts)]):
        return frozenset(lone.group(1).upper())
    by_text = _letters_of(gold, texts)
    if len(by_text) == 1:
        return by_text
    named = _listed(gold) or read_options(gold, texts)
    return named if len(named) == 1 or _SEVERAL.fullmatch(gold) else frozenset()


def _compare_sets(answer: str, wanted: frozenset[str]) -> Judgement:
    """Questions with several right options: the same letters, in any order."""
    lone = _LONE.fullmatch(answer)
    named = frozenset(lone.group(1).upper()) if lone else _listed(answer)
    if named:
        return Judgement("correct", "same options") if named == wanted else Judgement("wrong", "other options")
    return Judgement("undecided", "names options in a phrase")
