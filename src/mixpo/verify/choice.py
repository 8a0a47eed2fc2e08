"""Multiple choice: which option a short answer names, by letter or by text.

Readings are tried from the surest kind to the loosest, and the first kind that finds anything decides. Two options named at once are
undecided when one of them is right. The article in "A cat" is not an option.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from mixpo.verify.formula import check_formula
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.kinds import guess_kind
from mixpo.verify.latex import key, to_latex
from mixpo.verify.number import Number, check_number, equal, is_bound, read_numbers, single_number
from mixpo.verify.number_words import read_whole
from mixpo.verify.text import check_text, contains, normal_text
from mixpo.verify.wrapping import plain_characters, unwrap
from mixpo.verify.yes_no import check_yes_no

LETTERS = "ABCDEFGHIJ"
STEM = 6
"""Letters by which "increasing" is a form of "increase"."""

_LONE = re.compile(r"[\s(\[{<*\"'.【（]*([A-Ja-j])[\s)\]}>*\"'.,:;、。】）]*")
_SEVERAL = re.compile(r"[\s(\[*]*[A-J](?:(?:[\s(\[*)\].,;、&+/和与或]|(?i:and|or)\b)*[A-J]){1,9}[\s)\].*]*")
_LEADING = re.compile(r"[\s(\[*【]*([A-Ja-j])(?:[\])}】]\s*[.:、,-]?|[.:、,*]+(?=[\s\W]|[^\x00-\x7f])|\s+[-=]+(?=\s)|\s++)\s*+(?=\S)")
_NAMED = re.compile(
    r"(?i:\b(?:option|choice|answer(?:\s+(?:is|would be|should be))?|letter|select|choose|pick)|选项?|选择|答案(?:是|为|应为)?)"
    r"[\s:*(\[\"']*(?:([A-J])(?![A-Za-z'])(?:[\s)\]]*(?:,|/|&|and\b|or\b|和|或)[\s(\[]*([A-J])(?![A-Za-z']))?|([a-j])(?=[\s)\].*\"']*$))"
)
_NAMED_AFTER = re.compile(
    r"(?<![A-Za-z])\(?([B-HJ]|A(?=\)|\s+is\s+(?:the\s+)?(?:correct|right)))\)?\s*(?:is\s+(?:the\s+)?(?:correct|right)|选项|项|正确)"
)
_NEXT_OPTION = re.compile(r"(?<![A-Za-z.])([A-J])(?:[.:、]|(?<!\(.)\))(?=\s*[^\s)])")
"""Another option of a list: "A. cat, B. dog"."""
_BY_POSITION = re.compile(r"(?i)(?:the\s+)?(?:option|choice)\s*(?:no\.?|number|#)?\s*(\d{1,2})")
_SEVERAL_VALUES = re.compile(r"[,;，；或和]|\b(?:and|or)\b")
_PERCENT_WORD = re.compile(r"(?i)(?<=\S)\s++per\s?cent$")
_BRACKETED = re.compile(r"[(\[]\s*([A-Ja-j])\s*[)\]]")
_STANDALONE = re.compile(r"(?<![A-Za-z'.])(?:([B-HJ])(?![A-Za-z'+#♯♭])|([AI])(?=\s*[.,;:)\]]*\s*$|\s*(?:,|and|or|&)\s*[(\[]?[B-J]\b))")
_OVER_OPTIONS = re.compile(r"(?i)\b(?:all|both|none|neither)\b|以上|都")
"""Texts of options that are about other options: "all of the above", "both A and B"."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_NEGATION = re.compile(
    r"(?i)\b(?:not|no|neither|nor|except|none|rather than|instead of|cannot|\w{1,5}n't)\b"
    r"|\b(?:is|are|was|were|do|does|did|ca|could|wo|would|should)nt\b|不|非|除"
)


def check_choice(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare the option that `predicted` names with `gold`, a letter (or several: "A,C") or the text of an option."""
    texts = options.choices
    wanted = _gold_letters(gold, texts)
    if not wanted:
        return check_text(predicted, gold, options)
    answer = plain_characters(unwrap(predicted) or predicted)
    if len(wanted) > 1:
        return _compare_sets(answer, wanted)
    if _are_yes_no(texts) and not _LONE.fullmatch(answer):
        return check_yes_no(answer, texts[LETTERS.index(min(wanted))], options)
    named = read_options(answer, texts)
    alike = _alike(wanted, texts)
    if not named:
        return _compare_meaning(answer, alike, options) if texts else Judgement("undecided", "names no option letter")
    if named <= alike:
        return Judgement("correct", "same option")
    if named & alike or (len(named) > 1 and _is_over_options(wanted, texts)):
        return Judgement("undecided", "names several options")
    return Judgement("wrong", "another option")


@functools.lru_cache(maxsize=256)
def _alike(wanted: frozenset[str], texts: tuple[str, ...]) -> frozenset[str]:
    """The wanted option and those with the same text: whoever names one of them means the same. All responses of a question ask."""
    return wanted | _letters_of(dict(zip(LETTERS, texts, strict=False)).get(min(wanted), ""), texts)


@functools.lru_cache(maxsize=256)
def _are_yes_no(texts: tuple[str, ...]) -> bool:
    """Whether the options are yes and no, in any language and order."""
    return len(texts) == 2 and {guess_kind(text) for text in texts} == {"yes_no"}


def read_options(answer: str, texts: tuple[str, ...] = ()) -> frozenset[str]:
    """The letters of the options that `answer` names; empty when it names none."""
    there = frozenset(LETTERS[: len(texts)] if texts else LETTERS)
    for reading in READINGS:
        if found := reading(answer, texts) & there:
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
    return frozenset(letter.upper()) | said | frozenset(_NEXT_OPTION.findall(answer, match.end()))


def _named(answer: str, _texts: tuple[str, ...]) -> frozenset[str]:
    """ "option B", "the answer is B", "B is correct", "选B"."""
    if _NEGATION.search(answer):
        return frozenset()
    found = {letter.upper() for match in _NAMED.finditer(answer) for letter in match.groups() if letter}
    return frozenset(found | {match.group(1) for match in _NAMED_AFTER.finditer(answer)})


def _loose(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters in brackets or alone, and option texts inside a phrase. Under a negation or as a bound every option stays possible."""
    found = {match.group(1).upper() for match in _BRACKETED.finditer(answer)}
    found |= {match.group(1) or match.group(2) for match in _STANDALONE.finditer(answer)}
    # Inside a formula an option's text is only a part of it: √3 in √3/2.
    held = _contained(answer, texts)
    if held and guess_kind(answer) != "formula":
        found |= held
    if found and (_NEGATION.search(rest := _without_texts(answer, texts)) or is_bound(f"{rest} 0")):
        return frozenset(LETTERS)
    return frozenset(found)


def _without_texts(answer: str, texts: tuple[str, ...]) -> str:
    """Without the texts of options, which may hold a negation themselves: "does not change"."""
    plain = normal_text(answer)
    for option in sorted(_options(texts), key=lambda option: -len(option.plain)):
        plain = plain.replace(option.plain, " ") if contains(plain, option.plain) else plain
    return plain


def _worked_out(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Exactly an option's text behind an equals sign: "\\sin 60° = √3/2"."""
    if "=" not in answer or not texts or _SEVERAL_VALUES.search(answer):
        return frozenset()
    return _letters_of(answer.rpartition("=")[2].strip(), texts)


READINGS: tuple[Callable[[str, tuple[str, ...]], frozenset[str]], ...] = (_exact, _worked_out, _leading, _named, _loose)


class _Option(NamedTuple):
    """A choice's text in the forms it is compared in."""

    letter: str
    text: str
    plain: str
    number: Number | None
    formula: str


@functools.lru_cache(maxsize=256)
def _options(texts: tuple[str, ...]) -> tuple[_Option, ...]:
    """The forms of one question's choices; all its responses ask for them."""
    bare = [unwrap(text) or text for text in texts]
    return tuple(
        _Option(letter, text, normal_text(text), _number(text), key(to_latex(text))) for letter, text in zip(LETTERS, bare, strict=False)
    )


def _letters_of(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters of the options whose text `answer` is."""
    if not texts:
        return frozenset()
    number, plain = _number(answer), normal_text(answer)
    found = set()
    for option in _options(texts):
        if number and option.number:
            same = equal(number, option.number, 0.0) is True
        else:
            same = plain == option.plain and (bool(plain) or answer.strip() == option.text.strip())
        if same:
            found.add(option.letter)
    if len(found) == 1:
        return frozenset(found)
    formula = key(to_latex(answer))
    spelled = {option.letter for option in _options(texts) if formula and formula == option.formula}
    return frozenset(spelled or found)


def _number(text: str) -> Number | None:
    """The number that a text is, be it "5 cm" or "x = 5"."""
    if "=" in text:
        numbers = read_numbers(text)
        return numbers[0] if numbers and len(numbers) == 1 else None
    words = _PERCENT_WORD.sub("", text)
    value = read_whole(words)
    return single_number(text) if value is None else Number(value=Decimal(value), percent=words != text)


def _compare_meaning(answer: str, wanted: frozenset[str], options: Options) -> Judgement:
    """An answer that names no option may still be the right one in another form: "y = 1 + 2x" for "y = 2x + 1"."""
    right = next(option.text for option in _options(options.choices) if option.letter in wanted)
    kind = guess_kind(right)
    kinds = {kind, guess_kind(answer)}
    if kinds == {"number"}:
        return check_number(answer, right, options)
    if kinds <= {"formula", "number"}:
        return check_formula(answer, right, options)
    position = _BY_POSITION.fullmatch(answer)
    if position and LETTERS[int(position.group(1)) - 1 : int(position.group(1))] in wanted:
        return Judgement("undecided", "an option by its place")
    if _hints_at(answer, wanted, options.choices) or (_OVER_OPTIONS.search(answer) and _is_over_options(wanted, options.choices)):
        return Judgement("undecided", "speaks of the option")
    if is_bound(right) and read_numbers(answer):
        return Judgement("undecided", "a number for a bound")  # 5 for "more than 4"
    judgement = (check_number if kind == "number" else check_text)(answer, right, options)
    return judgement if judgement.outcome != "wrong" else Judgement("wrong", "names none of the options")


def _is_over_options(wanted: frozenset[str], texts: tuple[str, ...]) -> bool:
    """Whether the right option is about others: "all of the above", or "Alice and Bob" beside "Alice" and "Bob"."""
    options = _options(texts)
    return any(
        _OVER_OPTIONS.search(option.text) or sum(contains(option.plain, other.plain) for other in options if other is not option) > 1
        for option in options
        if option.letter in wanted
    )


def _hints_at(answer: str, wanted: frozenset[str], texts: tuple[str, ...]) -> bool:
    """Whether an answer that names no option uses a word that only the right one has: "it remains constant" for "remain constant"."""
    words = {option.letter: _stems(option.plain) for option in _options(texts)}
    others = set().union(*(stems for letter, stems in words.items() if letter not in wanted))
    return any(_stems(normal_text(answer)) & words[letter] - others for letter in wanted if letter in words)


def _stems(plain: str) -> set[str]:
    """The beginnings of words of three letters or more, without endings. A text with digits has none: "20 meters" is not "12 meters"."""
    return set() if re.search(r"\d", plain) else {word.removesuffix("s")[:STEM] for word in _WORD.findall(plain)}


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
