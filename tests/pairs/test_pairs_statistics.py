from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_answers import OPEN, AnswerSet, answer_sets, response

from mixpo.pairs.build import build
from mixpo.pairs.histograms import BINS, LENGTH_WIDTH, Fixed, Lengths
from mixpo.pairs.statistics import Statistics
from mixpo.recipe import PairsTable
from mixpo.records import Drop, Judged, Paired, Sampled
from mixpo.types import Finish, Origin, Outcome, Pair, Question, Verdict


def add(
    statistics: Statistics,
    name: str,
    outcomes: str,
    domain: str = "",
    source: str = "",
    texts: Sequence[str] | None = None,
    finishes: Sequence[Finish] | None = None,
    pairs: tuple[Pair, ...] = (),
    drops: tuple[Drop, ...] = (),
) -> None:
    """One question with an answer; outcome letters: r(ight), w(rong), m(alformed), u(ndecided)."""
    words: dict[str, Outcome] = {"r": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}
    texts = texts or [f"text {i}" for i in range(len(outcomes))]
    finishes = finishes or ["stop"] * len(outcomes)
    responses = tuple(
        response(i, text, question=name, finish=finish, token_ids=(1,) * 10)
        for i, (text, finish) in enumerate(zip(texts, finishes, strict=True))
    )
    verdicts = tuple(Verdict(question=name, index=i, outcome=words[letter]) for i, letter in enumerate(outcomes))
    statistics.add(
        Question(id=name, text="?", answer="7", kind="number", domain=domain, source=source),
        Sampled(question=name, responses=responses),
        Judged(question=name, verdicts=verdicts),
        Paired(question=name, pairs=pairs, dropped=drops),
    )


def pair(
    question: str,
    origin: Origin,
    chosen_ids: tuple[int, ...],
    rejected_ids: tuple[int, ...],
    chosen_index: int = 0,
    rejected_index: int = 1,
) -> Pair:
    return Pair(
        id="x", question=question, chosen="a", rejected="b", origin=origin, chosen_ids=chosen_ids, rejected_ids=rejected_ids,
        chosen_index=chosen_index, rejected_index=rejected_index,
    )  # fmt: skip


@pytest.fixture
def figures() -> dict[str, Any]:
    """Seven questions whose figures are worked out by hand below."""
    statistics = Statistics()
    add(statistics, "right", "rrr", domain="sum", source="book", texts=["a", "a ", "b"])
    add(statistics, "wrong", "wwmu", domain="sum", source="book")
    add(
        statistics, "mixed", "rwum", domain="count", source="web", finishes=["stop", "length", "stop", "length"],
        pairs=(
            pair("mixed", "correctness", (1, 2, 3, 4), (1, 2, 9, 9, 9)),
            pair("mixed", "format", (1, 2, 3, 4), (5, 6), rejected_index=3),
        ),
        drops=(Drop(reason="undecided", count=1), Drop(reason="entailment", count=2)),
    )  # fmt: skip
    add(statistics, "unsure", "uu", domain="count", source="web", drops=(Drop(reason="undecided", count=2),))
    statistics.add(
        OPEN,
        Sampled(
            question="q2",
            responses=(response(0, "x", question="q2", token_ids=(7, 7, 8, 8)), response(1, "", question="q2", finish="error")),
        ),
        Judged(question="q2"),
        Paired(question="q2", pairs=(pair("q2", "dropout_ntp", (7, 7, 8, 8), (7, 7, 9, 9), rejected_index=0),)),
        Sampled(question="q2", responses=(response(0, "y", question="q2", finish="length"),)),
    )
    statistics.add(
        Question(id="failed", text="?", answer="1", kind="number"),
        Sampled(question="failed", error="out of memory"),
        Judged(question="failed"),
        Paired(question="failed", dropped=(Drop(reason="failed", count=1),)),
    )
    statistics.add(
        Question(id="imported", text="?"),
        Sampled(question="imported"),
        None,
        Paired(question="imported", pairs=(pair("imported", "correctness", (), ()),)),
    )
    return statistics.as_dict()


def test_questions(figures: dict[str, Any]) -> None:
    names = ("questions", "with_answer", "without_answer", "failed", "with_pairs", "all_right", "mixed", "all_wrong", "all_undecided")
    assert [figures[name] for name in names] == [7, 5, 2, 1, 3, 1, 1, 1, 1]


def test_answers_and_verdicts(figures: dict[str, Any]) -> None:
    answers = figures["answers"]
    assert (answers["total"], answers["stop"], answers["length"], answers["error"], answers["duplicates"]) == (15, 12, 2, 1, 1)
    assert answers["length_share"] == pytest.approx(2 / 15)
    assert answers["duplicate_share"] == pytest.approx(1 / 15)
    assert answers["tokens_mean"] == pytest.approx((13 * 10 + 4) / 14)  # the failed answer has no length
    assert answers["tokens_max"] == 10
    assert figures["verdicts"] == {"correct": 4, "wrong": 3, "malformed": 2, "undecided": 4, "accuracy": pytest.approx(4 / 9)}
    assert figures["domains"] == {
        "": {"questions": 1, "correct": 0, "decided": 0, "accuracy": None},
        "count": {"questions": 2, "correct": 1, "decided": 3, "accuracy": pytest.approx(1 / 3)},
        "sum": {"questions": 2, "correct": 3, "decided": 6, "accuracy": 0.5},
    }


def test_pairs(figures: dict[str, Any]) -> None:
    assert figures["pairs"] == 4
    assert figures["origins"] == {"correctness": 2, "format": 1, "dropout_ntp": 1}
    assert figures["pairs_per_question"] == pytest.approx(4 / 3)
    # Capped: answers 1 and 3 of "mixed", and the continuation; longer: 5 tokens against 4, of three pairs with tokens.
    assert figures["rejected"] == {"length_capped": 3, "longer": 1, "length_capped_share": 0.75, "longer_share": pytest.approx(1 / 3)}
    assert figures["without_tokens"] == 1
    assert figures["drops"] == {
        "the correct final answer is contained in the wrong one (pairs)": 2,
        "sampling failed (questions)": 1,
        "the verifier could not tell right from wrong (answers)": 3,
    }


def test_lengths(figures: dict[str, Any]) -> None:
    lengths = figures["lengths"]
    assert lengths["edges"] == [2 * i for i in range(41)]
    assert lengths["chosen"][:4] == [0, 0, 3, 0]
    assert lengths["rejected"][:4] == [0, 1, 2, 0]
    assert (lengths["chosen_mean"], lengths["rejected_mean"]) == (4, pytest.approx(11 / 3))
    assert (lengths["chosen_max"], lengths["rejected_max"]) == (4, 5)
    ratio = figures["length_ratio"]  # 4/5, 4/2 and 4/4
    assert ratio["mean"] == pytest.approx((0.8 + 2 + 1) / 3)
    assert {ratio["edges"][i]: count for i, count in enumerate(ratio["counts"]) if count} == {0.8: 1, 1.0: 1, 2.0: 1}
    shared = figures["shared_prefix"]  # 2 of 4, 0 of 2 and 2 of 4
    assert shared["counts"] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert shared["mean"] == pytest.approx(1 / 3)


def test_empty_statistics_are_json() -> None:
    figures = json.loads(json.dumps(Statistics().as_dict(), allow_nan=False))
    assert figures["pairs"] == 0
    assert figures["verdicts"]["accuracy"] is None
    assert figures["lengths"]["chosen_mean"] is None


@given(st.lists(st.integers(0, 100_000), max_size=60), st.randoms(use_true_random=False))
def test_growing_bins_are_those_of_a_plain_count(lengths: list[int], rng: random.Random) -> None:
    histogram = Lengths()
    for length in lengths:
        histogram.add(length)
    width = LENGTH_WIDTH
    while lengths and max(lengths) >= width * BINS:
        width *= 2
    assert histogram.width == width
    assert histogram.counts == [sum(i * width <= length < (i + 1) * width for length in lengths) for i in range(BINS)]
    rng.shuffle(lengths)
    other = Lengths()
    for length in lengths:
        other.add(length)
    assert other == histogram


def test_both_sides_share_their_bins() -> None:
    statistics = Statistics()
    statistics.add(OPEN, Sampled(question="q2"), None, Paired(question="q2", pairs=(pair("q2", "dropout_ntp", (1,) * 3, (1,) * 500),)))
    lengths = statistics.as_dict()["lengths"]
    assert lengths["edges"][1] == 16
    assert lengths["chosen"][0] == lengths["rejected"][31] == 1
    assert sum(lengths["chosen"]) == sum(lengths["rejected"]) == 1


def test_values_beyond_the_last_edge_are_in_the_last_bin() -> None:
    histogram = Fixed((0.0, 1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 99.0):
        histogram.add(value)
    assert histogram.as_dict() == {"edges": [0.0, 1.0, 2.0], "counts": [1, 4], "mean": pytest.approx(20.7), "max": 99.0}


def test_sources(figures: dict[str, Any]) -> None:
    """Worked out by hand: a question without pairs counts, lengths are means over the pairs that have tokens."""
    assert figures["sources"] == {
        "": {
            "questions": 3, "with_pairs": 2, "correct": 0, "decided": 0, "accuracy": None, "pairs": 2,
            "correctness": 1, "format": 0, "dropout_ntp": 1, "chosen_mean": 4, "rejected_mean": 4,
        },
        "book": {
            "questions": 2, "with_pairs": 0, "correct": 3, "decided": 6, "accuracy": 0.5, "pairs": 0,
            "correctness": 0, "format": 0, "dropout_ntp": 0, "chosen_mean": None, "rejected_mean": None,
        },
        "web": {
            "questions": 2, "with_pairs": 1, "correct": 1, "decided": 3, "accuracy": pytest.approx(1 / 3), "pairs": 2,
            "correctness": 1, "format": 1, "dropout_ntp": 0, "chosen_mean": 4, "rejected_mean": 3.5,
        },
    }  # fmt: skip


def test_domains_and_sources_are_bounded() -> None:
    statistics = Statistics()
    for number in range(503):
        add(statistics, f"q{number}", "r", domain=f"domain {number}", source=f"source {number}")
    for found in (statistics.as_dict()["domains"], statistics.as_dict()["sources"]):
        assert len(found) == 501
        assert found["(other)"]["questions"] == 3


def test_records_of_another_question_are_a_bug() -> None:
    with pytest.raises(ValueError, match="records of question q9"):
        Statistics().add(OPEN, Sampled(question="q9"), None, Paired(question="q2"))
    with pytest.raises(ValueError, match="records of question q9"):
        Statistics().add(OPEN, Sampled(question="q2"), None, Paired(question="q9"))


@given(answer_sets())
def test_statistics_agree_with_what_build_made(answers: AnswerSet) -> None:
    responses, verdicts = answers
    question = Question(id="q1", text="?", answer="7", kind="number")
    sampled, judgement = Sampled(question="q1", responses=tuple(responses)), Judged(question="q1", verdicts=tuple(verdicts))
    paired = build(question, sampled, judgement, None, PairsTable(), 0)
    statistics = Statistics()
    statistics.add(question, sampled, judgement, paired)
    figures = statistics.as_dict()
    assert figures["pairs"] == len(paired.pairs)
    assert sum(figures["drops"].values()) == sum(drop.count for drop in paired.dropped)
    assert figures["answers"]["total"] == len(responses)
    assert sum(figures["lengths"]["chosen"]) + figures["without_tokens"] == len(paired.pairs)
    if figures["all_right"] or figures["all_wrong"] or figures["all_undecided"]:
        assert not paired.pairs
