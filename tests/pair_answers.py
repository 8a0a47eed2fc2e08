"""Hand-made questions, answers and verdicts for the tests of pairs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mixpo.recipe import PairsTable
from mixpo.types import Finish, Outcome, Question, Response, Verdict

ASKED = Question(id="q1", text="How many?", answer="7", kind="number")
OPEN = Question(id="q2", text="Describe the picture.")

Row = tuple[str, Outcome, str | None] | tuple[str, Outcome, str | None, Finish]
"""(text, outcome, extracted[, finish]) of one answer."""
AnswerSet = tuple[list[Response], list[Verdict]]


def table(**changes: Any) -> PairsTable:
    return PairsTable(**changes)


def response(index: int, text: str, question: str = "q1", **changes: Any) -> Response:
    """By default one token for each character, then the end token 0."""
    ids = tuple(map(ord, text)) + (() if changes.get("finish", "stop") != "stop" else (0,))
    return Response(**{"question": question, "index": index, "text": text, "token_ids": ids, **changes})


def judged(*rows: Row) -> AnswerSet:
    responses = [response(i, row[0], finish=row[3] if len(row) > 3 else "stop") for i, row in enumerate(rows)]
    verdicts = [Verdict(question="q1", index=i, outcome=row[1], extracted=row[2]) for i, row in enumerate(rows)]
    return responses, verdicts


OUTCOMES: tuple[Outcome, ...] = ("correct", "wrong", "malformed", "undecided")


@st.composite
def answer_sets(draw: st.DrawFn) -> AnswerSet:
    """Sets of answers with few distinct texts and extracted answers, so that duplicates and containments are common."""
    size = draw(st.integers(0, 12))
    responses, verdicts = [], []
    for index in range(size):
        outcome = draw(st.sampled_from(OUTCOMES))
        text = draw(st.sampled_from(["a", "b b", "c c c", "d", "e e", "long " * 9, ""]))
        finish = draw(st.sampled_from(["stop", "stop", "stop", "length", "error"]))
        extracted = None if outcome == "malformed" else draw(st.sampled_from(["1", "10", "7", "no", "No idea", " "]))
        responses.append(response(index, text, finish=finish))
        verdicts.append(Verdict(question="q1", index=index, outcome=outcome, extracted=extracted))
    return responses, verdicts


@st.composite
def tables(draw: st.DrawFn) -> PairsTable:
    return PairsTable(
        max_per_question=draw(st.integers(1, 15)),
        format_negatives=draw(st.booleans()),
        entailment=draw(st.booleans()),
        max_length_ratio=draw(st.sampled_from([0.0, 1.0, 2.0])),
        max_side_similarity=draw(st.sampled_from([1.0, 0.5, 0.0])),
        max_dropout_per_question=draw(st.integers(1, 5)),
        drop_blind=draw(st.booleans()),
    )
