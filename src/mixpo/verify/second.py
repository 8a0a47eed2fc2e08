"""A second opinion on a verdict, by a check that shares nothing with the one that made it. For people to look at, never for pairs."""

from __future__ import annotations

import re
from typing import NamedTuple

from mixpo.recipe import VerifyTable
from mixpo.types import Outcome, Question, Response, Verdict
from mixpo.verify.check import judge_any
from mixpo.verify.choice import LETTERS
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.pool import FormulaPool
from mixpo.verify.rules import RULES, judge_by, rule_of, vqa_accuracy
from mixpo.verify.text import contains, normal_text
from mixpo.verify.verifier import golds_of

MAX_LENGTH = 200
"""Longer answers are not given to computer algebra here."""

_DIGIT = re.compile(r"\d")


class Opinion(NamedTuple):
    """An outcome and the check it comes from."""

    outcome: Outcome
    by: str


def opinions(question: Question, response: Response, verdict: Verdict, settings: VerifyTable, pool: FormulaPool) -> list[Opinion]:
    """What other checks say of one answer; empty where none has anything to say.

    The rule of the data set and the comparison by kind, one where the other decided; VQA's plain comparison of words; computer
    algebra for short answers with digits; and whether the last line of the response ends in a right answer.
    """
    golds = golds_of(question)
    found = [Opinion("correct", "its last line holds the right answer")] if _ends_right(question, response, golds) else []
    if verdict.extracted is None or not golds:
        return found
    rule = rule_of(question, settings)
    if rule in RULES:
        by_kind = judge_any(verdict.extracted, golds, question.kind, _without_algebra(question, settings))
        found.append(_as_opinion(by_kind, "comparison by kind"))
        found.append(_as_opinion(judge_by(RULES[rule], verdict.extracted, golds), RULES[rule].name))
    elif question.kind != "choice" and vqa_accuracy(verdict.extracted, golds) == 1:
        found.append(Opinion("correct", "comparison of words"))
    if question.kind in ("number", "text") and _is_for_algebra(verdict.extracted, question.answer or ""):
        found.append(_as_opinion(pool.compare(verdict.extracted, question.answer or "", settings.tolerance), "computer algebra"))
    return found


def contradiction(verdict: Verdict, others: list[Opinion]) -> Opinion | None:
    """The first opinion that says right where the verdict says wrong or malformed, or the other way round."""
    if verdict.outcome == "undecided":
        return None
    is_right = verdict.outcome == "correct"
    return next((other for other in others if other.outcome != "undecided" and (other.outcome == "correct") != is_right), None)


def _as_opinion(judgement: Judgement, by: str) -> Opinion:
    return Opinion(judgement.outcome, f"{by} ({judgement.reason})")


def _without_algebra(question: Question, settings: VerifyTable) -> Options:
    def undecided(_predicted: str, _gold: str) -> Judgement:
        return Judgement("undecided", "not compared")

    return Options(tolerance=settings.tolerance, algebra=undecided, choices=question.choices)


def _is_for_algebra(predicted: str, gold: str) -> bool:
    return max(len(predicted), len(gold)) <= MAX_LENGTH and bool(_DIGIT.search(predicted) and _DIGIT.search(gold))


def _ends_right(question: Question, response: Response, golds: tuple[str, ...]) -> bool:
    """Whether the last line names a right answer as whole words; of an option, its letter at the very end or its text."""
    last = response.text.rstrip().rsplit("\n", 1)[-1]
    if question.kind != "choice":
        return any(contains(normal_text(last), normal_text(gold)) for gold in golds)
    if re.search(rf"(?<![A-Za-z])(?:{'|'.join(map(re.escape, golds))})\W*$", last):
        return True
    texts = (text for letter, text in zip(LETTERS, question.choices, strict=False) if letter in golds)
    return any(contains(normal_text(last), normal_text(text)) for text in texts)
