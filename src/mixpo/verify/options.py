"""One reader of options: the letters of the options that a short answer names, by letter or by text.

Readings are tried from the surest to the loosest, and the first that names an option decides. The article in "A cat" names none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

from mixpo.verify.kinds import guess_kind
from mixpo.verify.latex import key, to_latex
from mixpo.verify.number import Number, equal, is_bound, read_numbers, same_quantities, single_number
from mixpo.verify.number_words import read_whole
from mixpo.verify.text import contains, normal_text, whole_words
from mixpo.verify.wrapping import unwrap

LETTERS = "ABCDEFGHIJ"
ANOTHER = "?"
"""Stands for a value that none of the options has."""
ANY = frozenset(LETTERS)
"""Named by an answer that leaves every option possible: under a negation, as a bound, or next to something that is no option."""
BESIDE = 8
"""Words behind a letter up to which they are its text; more are an explanation."""

LONE = re.compile(r"[\s(\[{<*\"'.【（]*([A-Ja-j])[\s)\]}>*\"'.,:;、。】）]*")
_JOINT = r"(?:[\s(\[*)\].,;、&+/和与或]|(?i:and|or)\b)"
SEVERAL = re.compile(rf"[\s(\[*]*[A-J](?:{_JOINT}*[A-J]){{1,9}}[\s)\].*]*")
_LEADING = re.compile(
    r"[\s(\[*【\"']*([A-Ja-j])(?:(?:[\])}】]|[\"'](?=[\s.:,]))[*]*(?:\s*[.:、,]|\s*-(?=\s))?|[.:、,*。]+(?=[\s\W\d]|[^\x00-\x7f])|[:、]|\s+[-=]+(?=\s)|\s++|(?=[\u4e00-\u9fff(]))\s*+(?=\S)"
)
_IN_BRACKETS = re.compile(r"\([^()]*(?:\([^()]*\)[^()]*)*\)\W*")
_ARTICLE = re.compile(r"[\s*]*(?:[Aa]\s+[A-Za-z]|[a-j](?:\s|\Z))")
"""An "a" in front of a word, or a letter in lower case with nothing behind it: no label."""
_REASON = re.compile(r"(?i)(?:\A|[\s,(]+)(?:since|because)\b|[，,]?(?:因为|由于)")
_NAMED = re.compile(
    r"(?i:\b(?:(?:option|choice|answer|letter)(?:\s+(?:is|would be|should be|must be))?|select|choose|pick)"
    r"|选项?(?:是|为)?|选择|答案(?:是|为|应为)?|正确的(?:是|为)?)[\s:*(\[\"']*"
    r"(?:([A-J])(?![A-Za-z']|[*+^]\w)(?:[\s)\]]*(?:[,/&、和与或]|and\b|or\b)[\s(\[]*([A-J])(?![A-Za-z']))?|([a-j])(?=[\s)\].*\"']*$))"
)
_NAMED_AFTER = re.compile(
    r"(?<![A-Za-z])\(?([A-HJ])\)?\s*(?:(?:is|are)\s+(?:the\s+)?(?:most\s+\w+\s+|best\s+|only\s+)?(?:correct|right|true|best|answer|choice|option)\b|选项|项|是?正确|是(?:最佳)?答案)"
)
_NEXT_OPTION = re.compile(r"(?:\A|[,;，；、\n]|\band\b|\bor\b|和|或)[\s\"'*]*(?:\(([A-J])\)|([A-J])[.:、)])(?=\s*[^\s)])")
"""Another option of a list: "A. cat, B. dog"."""
_LAST_OPTION = re.compile(r"(?:[,;，；、\n]|\band\b|\bor\b|和|或)[\s\"'*(]*([A-J])[\s\"'*).]*\Z")
"""The same with its letter alone: "A. cat, B"."""
_NEXT_TEXT = re.compile(r"\s\(?([A-J])[.:、)]\s*(?=\S)")
"""The same without a separator: "A) cat B) dog", where the option's text follows."""
_JUDGED = re.compile(r"(?i)(?:is|as|was)\s+(?:the\s+)?(?:correct|right|true|best)\b")
"""Words behind a letter that are no text of an option."""
TEXT_LETTER = re.compile(r"\\text(?:bf|rm|it)?\s*\{\s*\(?([A-J])\)?[.:)]?\s*\\?\s*\}(?:\s|\\quad|\\[ ,;:])*")
_EQUALS = re.compile(r"[=≈]|\b(?:is|are|equals|be|approximately|about)\b|[为是即]")
_CLAUSE_END = re.compile(r"[.。;；，,](?!\d)")
_SEVERAL_VALUES = re.compile(r"[,;，；或和]|\b(?:and|or)\b")
_BRACKETED = re.compile(r"[(\[]\s*([A-Ja-j])\s*[)\]]")
_STANDALONE = re.compile(
    r"(?<![A-Za-z'./])(?:([B-HJ])(?![A-Za-z'+#♯♭])|([AI])(?=\s*[.,;:)\]]*\s*$|\s*(?:[,&→⇒<>=-]|->|and|or)\s*[(\[]?[B-J]\b))"
)
_LAST_LETTER = re.compile(
    r"(?<![A-Za-z'./])([A-J])(?:(?=[\s.,;:)\]]*$)|(?:\s*(?:[,&、和与或]|and\b|or\b)){1,2}\s*[(\[]?([A-J])(?![A-Za-z]))"
)
OVER_OPTIONS = re.compile(r"(?i)\b(?:all|both|none|neither)\b|以上|都")
"""Texts of options that are about other options: "all of the above", "both A and B"."""
_NO_OPTION = re.compile(
    r"(?i)\bnone of (?:the |these )?(?:(?:given|listed|provided|above|answer) )*(?:options|choices|answers|above)\b(?!\s*$)"
    r"|\w\W+(?:\w+ ){0,3}none of (?:the |these )?(?:\w+ )?(?:options|choices|answers)\b"
    r"|\bno (?:\w+ )?(?:option|choice)s? (?:(?:is|are|seems?|can be) )?(?:match|fit|equal|correspond|correct|right|chosen)"
    r"|\bnot (?:listed|among|(?:one of|in|any of) the (?:\w+ )?(?:options|choices))"
    r"|不在(?:所?给的?)?选项|选项[中里]?(?:都|均)?没有|没有(?:一个|正确|合适|符合|匹配)的?选项"
)
_NONE = re.compile(r"(?i)\b(?:none|neither)\b|都不|没有")
_OR = re.compile(r"(?i)\bor\b|或")
_SYMBOLS = re.compile(r"\d|[^\w\s]")
_RATIO = re.compile(r"\d{1,9}\s*[:比]\s*\d{1,9}")
_NEGATION = re.compile(
    r"(?i)\b(?:not|no|neither|nor|except|none|rather than|instead of|cannot|incorrect|wrong|\w{1,5}n't)\b"
    r"|\b(?:is|are|was|were|do|does|did|ca|could|wo|would|should)nt\b|不|无法|非|除|错"
)


def read_options(answer: str, texts: tuple[str, ...] = (), readings: Sequence[Reading] = ()) -> frozenset[str]:
    """The letters of the options that `answer` names (`ANOTHER` for a value that is none of them); empty when it names none."""
    there = frozenset((LETTERS[: len(texts)] if texts else LETTERS) + ANOTHER)
    for reading in readings or READINGS:
        if named := reading(answer, texts) & there:
            return named
    return frozenset()


def _exact(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """A lone letter, or exactly an option's text, or a list of letters. Where the texts are letters themselves, both readings count."""
    named, leading = letters_of(answer, texts), _LEADING.match(answer)
    if leading and (named or SEVERAL.fullmatch(answer)) and letters_of(answer[leading.end() :], texts) == {leading.group(1).upper()}:
        return frozenset(leading.group(1).upper())
    return lone_letter(answer) | named | _label(answer, named, texts) or listed(answer)


def _label(answer: str, named: frozenset[str], texts: tuple[str, ...]) -> frozenset[str]:
    """The letter in front of the text of another option, as in "A 9"; in front of a word an "A" is an article."""
    match = _LEADING.match(answer) if named and not _ARTICLE.match(answer) else None
    if not match or any(option.text.startswith(match.group(1)) for option in options_of(texts) if option.letter in named):
        return frozenset()
    return frozenset(match.group(1).upper())


def lone_letter(answer: str) -> frozenset[str]:
    """The letter that an answer is, with nothing but brackets and punctuation around it."""
    lone = LONE.fullmatch(answer)
    return frozenset(lone.group(1).upper()) if lone else frozenset()


def listed(answer: str) -> frozenset[str]:
    """The letters of a list that holds nothing else: "A, C", "(A) and (B)", "AC"."""
    return frozenset(re.findall("[A-J]", re.sub(r"(?i)and|or", "", answer))) if SEVERAL.fullmatch(answer) else frozenset()


def _none(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """ "None of the options matches": every one stays possible, unless that is an option itself."""
    return ANY if _NO_OPTION.search(answer) and not any(map(_NONE.search, texts)) else frozenset()


def _leading(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """ "B. 7", "(B) 7", "B) 7"; with a bare space ("B 7"), or in lower case, only when the option's text follows."""
    match = _LEADING.match(answer)
    if not match:
        return frozenset()
    letter, rest = match.group(1).upper(), _REASON.split(answer[match.end() :], maxsplit=1)[0]
    sign = match.group().strip("* \t(")[1:].strip()
    is_bare = not (sign or _IN_BRACKETS.fullmatch(rest)) or (match.group(1).islower() and "=" in sign)
    if is_bare and letter not in letters_of(rest, texts):
        is_value = not _ARTICLE.match(answer) and (letters_of(rest, texts) or _number(rest.strip("()")))
        return _beside(letter, rest, texts) if is_value else frozenset()  # "B 9", but not "A tiger"
    others = lone_letter(rest)
    if not letters_of(rest, texts):
        others |= {letter for groups in _NEXT_OPTION.findall(rest) for letter in groups if letter}
        last = None if SEVERAL.fullmatch(rest) else _LAST_OPTION.search(rest)
        others |= _lettered(last.group(1), texts) if last else frozenset()
    others |= {
        option.letter
        for next_option in _NEXT_TEXT.finditer(f" {rest}")
        for option in options_of(texts)
        if option.letter == next_option.group(1) and option.plain and normal_text(rest[next_option.end() - 1 :]).startswith(option.plain)
    }
    return frozenset(others | {letter}) if others else _beside(letter, rest, texts)


def _named(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """ "option B", "the answer is B", "B is correct", "选B"."""
    named: set[str] = set()
    for match in _NAMED.finditer(answer):
        letters = {option for letter in match.groups() if letter for option in _lettered(letter.upper(), texts)}
        named |= _beside(min(letters), answer[match.end() :].lstrip(" )].:*,;。"), texts) if len(letters) == 1 else letters
    for match in _NAMED_AFTER.finditer(answer):
        named |= _beside(match.group(1), answer[match.end() :].lstrip(" ,:;。.)"), texts)
    return frozenset() if not named or _NEGATION.search(_without_texts(answer, texts)) else frozenset(named)


def _beside(letter: str, rest: str, texts: tuple[str, ...]) -> frozenset[str]:
    """The option of a letter, and what the text next to it names instead: "A. 9" is both A and the option 9."""
    own = next((option for option in options_of(texts) if option.letter == letter), None)
    rest = rest.strip().removesuffix(")").strip("( ") if rest.startswith("(") else rest
    if not own or not rest.strip() or _JUDGED.match(rest):
        return frozenset(letter)
    named = letters_of(rest, texts) or _worked_out(rest, texts)
    if not named and len(rest.split()) <= BESIDE:
        number = _number(rest)
        is_other = number and own.number and equal(number, own.number, 0.0) is False
        if is_other or same_quantities(rest, own.text, 0.0) is False:
            return frozenset(letter + ANOTHER)
        named = _contained(rest, texts)
    return frozenset(letter) if not named or letter in named else named | {letter}


def _worked_out(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Exactly an option behind an equals sign or a verb: "\\sin 60° = √3/2", "the length is √2", "her genotype is (B) Ff"."""
    if not texts or ("=" in answer and _SEVERAL_VALUES.search(answer)):
        return frozenset()
    subject, *sides = _EQUALS.split(answer)
    if not sides or _NEGATION.search(answer):
        return frozenset()
    last = sides[-1].strip()
    named = letters_of(last, texts) or (_leading(last, texts) if last.startswith("(") else frozenset())
    return named | lone_letter(subject) if named and subject.isupper() else named  # "A is 9" names two


def _loose(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters in brackets or alone, and option texts inside a phrase. Under a negation or as a bound every option stays possible.

    Where the options are known a letter alone has to be the last word: others name points and lines.
    """
    # Inside a formula an option's text is only a part of it: √3 in √3/2. A sentence may hold formulas.
    held = _contained(answer, texts) if guess_kind(answer) != "formula" or len(answer.split()) > BESIDE else frozenset()
    rest = _without_texts(answer, texts) if held else answer
    named = set(held) | {match.group(1).upper() for match in _BRACKETED.finditer(rest)}
    ends_in_text = any(option.letter in held and normal_text(answer).endswith(option.plain) for option in options_of(texts))
    if not named or not ends_in_text:
        letters = (_LAST_LETTER if texts else _STANDALONE).findall(answer if held else rest)
        named |= {option for groups in letters for letter in groups if letter for option in _lettered(letter, texts)}
    if named and (_NEGATION.search(rest) or is_bound(f"{rest} 0") or (len(held) == 1 and _OR.search(rest))):
        return ANY
    return frozenset(named)


Reading = Callable[[str, tuple[str, ...]], frozenset[str]]
READINGS: tuple[Reading, ...] = (_none, _exact, _leading, _named, _worked_out, _loose)
"""From the surest to the loosest; the first that names an option decides."""


class _Option(NamedTuple):
    """A choice's text in the forms it is compared in."""

    letter: str
    text: str
    plain: str
    number: Number | None
    formula: str


@functools.lru_cache(maxsize=256)
def options_of(texts: tuple[str, ...]) -> tuple[_Option, ...]:
    """The forms of one question's choices; all its responses ask for them."""
    bare = [unwrap(text) or text for text in texts]
    are_ratios = bool(bare) and all(map(_RATIO.fullmatch, bare))  # "5/12" names 5:12, unless that may be a time of day
    return tuple(
        _Option(letter, text, normal_text(text), _number(_as_quotient(text) if are_ratios else text), key(to_latex(text)))
        for letter, text in zip(LETTERS, bare, strict=False)
    )


@functools.lru_cache(maxsize=1024)
def letters_of(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters of the options whose text `answer` is."""
    if not texts:
        return frozenset()
    if spelled := {option.letter for option in options_of(texts) if option.text == answer.strip()}:
        return frozenset(spelled)
    number, plain, formula = _number(_as_quotient(answer)), normal_text(answer), key(to_latex(answer))
    named = {
        option.letter
        for option in options_of(texts)
        if (equal(number, option.number, 0.0) is True if number and option.number else plain == option.plain != "")
    }
    if len(named) == 1:
        return frozenset(named)
    return frozenset({option.letter for option in options_of(texts) if formula and formula == option.formula} or named)


def _as_quotient(text: str) -> str:
    return re.sub("[:比]", "/", text) if _RATIO.fullmatch(text.strip()) else text


def _number(text: str) -> Number | None:
    """The number that a text is, be it "5 cm" or "x = 5"."""
    if (text.count("=") > 1 and _SEVERAL_VALUES.search(text)) or _CLAUSE_END.search(text.partition("=")[0]):
        return None  # "m = 3, n = 2" is no number, nor is a calculation behind a sentence
    if "=" in text:
        numbers = read_numbers(text)
        return numbers[0] if numbers and len(numbers) == 1 else None
    value = read_whole(text)
    return single_number(text) if value is None else Number(value=Decimal(value))


def _contained(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Options whose text is in the answer, less those that only stand inside a longer one ("cat" in "black cat")."""
    plain, kept = normal_text(answer), set[str]()
    for option in sorted(options_of(texts), key=lambda option: -len(option.plain)):
        if contains(plain, option.plain) and (not _SYMBOLS.search(option.text) or _stands_in(option.text, answer)):
            kept.add(option.letter)
            plain = plain.replace(option.plain, "\n")
    texts_kept = {option.plain for option in options_of(texts) if option.letter in kept}
    alike = [option for option in options_of(texts) if option.plain in texts_kept]  # with those that differ in case or signs alone
    spelled = [option for option in alike if contains(answer, option.text)] if len(texts_kept) == 1 else []
    return frozenset(option.letter for option in spelled or alike)


def _stands_in(text: str, answer: str) -> bool:
    """Whether a text with digits or signs is in an answer, and not as a part of a formula: 2 is not in √2."""
    return re.search(rf"(?<![\w.√^{{\\/*+-]){re.escape(text.strip())}(?![\w^{{/√]|\.\d)", answer, re.ASCII) is not None or (
        text.isalnum() is False and key(to_latex(text)) in key(to_latex(answer))
    )


def _lettered(letter: str, texts: tuple[str, ...]) -> frozenset[str]:
    """What a letter in a phrase names: an option, or one whose text holds it ("Point A"), if those are not the same."""
    held = {option.letter for option in options_of(texts) if re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", option.text)}
    return frozenset(letter) if letter in held else frozenset(held | {letter})


def _without_texts(answer: str, texts: tuple[str, ...]) -> str:
    """Without the texts of options, which may hold a negation themselves: "does not change"."""
    if not texts:
        return answer
    plain = normal_text(answer)
    for option in sorted(options_of(texts), key=lambda option: -len(option.plain)):
        plain = re.sub(whole_words(option.plain), " ", plain) if option.plain else plain
    return plain
