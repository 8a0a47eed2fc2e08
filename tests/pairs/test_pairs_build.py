from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_answers import ASKED, OPEN, AnswerSet, answer_sets, judged, response, table, tables

from mixpo.errors import RecordError
from mixpo.pairs.build import build, rebuild
from mixpo.pairs.provenance import REASONS
from mixpo.recipe import PairsTable
from mixpo.records import Drop, Judged, Paired, Sampled, read_rows, write_rows
from mixpo.types import Pair, Question, Response, Verdict


def records(responses: Sequence[Response], verdicts: Sequence[Verdict]) -> tuple[Sampled, Judged]:
    return Sampled(question="q1", responses=tuple(responses)), Judged(question="q1", verdicts=tuple(verdicts))


RIGHT_AND_WRONG = judged(("so 7", "correct", "7"), ("so 8", "wrong", "8"), ("hmm", "malformed", None))


def open_records() -> tuple[Sampled, Sampled]:
    parents = [response(i, f"A scene, number {i}.", question="q2") for i in range(3)]
    written = [
        response(p.index, p.text[:7] + " at night", question="q2", prefix_len=7, token_ids=(*p.token_ids[:7], 1, 2, p.index))
        for p in parents
    ]
    return Sampled(question="q2", responses=tuple(parents)), Sampled(question="q2", responses=tuple(written))


def test_a_known_answer_goes_the_way_of_correctness() -> None:
    paired = build(ASKED, *records(*RIGHT_AND_WRONG), None, table(), 0)
    assert paired.question == "q1"
    assert [pair.origin for pair in paired.pairs] == ["correctness", "format"]
    assert paired.dropped == ()


def test_no_answer_goes_the_way_of_dropout() -> None:
    sampled, continued = open_records()
    paired = build(OPEN, sampled, None, continued, table(max_dropout_per_question=2), 0)
    assert [pair.origin for pair in paired.pairs] == ["dropout_ntp"] * 2
    assert paired.dropped == (Drop(reason="over_cap", count=1),)
    # Verdicts of an open question mean nothing.
    assert build(OPEN, sampled, Judged(question="q2"), continued, table(max_dropout_per_question=2), 0) == paired


@pytest.mark.parametrize(
    ("question", "sampled", "judgement", "settings", "reason"),
    [
        (ASKED, Sampled(question="q1", error="out of memory"), Judged(question="q1"), {}, "failed"),
        (ASKED, records(*RIGHT_AND_WRONG)[0], records(*RIGHT_AND_WRONG)[1], {"correctness": False}, "correctness_off"),
        (OPEN, open_records()[0], None, {"dropout_ntp": False}, "dropout_ntp_off"),
    ],
)
def test_questions_without_a_route_are_counted(
    question: Question, sampled: Sampled, judgement: Judged | None, settings: dict[str, bool], reason: str
) -> None:
    assert build(question, sampled, judgement, None, table(**settings), 0) == Paired(
        question=question.id, dropped=(Drop(reason=reason, count=1),)
    )


def test_missing_continuations_are_counted() -> None:
    sampled, _ = open_records()
    for continued in (None, Sampled(question="q2", error="out of memory")):
        assert build(OPEN, sampled, None, continued, table(), 0).dropped == (Drop(reason="no_continuation", count=3),)


def test_records_of_another_question_are_a_bug() -> None:
    sampled, verdicts = records(*RIGHT_AND_WRONG)
    with pytest.raises(ValueError, match="records of question q1 were given for question q2"):
        build(OPEN, sampled, None, None, table(), 0)
    with pytest.raises(ValueError, match="no verdicts"):
        build(ASKED, sampled, None, None, table(), 0)
    with pytest.raises(ValueError, match="do not match"):
        build(ASKED, sampled, dataclasses.replace(verdicts, verdicts=()), None, table(), 0)


# --- identity and provenance -------------------------------------------------------------------------------------------------


def bare(pair: Pair) -> Pair:
    """A pair stripped of everything but its provenance."""
    kept: dict[str, Any] = {name: getattr(pair, name) for name in ("id", "question", "origin", "chosen_index", "rejected_index")}
    return Pair(**kept, chosen="", rejected="")


@given(answer_sets(), tables(), st.integers(0, 3))
def test_every_correctness_pair_can_be_rebuilt(answers: AnswerSet, settings: PairsTable, seed: int) -> None:
    sampled, verdicts = records(*answers)
    for pair in build(ASKED, sampled, verdicts, None, settings, seed).pairs:
        assert rebuild(bare(pair), sampled, verdicts) == pair


def test_every_dropout_pair_can_be_rebuilt() -> None:
    sampled, continued = open_records()
    pairs = build(OPEN, sampled, None, continued, table(), 0).pairs
    assert len(pairs) == 3
    for pair in pairs:
        assert rebuild(bare(pair), sampled, continued=continued) == pair


def test_rebuilding_from_other_records_says_so() -> None:
    sampled, verdicts = records(*RIGHT_AND_WRONG)
    pair = build(ASKED, sampled, verdicts, None, table(), 0).pairs[0]
    with pytest.raises(RecordError, match=r"answer 0 to question q1 is not in the sampled records"):
        rebuild(pair, Sampled(question="q1"), verdicts)
    with pytest.raises(RecordError, match="verdicts of question q1 are not in the judged records"):
        rebuild(pair, sampled)
    answers, continued = open_records()
    dropout = build(OPEN, answers, None, continued, table(), 0).pairs[0]
    with pytest.raises(RecordError, match="not in the continued records"):
        rebuild(dropout, answers)


def test_ids_tell_pairs_apart() -> None:
    sampled, verdicts = records(*RIGHT_AND_WRONG)
    pairs = build(ASKED, sampled, verdicts, None, table(), 0).pairs
    other = dataclasses.replace(sampled, responses=(*sampled.responses[:1], response(1, "so 9"), sampled.responses[2]))
    changed = build(ASKED, other, verdicts, None, table(), 0).pairs
    assert len({pair.id for pair in (*pairs, *changed)}) == 3  # only the pair with the changed text has another id
    assert pairs[1].id == changed[1].id


def test_pairs_survive_storage(tmp_path: Path) -> None:
    paired = build(ASKED, *records(*RIGHT_AND_WRONG), None, table(), 0)
    write_rows(tmp_path / "shard.parquet", Paired, [paired])
    assert read_rows(tmp_path / "shard.parquet", Paired) == [paired]


def test_reasons_are_described() -> None:
    assert all(reason.text and reason.unit in {"questions", "answers", "pairs"} for reason in REASONS.values())
