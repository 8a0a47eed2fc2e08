"""The published accuracy rules of data sets: from a short answer and the right ones to a score between 0 and 1. Pure functions.

They are named in the recipe (`verify.rules`), never guessed from a file's name. Which score makes an answer right or wrong is in
`RULES`; evaluation may use the scores as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase

from rapidfuzz.distance import Levenshtein

from mixpo.recipe import VerifyTable
from mixpo.types import Question
from mixpo.verify.judgement import Judgement
from mixpo.verify.number import is_bound, read_numbers
from mixpo.verify.text import normal_text
from mixpo.verify.wrapping import unwrap

RELAXED = Decimal("0.05")
"""Share of the right value by which a number may be off (Methani et al., arXiv 1909.00997; Masry et al., arXiv 2203.10244, 5.1)."""
NAMED = 3
"""So many people who gave an answer make it fully right (Antol et al., arXiv 1505.00468)."""
PEOPLE = 10
"""Fewer answers than this are alternatives and not a vote: one that agrees is enough."""
SIMILAR = 0.5
"""A lower similarity counts as none (Biten et al., arXiv 1905.13648, equation 1: tau)."""

_YEAR = re.compile(r"(?:19|20)\d\d")


def vqa_accuracy(predicted: str, golds: Sequence[str]) -> float:
    """VQA accuracy: min(1, people who said so / 3), averaged over all choices of all but one of the people.

    Texts are compared after `normal_text`. With fewer than ten answers one that agrees is enough.
    """
    answer = normal_text(predicted)
    votes = Counter(normal_text(gold) for gold in golds)
    count = votes[answer] if answer else 0
    if len(golds) < PEOPLE or not count:
        return float(count > 0)
    without_one = count * min(1.0, (count - 1) / NAMED) + (len(golds) - count) * min(1.0, count / NAMED)
    return without_one / len(golds)


def relaxed_accuracy(predicted: str, golds: Sequence[str]) -> float:
    """1 for a number within 5 % of a right one, or for the same text. A right answer that may be a year (1900 to 2099) must be met.

    Signs for percent and currency, separators and units are left aside, as in the charts that the rule was made for.
    """
    return float(any(_relaxed(predicted, gold) for gold in golds))


def _relaxed(predicted: str, gold: str) -> bool:
    if " ".join(predicted.casefold().split()) == " ".join(gold.casefold().split()):
        return True
    given, wanted = read_numbers(unwrap(predicted)) or [], read_numbers(unwrap(gold)) or []
    if len(given) != 1 or len(wanted) != 1 or is_bound(predicted):
        return False
    (left,), (right,) = given, wanted
    if not (left.value.is_finite() and right.value.is_finite()):
        return False
    if _YEAR.fullmatch(gold.strip()) or not right.value:
        return left.value == right.value
    if left.percent != right.percent:  # "31%" may be meant for 0.3 as well as for 30
        scaled = left.value.scaleb(-2 if left.percent else 2)
        return any(abs(value - right.value) <= RELAXED * abs(right.value) for value in (left.value, scaled))
    return abs(left.value - right.value) <= RELAXED * abs(right.value)


def anls(predicted: str, golds: Sequence[str]) -> float:
    """The similarity 1 - edits / length of the longer text, for the nearest right answer; 0 below one half. Case and spacing aside."""
    spaced = _spaced(predicted)
    return max((Levenshtein.normalized_similarity(spaced, _spaced(gold), score_cutoff=SIMILAR) for gold in golds), default=0.0)


def _spaced(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """score: from (answer, right answers). right: the score from which an answer is right; 0 is wrong, what lies between undecided."""

    score: Callable[[str, Sequence[str]], float]
    right: float
    name: str


RULES: dict[str, Rule] = {
    # 0.9 is reached where three of ten people gave the answer.
    "vqa": Rule(score=vqa_accuracy, right=0.9, name="VQA accuracy"),
    "relaxed": Rule(score=relaxed_accuracy, right=1.0, name="relaxed accuracy"),
    # Half of the letters is enough for the metric, but "12" for "13" is no answer to learn from.
    "anls": Rule(score=anls, right=0.9, name="ANLS"),
}
"""The rules by the names that a recipe uses, in addition to the answer kinds."""

MMPR_RULES = {
    "*chartqa*": "relaxed",
    "*docvqa*": "anls",
    "*infographics*": "anls",
    "*infovqa*": "anls",
    "*sroie*": "relaxed",
    "*clevr_math*": "relaxed",
    "*geos*": "relaxed",
    "*geometry*": "relaxed",
}
"""Rules of the released MMPR prompt files by the names of their data sets (in lower case), for `verify.mmpr_rules`."""


def judge_by(rule: Rule, predicted: str, golds: Sequence[str]) -> Judgement:
    """What a rule alone says."""
    score = rule.score(predicted, golds)
    if score >= rule.right:
        return Judgement("correct", rule.name)
    return Judgement("undecided", f"{rule.name} {score:.2f}") if score else Judgement("wrong", rule.name)


def rule_of(question: Question, table: VerifyTable) -> str:
    """The name of the rule for a question: by its source, then by its domain, then of MMPR; "" where none is named."""
    for name in (question.source, question.domain):
        for pattern, rule in table.rules.items():
            if fnmatchcase(name, pattern):
                return rule
    if table.mmpr_rules:
        name = question.source.casefold()
        return next((rule for pattern, rule in MMPR_RULES.items() if fnmatchcase(name, pattern)), "")
    return ""
