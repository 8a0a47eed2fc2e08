"""Which verdicts a person should review: those that a check which shares nothing with the one that made them disagrees with.

Serves `mixpo audit` and the viewer. For people to review, never for pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mixpo.recipe import VerifyTable
from mixpo.types import Outcome, Question, Response, Verdict
from mixpo.verify.check import judge_any
from mixpo.verify.dataset_metrics import RULES, judge_by, rule_of, vqa_accuracy
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.options import LETTERS
from mixpo.verify.pool import FormulaPool
from mixpo.verify.text import contains, normal_text
from mixpo.verify.verifier import golds_of

MAX_LENGTH = 200
"""Longer answers are not given to computer algebra here."""
TAIL = 160
"""Characters at the end of a response in which a right answer should be written."""
LEAST = 4
"""Answers to a question below which a majority says nothing; it must be more than two thirds of them."""

LAST_SENTENCE = "last sentence"
NOT_WRITTEN = "not written near the end"
MAJORITY = "agreement with most other answers"
UNDECIDED = "undecided"

_SENTENCES = re.compile(r"\n+|(?<=[.!?])\s+|(?<=[。！？])(?=.)")
"""Between sentences; a period inside a number or before the end of the text is none."""
_DIGIT = re.compile(r"\d")


class Doubt(NamedTuple):
    """by: the check that disagrees with a verdict. says: what it holds the answer for; None where it only wonders. why: for people."""

    by: str
    says: Outcome | None
    why: str


class _Opinion(NamedTuple):
    by: str
    outcome: Outcome
    detail: str = ""


def doubts(
    question: Question, responses: Sequence[Response], verdicts: Sequence[Verdict], settings: VerifyTable, pool: FormulaPool | None = None
) -> list[Doubt | None]:
    """For each verdict on a question why it deserves a look, or None. Without `pool` computer algebra is not asked."""
    common, golds = _majority(verdicts), golds_of(question)
    return [
        _doubt(question, response.text, verdict, golds, common, settings, pool)
        for response, verdict in zip(responses, verdicts, strict=True)
    ]


def _doubt(
    question: Question, text: str, verdict: Verdict, golds: tuple[str, ...], common: str, settings: VerifyTable, pool: FormulaPool | None
) -> Doubt | None:
    outcome = verdict.outcome
    called = {"malformed": "no clear answer was found", "undecided": "the check could not decide"}.get(outcome, f"called {outcome}")
    for other in _opinions(question, text, verdict.extracted, golds, settings, pool):
        if other.outcome != "undecided" and (outcome == "undecided" or (other.outcome == "correct") != (outcome == "correct")):
            return Doubt(other.by, other.outcome, f"{called}, but {_without_cause(other)}")
    if outcome == "undecided":
        return Doubt(UNDECIDED, None, called)
    if outcome == "correct" and golds and not _names(question, golds, text[-TAIL:]):
        return Doubt(NOT_WRITTEN, None, f"{called}, but the right answer is not written near the end")
    if outcome == "wrong" and common and normal_text(verdict.extracted or "") == common:
        return Doubt(MAJORITY, None, f"{called}, but most answers to this question agree with it: the ground truth may be wrong")
    return None


def _without_cause(other: _Opinion) -> str:
    if other.by == LAST_SENTENCE:
        return "its last sentence holds the right answer"
    return f"{other.by} says {other.outcome}" + (f" ({other.detail})" if other.detail else "")


def _opinions(
    question: Question, text: str, extracted: str | None, golds: tuple[str, ...], settings: VerifyTable, pool: FormulaPool | None
) -> list[_Opinion]:
    """What other checks say of one answer; empty where none has anything to say.

    Whether the last sentence of the response names a right answer; the rule of the data set and the comparison by kind, one where the
    other decided; VQA's plain comparison of words; computer algebra for short answers with digits.
    """
    last = _SENTENCES.split(text.rstrip())[-1]
    opinions = [_Opinion(LAST_SENTENCE, "correct")] if _names(question, golds, last, at_end=True) else []
    if extracted is None or not golds:
        return opinions
    rule = rule_of(question, settings)
    if rule in RULES:
        opinions.append(_Opinion("comparison by kind", *judge_any(extracted, golds, question.kind, _without_algebra(question, settings))))
        opinions.append(_Opinion(RULES[rule].name, judge_by(RULES[rule], extracted, golds).outcome))
    elif question.kind != "choice" and vqa_accuracy(extracted, golds) == 1:
        opinions.append(_Opinion("comparison of words", "correct"))
    if pool is not None and question.kind in ("number", "text") and _is_for_algebra(extracted, question.answer or ""):
        opinions.append(_Opinion("computer algebra", *pool.compare(extracted, question.answer or "", settings.tolerance)))
    return opinions


def _names(question: Question, golds: tuple[str, ...], text: str, *, at_end: bool = False) -> bool:
    """Whether a text names a right answer as whole words; of an option its letter (`at_end`: as the last thing) or its text."""
    if not golds:
        return False
    plain = normal_text(text)
    if question.kind != "choice":
        return any(contains(plain, _normal(gold)) for gold in golds)
    if re.search(rf"(?<![A-Za-z])(?:{'|'.join(map(re.escape, golds))}){r'[^A-Za-z0-9]*$' if at_end else r'(?![A-Za-z])'}", text):
        return True
    options = (option for letter, option in zip(LETTERS, question.choices, strict=False) if letter in golds)
    return any(contains(plain, _normal(option)) for option in options)


def _majority(verdicts: Sequence[Verdict]) -> str:
    """The answer that more than two thirds of all verdicts share, as normal text; "" where there is none."""
    if len(verdicts) < LEAST:
        return ""
    ((answer, count),) = Counter(normal_text(verdict.extracted or "") for verdict in verdicts).most_common(1)
    return answer if 3 * count > 2 * len(verdicts) else ""


def _without_algebra(question: Question, settings: VerifyTable) -> Options:
    def undecided(_predicted: str, _gold: str) -> Judgement:
        return Judgement("undecided", "not compared")

    return Options(tolerance=settings.tolerance, algebra=undecided, choices=question.choices)


def _is_for_algebra(predicted: str, gold: str) -> bool:
    return max(len(predicted), len(gold)) <= MAX_LENGTH and bool(_DIGIT.search(predicted) and _DIGIT.search(gold))


_normal = lru_cache(maxsize=4096)(normal_text)
"""Of right answers, which every response to a question is compared with."""
