"""Multiple choice: the option that an answer names against the right one.

Two options named at once, or an option with a value that is not its own, are undecided where one of them is right.
"""

from __future__ import annotations

import functools
import re

from mixpo.verify.compare_numbers import check_number
from mixpo.verify.formula import check_formula
from mixpo.verify.judgement import UNSURE, Judgement, Options, decide
from mixpo.verify.kinds import guess_kind
from mixpo.verify.number import is_bound, read_numbers
from mixpo.verify.options import (
    LETTERS,
    OVER_OPTIONS,
    READINGS,
    SEVERAL,
    letters_of,
    listed,
    lone_letter,
    options_of,
    read_options,
)
from mixpo.verify.refusals import is_refusal
from mixpo.verify.text import check_text, contains, normal_text
from mixpo.verify.wrapping import plain_characters, unwrap
from mixpo.verify.yes_no import check_yes_no, read_yes_no

STEM = 6
"""Letters by which "increasing" is a form of "increase"."""
_BY_POSITION = re.compile(
    r"(?i)(?:it(?:'s| is)\s+)?(?:the\s+)?(?:(?:option|choice|no\.?|number|#)\s*(?:no\.?|number|#)?\s*\d{1,2}"
    r"|(?:\d(?:st|nd|rd|th)|first|second|third|fourth|fifth|last|former|latter)(?:\s+(?:one|option|choice|answer|item))?"
    r"|(?:middle|left|right|top|bottom)\s+(?:one|option|choice)|one\s+(?:on|at|in)\s+the\s+(?:middle|left|right|top|bottom))"
    r"|(?:是|选)?(?:第[一二三四五1-5][个项]?|最后一?个|中间的?|左边的?|右边的?|前者|后者)(?:那?个)?(?:选项)?"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_TEXT_LETTER = re.compile(r"\\text(?:bf|rm|it)?\s*\{\s*\(?([A-J])\)?[.:)]?\s*\\?\s*\}(?:\s|\\quad|\\[ ,;:])*")


def check_choice(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare the option that `predicted` names with `gold`, a letter (or several: "A,C") or the text of an option."""
    texts = options.choices
    wanted = _gold_letters(gold, texts)
    if not wanted:
        return check_text(predicted, gold, options)
    answer = plain_characters(_TEXT_LETTER.sub(r"(\1) ", unwrap(predicted) or predicted))
    if len(wanted) > 1:  # several right options: the same letters, in any order
        letters = lone_letter(answer) or listed(answer)
        return decide(letters == wanted if letters else None, "options")
    are_yes_no = _are_yes_no(texts)
    named = read_options(answer, texts, READINGS[:-1] if are_yes_no and read_yes_no(answer) else READINGS)
    alike = _alike(wanted, texts)
    if not named:
        if is_refusal(answer):
            return UNSURE
        if are_yes_no:
            return check_yes_no(answer, texts[LETTERS.index(min(wanted))], options)
        return _compare_meaning(answer, alike, options) if texts else Judgement("undecided", "names no option letter")
    if named <= alike:
        return Judgement("correct", "same option")
    if named & alike or (len(named) > 1 and _is_over_options(wanted, texts)):
        return Judgement("undecided", "names several options, or an option and another value")
    return Judgement("wrong", "another option")


@functools.lru_cache(maxsize=256)
def _alike(wanted: frozenset[str], texts: tuple[str, ...]) -> frozenset[str]:
    """The wanted option and those with the same text: whoever names one of them means the same. All responses of a question ask."""
    own = dict(zip(LETTERS, texts, strict=False)).get(min(wanted), "")
    return wanted | {letter for letter, text in zip(LETTERS, texts, strict=False) if text.strip() == own.strip()}


@functools.lru_cache(maxsize=256)
def _are_yes_no(texts: tuple[str, ...]) -> bool:
    """Whether the options are yes and no, in any language and order."""
    return len(texts) == 2 and {guess_kind(text) for text in texts} == {"yes_no"}


def _compare_meaning(answer: str, wanted: frozenset[str], options: Options) -> Judgement:
    """An answer that names no option may still be the right one in another form: "y = 1 + 2x" for "y = 2x + 1"."""
    right = options_of(options.choices)[min(wanted)].text
    kind = guess_kind(right)
    kinds = {kind, guess_kind(answer)}
    if kinds == {"number"}:
        return check_number(answer, right, options)
    if kinds <= {"formula", "number"}:
        return check_formula(answer, right, options)
    if _BY_POSITION.fullmatch(answer):
        return Judgement("undecided", "an option by its place")
    if _hints_at(answer, wanted, options.choices) or (OVER_OPTIONS.search(answer) and _is_over_options(wanted, options.choices)):
        return Judgement("undecided", "mentions the option")
    if is_bound(right) and read_numbers(answer):
        return Judgement("undecided", "a number for a bound")  # 5 for "more than 4"
    judgement = (check_number if kind == "number" else check_text)(answer, right, options)
    return judgement if judgement.outcome != "wrong" else Judgement("wrong", "names none of the options")


def _is_over_options(wanted: frozenset[str], texts: tuple[str, ...]) -> bool:
    """Whether the right option is about others: "all of the above", or "Alice and Bob" next to "Alice" and "Bob"."""
    options = options_of(texts)
    return any(
        OVER_OPTIONS.search(options[letter].text) or sum(contains(options[letter].plain, other.plain) for other in options.values()) > 2
        for letter in wanted & set(options)
    )


def _hints_at(answer: str, wanted: frozenset[str], texts: tuple[str, ...]) -> bool:
    """Whether an answer that names no option uses a word that only the right one has: "it remains constant" for "remain constant"."""
    own, others = set[str](), set[str]()
    for option in options_of(texts).values():
        (own if option.letter in wanted else others).update(_stems(option.plain))
    return bool(_stems(normal_text(answer)) & own - others)


def _stems(plain: str) -> set[str]:
    """The beginnings of words of three letters or more, without endings. A text with digits has none: "20 meters" is not "12 meters"."""
    return set() if re.search(r"\d", plain) else {word.removesuffix("s")[:STEM] for word in _WORD.findall(plain)}


def _gold_letters(gold: str, texts: tuple[str, ...]) -> frozenset[str]:
    by_text, lone = letters_of(gold, texts), lone_letter(gold)
    if by_text and gold.strip() not in LETTERS:
        return frozenset(min(by_text))
    if lone and (not texts or lone <= set(options_of(texts))):
        return lone
    named = listed(gold) or read_options(gold, texts)
    return named if len(named) == 1 or SEVERAL.fullmatch(gold) else frozenset()
