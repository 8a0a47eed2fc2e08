"""What is left out of the pairs on purpose: near-duplicates, large classes, and what stands in when no answer is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_answers import ASKED, Row, judged, table

from mixpo.pairs.balance import Class, class_of, difficulty, lot, rates, thin
from mixpo.pairs.build import build, rebuild
from mixpo.pairs.correctness import NearDuplicates, overlap, word_runs
from mixpo.records import Drop, Judged, Paired, Sampled
from mixpo.types import Outcome, Pair, Verdict

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)


# --- near-duplicates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [
        ("a b c d", "a b c d", 1.0),
        ("A b c d", "a B c d", 1.0),
        ("a b c d", "a b c e", 1 / 3),  # abc bcd | abc bce
        ("a b c d e", "a b c d f", 2 / 4),
        ("a b", "a b", 1.0),
        ("a b", "a c", 0.0),
        ("红色的圆", "红色的方", 1 / 3),
        ("", "", 1.0),
    ],
)
def test_overlap(left: str, right: str, share: float) -> None:
    assert overlap(word_runs(left), word_runs(right)) == pytest.approx(share)


@given(st.text("ab ", max_size=20), st.text("ab ", max_size=20))
@EXAMPLES
def test_overlap_is_symmetric(left: str, right: str) -> None:
    runs = word_runs(left), word_runs(right)
    assert 0 <= overlap(*runs) == overlap(*runs[::-1]) <= 1
    assert overlap(runs[0], runs[0]) == 1


def test_the_first_of_similar_answers_is_admitted() -> None:
    seen = NearDuplicates(0.5)
    assert [seen.admit(text) for text in ("a b c d e", "a b c d e f", "a b c d x y z", "v w x y z")] == [True, False, True, True]
    assert NearDuplicates(1.0).admit("a")
    assert NearDuplicates(1.0).admit("a")


def test_near_duplicates_are_counted_on_each_side() -> None:
    responses, verdicts = judged(
        ("I look and see seven of them", "correct", "7"),
        ("I look and see seven of them now", "correct", "7"),
        ("I look and see seven of them", "correct", "7"),
        ("I look and see eight of us", "wrong", "8"),
    )
    sampled, verdict = Sampled(question="q1", responses=tuple(responses)), Judged(question="q1", verdicts=tuple(verdicts))
    paired = build(ASKED, sampled, verdict, None, table(max_similarity=0.6), 0)
    assert [(pair.chosen_index, pair.rejected_index) for pair in paired.pairs] == [(0, 3)]
    assert paired.dropped == (Drop(reason="duplicate", count=1), Drop(reason="near_duplicate", count=1))
    assert len(build(ASKED, sampled, verdict, None, table(), 0).pairs) == 2


# --- rationales ----------------------------------------------------------------------------------------------------------------

TOLD = replace(ASKED, rationale="Three and four. Final answer: 7")


@pytest.mark.parametrize(
    ("rows", "on", "chosen"),
    [
        ([("no 8", "wrong", "8"), ("well", "malformed", None)], True, [-1, -1]),
        ([("no 8", "wrong", "8"), ("so 7", "correct", "7")], True, [1]),
        ([("no 8", "wrong", "8")], False, []),
        ([("no 8", "undecided", "8")], True, []),
        # A right answer that may not be chosen is still a right answer: the question is not beyond the model.
        ([("no 8", "wrong", "8"), ("so 7", "correct", "7", "length")], True, []),
    ],
)
def test_a_rationale_stands_in_when_no_answer_is_right(rows: list[Row], on: bool, chosen: list[int]) -> None:
    responses, verdicts = judged(*rows)
    sampled, verdict = Sampled(question="q1", responses=tuple(responses)), Judged(question="q1", verdicts=tuple(verdicts))
    paired = build(TOLD, sampled, verdict, None, table(rationales=on), 0)
    assert [pair.chosen_index for pair in paired.pairs] == chosen
    for pair in paired.pairs:
        if pair.chosen_index == -1:
            assert (pair.chosen, pair.chosen_ids, pair.chosen_answer) == (TOLD.rationale, (), "7")
        assert rebuild(pair, sampled, verdict, question=TOLD) == pair


def test_without_a_rationale_nothing_stands_in() -> None:
    responses, verdicts = judged(("no 8", "wrong", "8"))
    sampled, verdict = Sampled(question="q1", responses=tuple(responses)), Judged(question="q1", verdicts=tuple(verdicts))
    assert build(ASKED, sampled, verdict, None, table(rationales=True), 0).pairs == ()


# --- balance -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "name"),
    [
        ("", "open"),
        ("uu", "open"),
        ("cw", "medium"),
        ("cww", "medium"),
        ("cwww", "hard"),
        ("cwwwuuuu", "hard"),
        ("mmc", "medium"),
        ("cccw", "easy"),
        ("ccw", "medium"),
        ("m", "hard"),
    ],
)
def test_difficulty(outcomes: str, name: str) -> None:
    words: dict[str, Outcome] = {"c": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}
    verdicts = tuple(Verdict(index=index, outcome=words[letter]) for index, letter in enumerate(outcomes))
    assert difficulty(Judged(question="q", verdicts=verdicts)) == name


def test_rates_by_hand() -> None:
    sizes: Counter[Class] = Counter({("a",): 1000, ("b",): 10, ("c",): 190})
    assert rates(sizes, 1.0) == {("a",): 0.4, ("b",): 1.0, ("c",): 1.0}  # the mean size is 400
    assert rates(sizes, 0.5) == {("a",): 0.2, ("b",): 1.0, ("c",): 1.0}
    assert rates(sizes, 9.0) == dict.fromkeys(sizes, 1.0)
    assert rates(Counter(), 1.0) == {}


def pairs(domain: str, count: int) -> list[Paired]:
    return [
        Paired(
            question=f"{domain}{n}",
            pairs=(Pair(id=f"{domain}{n}", question=f"{domain}{n}", chosen="a", rejected="b", origin="correctness"),),
        )
        for n in range(count)
    ]


def test_large_classes_are_thinned_out_whatever_the_order() -> None:
    none = Judged(question="")
    rows = [(replace(ASKED, domain=name), paired) for name, count in (("big", 3000), ("small", 200)) for paired in pairs(name, count)]
    sizes = Counter(class_of(question, none, pair, ("domain",)) for question, paired in rows for pair in paired.pairs)
    kept = rates(sizes, 1.0)

    def survivors(order: list[tuple[object, Paired]]) -> list[str]:
        thinned = [thin(question, none, paired, ("domain",), kept, 0) for question, paired in order]  # type: ignore[arg-type]
        for paired in thinned:
            assert sum(drop.count for drop in paired.dropped) + len(paired.pairs) == 1
        return sorted(pair.id for paired in thinned for pair in paired.pairs)

    left = survivors(rows)  # type: ignore[arg-type]
    assert left == survivors(rows[::-1])  # type: ignore[arg-type]
    count = Counter(name.rstrip("0123456789") for name in left)
    assert count["small"] == 200
    # Of 3000 a share of 1600 / 3000 in the mean; four standard deviations are 110.
    assert abs(count["big"] - 1600) < 110


def test_lots_are_spread_evenly() -> None:
    lots = [lot(0, paired.pairs[0]) for paired in pairs("x", 2000)]
    assert all(0 <= value < 1 for value in lots)
    assert abs(sum(value < 0.3 for value in lots) - 600) < 82
    assert lots != [lot(1, paired.pairs[0]) for paired in pairs("x", 2000)]
