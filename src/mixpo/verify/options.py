"""One reader of options: the letters of the options that a short answer names, by letter or by text.

Readings are tried from the surest to the loosest, and the first that names an option decides:

| reading    | reads                                        | names                                                    |
| ---------- | -------------------------------------------- | -------------------------------------------------------- |
| none       | "None of the options matches"                | every option: each stays possible                        |
| exact      | "B", "(b)", "A, C", an option's text, "B 7"  | that option; of "A 9" also the one that is 9             |
| leading    | "B. 7", "(B) since ...", "A. cat, B. dog"    | the label, and another option that the text after it is  |
| named      | "option B", "B is correct", "选B"             | the same; nothing under a negation                       |
| worked out | "AB = 10/2 = 5", "the length is 5"           | the option behind the last equals sign or verb           |
| loose      | "a black cat", "so it must be (B)"           | what the phrase holds; under a negation every option     |

The article in "A cat" names none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixpo.verify.kinds import guess_kind
from mixpo.verify.latex import key, to_latex
from mixpo.verify.number import Number, equal, is_bound, one_number, read_numbers, same_quantities
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
    r"|(?<![A-Za-z])\(?([A-HJ])\)?\s*(?:(?:is|are)\s+(?:the\s+)?(?:most\s+\w+\s+|best\s+|only\s+)?"
    r"(?:correct|right|true|best|answer|choice|option)\b|选项|项|是?正确|是(?:最佳)?答案)"
)
_NEXT_OPTION = re.compile(r"(?:\A|[,;，；、\n]|\band\b|\bor\b|和|或)[\s\"'*]*\(?([A-J])[.:、)](?=\s*[^\s)])")
"""Another option of a list: "A. cat, B. dog"."""
_LAST_OPTION = re.compile(r"(?:[,;，；、\n]|\band\b|\bor\b|和|或)[\s\"'*(]*([A-J])[\s\"'*).]*\Z")
"""The same with its letter alone: "A. cat, B"."""
_NEXT_TEXT = re.compile(r"\s\(?([A-J])[.:、)]\s*(?=\S)")
"""The same without a separator: "A) cat B) dog", where the option's text follows."""
_JUDGED = re.compile(r"(?i)(?:is|as|was)\s+(?:the\s+)?(?:correct|right|true|best)\b")
"""Words behind a letter that are no text of an option."""
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


def _none(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    return ANY if _NO_OPTION.search(answer) and not any(map(_NONE.search, texts)) else frozenset()


def _exact(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Where the texts are letters themselves, both readings count."""
    named, leading = letters_of(answer, texts), _LEADING.match(answer)
    label = leading.group(1).upper() if leading else ""
    if leading and letters_of(answer[leading.end() :], texts) == {label}:
        return frozenset(label)
    if label and named and not _ARTICLE.match(answer) and not any(options_of(texts)[letter].text.startswith(label) for letter in named):
        return named | {label}
    return lone_letter(answer) | named or listed(answer)


def lone_letter(answer: str) -> frozenset[str]:
    """The letter that an answer is, with nothing but brackets and punctuation around it."""
    lone = LONE.fullmatch(answer)
    return frozenset(lone.group(1).upper()) if lone else frozenset()


def listed(answer: str) -> frozenset[str]:
    """The letters of a list that holds nothing else: "A, C", "(A) and (B)", "AC"."""
    return frozenset(re.findall("[A-J]", re.sub(r"(?i)and|or", "", answer))) if SEVERAL.fullmatch(answer) else frozenset()


def _leading(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """With a bare space ("B 7"), or in lower case, a letter is a label only when the text of an option or a number follows."""
    match = _LEADING.match(answer)
    if not match:
        return frozenset()
    letter, rest = match.group(1).upper(), _REASON.split(answer[match.end() :], maxsplit=1)[0]
    sign = match.group().strip("* \t(")[1:].strip()
    own = letters_of(rest, texts)
    if (not (sign or _IN_BRACKETS.fullmatch(rest)) or (match.group(1).islower() and "=" in sign)) and letter not in own:
        is_value = not _ARTICLE.match(answer) and (own or _number(rest.strip("()")))
        return _beside(letter, rest, texts) if is_value else frozenset()  # "B 9", but not "A tiger"
    others = set(lone_letter(rest))
    if not own:
        last = None if SEVERAL.fullmatch(rest) else _LAST_OPTION.search(rest)
        others |= {*_NEXT_OPTION.findall(rest), *(_lettered(last.group(1), texts) if last else ())}
    for following in _NEXT_TEXT.finditer(f" {rest}"):
        option = options_of(texts).get(following.group(1))
        if option and option.plain and normal_text(rest[following.end() - 1 :]).startswith(option.plain):
            others.add(option.letter)
    return frozenset(others | {letter}) if others else _beside(letter, rest, texts)


def _named(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    named: set[str] = set()
    for match in _NAMED.finditer(answer):
        *before, judged = match.groups()
        letters = {option for letter in before if letter for option in _lettered(letter.upper(), texts)} or {judged}
        named |= _beside(min(letters), answer[match.end() :].lstrip(" )].:*,;。"), texts) if len(letters) == 1 else letters
    return frozenset() if named and _NEGATION.search(_without_texts(answer, texts)) else frozenset(named)


def _beside(letter: str, rest: str, texts: tuple[str, ...]) -> frozenset[str]:
    """The option of a letter, and what the text next to it names instead: "A. 9" is both A and the option 9."""
    own = options_of(texts).get(letter)
    rest = rest.strip().removesuffix(")").strip("( ") if rest.startswith("(") else rest
    if not own or not rest.strip() or _JUDGED.match(rest):
        return frozenset(letter)
    named = letters_of(rest, texts) or _worked_out(rest, texts)
    if not named and len(rest.split()) <= BESIDE:
        number = _number(rest)
        if (number and own.number and not equal(number, own.number, 0.0)) or same_quantities(rest, own.text, 0.0) is False:
            return frozenset(letter + ANOTHER)
        named = _contained(rest, texts)
    return frozenset(letter) if letter in named else named | {letter}


def _worked_out(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Exactly an option, or one with its letter in brackets, behind an equals sign or a verb; "A is 9" names two."""
    subject, *sides = _EQUALS.split(answer)
    if not texts or not sides or ("=" in answer and _SEVERAL_VALUES.search(answer)) or _NEGATION.search(answer):
        return frozenset()
    last = sides[-1].strip()
    named = letters_of(last, texts) or (_leading(last, texts) if last.startswith("(") else frozenset())
    return named | lone_letter(subject) if named and subject.isupper() else named


def _loose(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Where the options are known a letter alone has to be the last word: others name points and lines."""
    # Inside a formula an option's text is only a part of it: √3 in √3/2. A sentence may hold formulas.
    held = _contained(answer, texts) if guess_kind(answer) != "formula" or len(answer.split()) > BESIDE else frozenset()
    rest = _without_texts(answer, texts) if held else answer
    named = {*held, *map(str.upper, _BRACKETED.findall(rest))}
    if not any(normal_text(answer).endswith(options_of(texts)[letter].plain) for letter in held):
        letters = (_LAST_LETTER if texts else _STANDALONE).findall(answer)
        named |= {option for groups in letters for letter in groups if letter for option in _lettered(letter, texts)}
    if named and (_NEGATION.search(rest) or is_bound(f"{rest} 0") or (len(held) == 1 and _OR.search(rest))):
        return ANY
    return frozenset(named)


Reading = Callable[[str, tuple[str, ...]], frozenset[str]]
READINGS: tuple[Reading, ...] = (_none, _exact, _leading, _named, _worked_out, _loose)


class _Option(NamedTuple):
    """A choice's text in the forms it is compared in."""

    letter: str
    text: str
    plain: str
    number: Number | None
    formula: str


@functools.lru_cache(maxsize=256)
def options_of(texts: tuple[str, ...]) -> dict[str, _Option]:
    """The options of one question by letter; all its responses ask for them."""
    bare = [unwrap(text) or text for text in texts]
    read = _as_quotient if all(map(_RATIO.fullmatch, bare)) else str  # "5/12" names 5:12, unless that may be a time of day
    return {
        letter: _Option(letter, text, normal_text(text), _number(read(text)), key(to_latex(text)))
        for letter, text in zip(LETTERS, bare, strict=False)
    }


@functools.lru_cache(maxsize=1024)
def letters_of(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Letters of the options whose text `answer` is: in the same spelling, else the same number or words."""
    options = options_of(texts).values()
    if not options:
        return frozenset()
    formula, number, plain = key(to_latex(answer)), _number(_as_quotient(answer)), normal_text(answer)
    named = {
        option.letter
        for option in options
        if (equal(number, option.number, 0.0) is True if number and option.number else plain == option.plain != "")
    }
    spelled = {option.letter for option in options if formula and formula == option.formula}
    return frozenset(named if len(named) == 1 else spelled or named)


def _as_quotient(text: str) -> str:
    return re.sub("[:比]", "/", text) if _RATIO.fullmatch(text) else text


def _number(text: str) -> Number | None:
    """The number that a text is, be it "5 cm" or "x = 5"."""
    if (text.count("=") > 1 and _SEVERAL_VALUES.search(text)) or _CLAUSE_END.search(text.partition("=")[0]):
        return None  # "m = 3, n = 2" is no number, nor is a calculation behind a sentence
    numbers = read_numbers(text) if "=" in text else [one_number(text)]
    return numbers[0] if numbers and len(numbers) == 1 else None


def _contained(answer: str, texts: tuple[str, ...]) -> frozenset[str]:
    """Options whose text is in the answer, less those that only stand inside a longer one ("cat" in "black cat")."""
    plain, kept = normal_text(answer), set[str]()
    for option in _longest_first(texts):
        if contains(plain, option.plain) and (not _SYMBOLS.search(option.text) or _stands_in(option.text, answer)):
            kept.add(option.plain)
            plain = plain.replace(option.plain, "\n")
    alike = [option for option in options_of(texts).values() if option.plain in kept]  # with those that differ in case or signs alone
    spelled = [option for option in alike if contains(answer, option.text)] if len(kept) == 1 else []
    return frozenset(option.letter for option in spelled or alike)


def _stands_in(text: str, answer: str) -> bool:
    """Whether a text with digits or signs is in an answer, and not as a part of a formula: 2 is not in √2."""
    is_whole = re.search(rf"(?<![\w.√^{{\\/*+-]){re.escape(text.strip())}(?![\w^{{/√]|\.\d)", answer, re.ASCII)
    return is_whole is not None or (not text.isalnum() and key(to_latex(text)) in key(to_latex(answer)))


def _lettered(letter: str, texts: tuple[str, ...]) -> frozenset[str]:
    """What a letter in a phrase names: an option, or one whose text holds it ("Point A"), if those are not the same."""
    in_text = re.compile(rf"(?<![A-Za-z]){letter}(?![A-Za-z])")
    held = {option.letter for option in options_of(texts).values() if in_text.search(option.text)}
    return frozenset(letter) if letter in held else frozenset(held | {letter})


def _without_texts(answer: str, texts: tuple[str, ...]) -> str:
    """Without the texts of options, which may hold a negation themselves: "does not change"."""
    plain = normal_text(answer) if texts else answer
    for option in _longest_first(texts):
        plain = re.sub(whole_words(option.plain), " ", plain) if option.plain else plain
    return plain


def _longest_first(texts: tuple[str, ...]) -> list[_Option]:
    return sorted(options_of(texts).values(), key=lambda option: -len(option.plain))
