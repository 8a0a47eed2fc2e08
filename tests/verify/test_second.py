"""Which verdicts deserve a look, and why: a table of cases for what `mixpo audit` and the viewer show."""

from __future__ import annotations

from typing import Any

import pytest

from mixpo.recipe import VerifyTable
from mixpo.types import AnswerKind, Outcome, Question, Response, Verdict
from mixpo.verify.judgement import Judgement
from mixpo.verify.second_opinion import LAST_SENTENCE, MAJORITY, NOT_WRITTEN, UNDECIDED, doubts


def asked(answer: str, kind: AnswerKind = "number", **more: Any) -> Question:
    return Question(id="q", text="?", answer=answer, kind=kind, **more)


class Algebra:
    """Stands in for the pool of computer algebra."""

    def __init__(self, outcome: Outcome) -> None:
        self.judgement = Judgement(outcome, "of the test")

    def compare(self, *_args: object) -> Judgement:
        return self.judgement


def by(question: Question, text: str, extracted: str | None, outcome: Outcome, pool: Any = None, **rules: str) -> str | None:
    """The check that doubts a single verdict, or None."""
    response = Response(question="q", index=0, text=text)
    verdict = Verdict(question="q", outcome=outcome, extracted=extracted)
    (found,) = doubts(question, [response], [verdict], VerifyTable.model_validate({"rules": rules}), pool)
    return found and found.by


OPTIONS = {"choices": ("5", "7")}


@pytest.mark.parametrize(
    ("question", "text", "extracted", "outcome", "expected"),
    [
        (asked("7"), "Final answer: 7", "7", "correct", None),
        (asked("7"), "Final answer: 8", "8", "wrong", None),
        # called wrong, though a right answer is there
        (asked("7"), "Final answer: 7", "7", "wrong", LAST_SENTENCE),
        (asked("7"), "Final answer: 17", "17", "wrong", None),
        (asked("7"), "Final answer: 7.5", "7.5", "wrong", None),
        (asked("7"), "7 at first.\nNow 8", "8", "wrong", None),
        (asked("三个", "text"), "所以答案是三个红色", "三个红色", "wrong", LAST_SENTENCE),
        (asked("red circle", "text"), "x", "a Red circle!", "wrong", "comparison of words"),
        (asked("7"), "Digits: 3 4, that is 7. Final answer: 8", "8", "wrong", None),
        (asked("7"), "I say 8. No, it is 7.", "8", "wrong", LAST_SENTENCE),
        (asked("7.5"), "So the mean is 7.5", "7", "wrong", LAST_SENTENCE),
        (asked("三"), "图中有三个。答案是二。", "二", "wrong", None),
        (asked("三"), "图中有二个。答案是三。", "二", "wrong", LAST_SENTENCE),
        # called right, though none is there
        (asked("7"), "that makes seven", "seven", "correct", None),
        (asked("7"), "that makes eight", "eight", "correct", NOT_WRITTEN),
        (asked("7"), "So it is 7.\nI hope this helps.", "7", "correct", None),
        (asked("7"), "7" + " and on" * 100, "7", "correct", NOT_WRITTEN),
        # no clear answer
        (asked("7"), "So 3 + 4.\nIt must be 7.", None, "malformed", LAST_SENTENCE),
        (asked("7"), "so it is", None, "malformed", None),
        # options
        (asked("B", "choice", **OPTIONS), "I say (B).", "A", "wrong", LAST_SENTENCE),
        (asked("B", "choice", **OPTIONS), "It is a 7.", "A", "wrong", LAST_SENTENCE),
        (asked("B", "choice", **OPTIONS), "I say C.", "C", "wrong", None),
        (asked("B", "choice", **OPTIONS), "B it is, I think", "B", "correct", None),
        (asked("B", "choice", **OPTIONS), "the larger one", "B", "correct", NOT_WRITTEN),
        # could not decide
        (asked("x", "text"), "y", "y", "undecided", UNDECIDED),
        (asked("7"), "It is 7", "7 or so", "undecided", LAST_SENTENCE),
        # no ground truth
        (Question(id="q", text="?"), "anything", None, "undecided", UNDECIDED),
    ],
)
def test_who_doubts(question: Question, text: str, extracted: str | None, outcome: Outcome, expected: str | None) -> None:
    assert by(question, text, extracted, outcome) == expected


@pytest.mark.parametrize(
    ("text", "extracted", "outcome", "why"),
    [
        ("It must be 7.", None, "malformed", "no clear answer was found, but its last sentence holds the right answer"),
        ("It is 7", "7 or so", "undecided", "the check could not decide, but its last sentence holds the right answer"),
        ("Final answer: 7", "7", "wrong", "called wrong, but its last sentence holds the right answer"),
        ("that makes eight", "eight", "correct", "called correct, but the right answer is not written near the end"),
    ],
)
def test_the_reason_is_a_sentence(text: str, extracted: str | None, outcome: Outcome, why: str) -> None:
    response, verdict = Response(question="q", index=0, text=text), Verdict(question="q", outcome=outcome, extracted=extracted)
    (doubt,) = doubts(asked("7"), [response], [verdict], VerifyTable())
    assert doubt is not None
    assert doubt.why == why


def test_rules_and_kinds_watch_each_other() -> None:
    chart = asked("100", domain="chart")
    assert by(chart, "so 103", "103", "correct", chart="relaxed") == "comparison by kind"
    assert by(chart, "so 100.0", "100.0", "wrong", chart="relaxed") == "comparison by kind"
    assert by(chart, "so 107", "107", "wrong", chart="relaxed") is None


def test_computer_algebra_is_asked_where_there_is_a_pool() -> None:
    half = asked("1/2")
    assert by(half, "so 2/4", "2/4", "wrong") is None
    assert by(half, "so 2/4", "2/4", "wrong", Algebra("correct")) == "computer algebra"
    assert by(half, "so 2/4", "2/4", "wrong", Algebra("undecided")) is None
    assert by(asked("red", "text"), "so blue", "blue", "wrong", Algebra("correct")) is None


@pytest.mark.parametrize(
    ("answers", "doubted"),
    [
        (["8"] * 3 + ["9"], [0, 1, 2]),
        (["Eight!", "8", "8", "9"], [0, 1, 2]),
        (["8"] * 2 + ["9"] * 2, []),
        (["8"] * 3, []),
        ([None] * 5, []),
    ],
)
def test_the_truth_may_be_wrong_where_most_answers_agree(answers: list[str | None], doubted: list[int]) -> None:
    question = asked("7")
    responses = [Response(question="q", index=i, text=f"I say {answer}") for i, answer in enumerate(answers)]
    verdicts = [Verdict(index=i, outcome="wrong" if answer else "malformed", extracted=answer) for i, answer in enumerate(answers)]
    found = doubts(question, responses, verdicts, VerifyTable())
    assert [i for i, doubt in enumerate(found) if doubt] == doubted
    assert {doubt.by for doubt in found if doubt} <= {MAJORITY}


def test_a_doubt_is_a_sentence() -> None:
    response, verdict = Response(question="q", index=0, text="It is 7"), Verdict(outcome="wrong", extracted="7")
    (found,) = doubts(asked("7"), [response], [verdict], VerifyTable())
    assert found == (LAST_SENTENCE, "correct", "called wrong, but its last sentence holds the right answer")
