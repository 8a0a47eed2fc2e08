from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_answers import ASKED, AnswerSet, Row, answer_sets, judged, response, table, tables

from mixpo.pairs.correctness import correctness_pairs, diagonals, entails, plain, sample_balanced
from mixpo.pairs.provenance import REASONS
from mixpo.recipe import PairsTable
from mixpo.types import Origin, Outcome, Verdict


def made(rows: list[Row], seed: int = 0, **changes: object) -> tuple[list[tuple[str, str, Origin]], dict[str, int]]:
    """(chosen text, rejected text, origin) of each pair, and the drops."""
    pairs, drops = correctness_pairs(ASKED, *judged(*rows), table(**changes), seed)
    return [(pair.chosen, pair.rejected, pair.origin) for pair in pairs], dict(drops)


RIGHT: tuple[str, Outcome, str] = ("so 7", "correct", "7")
OTHER_RIGHT: Row = ("well 7", "correct", "7")
WRONG: Row = ("so 8", "wrong", "8")
SHAPELESS: Row = ("hmm", "malformed", None)
UNSURE: Row = ("7 km", "undecided", "7 km")

CASES: dict[str, tuple[list[Row], list[tuple[str, str, Origin]], dict[str, int]]] = {
    "right and wrong": ([RIGHT, WRONG], [("so 7", "so 8", "correctness")], {}),
    "right and malformed": ([RIGHT, SHAPELESS], [("so 7", "hmm", "format")], {}),
    "all right": ([RIGHT, OTHER_RIGHT], [], {}),
    "all wrong": ([WRONG, SHAPELESS], [], {}),
    "undecided is on neither side": ([RIGHT, UNSURE], [], {"undecided": 1}),
    "undecided beside a wrong one": ([UNSURE, WRONG], [], {"undecided": 1}),
    "a failed answer is on neither side": ([RIGHT, ("", "malformed", None, "error")], [], {"error": 1}),
    "a failed answer is not chosen": ([(*RIGHT, "error"), WRONG], [], {"error": 1}),
    "a capped answer is not chosen": ([(*RIGHT, "length"), WRONG], [], {"length_capped": 1}),
    "a capped answer is rejected": ([RIGHT, ("and so on", "malformed", None, "length")], [("so 7", "and so on", "format")], {}),
    "a capped duplicate hides nothing": ([(*RIGHT, "length"), RIGHT, WRONG], [("so 7", "so 8", "correctness")], {"length_capped": 1}),
    "duplicates on both sides": ([RIGHT, RIGHT, WRONG, WRONG], [("so 7", "so 8", "correctness")], {"duplicate": 2}),
    "spaces around do not make another text": (
        [RIGHT, WRONG, (" so 8\n", "wrong", "8")],
        [("so 7", "so 8", "correctness")],
        {"duplicate": 1},
    ),
    "the same text judged twice": ([RIGHT, ("so 7", "wrong", "8")], [], {"same_text": 1}),
    "one contains the other": ([RIGHT, ("so 17", "wrong", "17")], [], {"entailment": 1}),
    "the other way round is fine": ([("so 17", "correct", "17"), ("so 7", "wrong", "7")], [("so 17", "so 7", "correctness")], {}),
    "no text and no tokens": ([RIGHT, ("", "malformed", None, "length")], [], {"empty": 1}),
    "an empty answer that ends is a negative": ([RIGHT, ("", "malformed", None)], [("so 7", "", "format")], {}),
    "nothing": ([], [], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    rows, pairs, drops = CASES[name]
    assert made(rows) == (pairs, drops)


def test_settings() -> None:
    assert made([RIGHT, SHAPELESS], format_negatives=False) == ([], {"malformed": 1})
    assert made([RIGHT, ("so 17", "wrong", "17")], entailment=False) == ([("so 7", "so 17", "correctness")], {})
    # 5 tokens ("so 7" and the end) against 10
    long: Row = ("it is 9!!", "wrong", "9!!")
    assert made([RIGHT, long], max_length_ratio=1.9) == ([], {"length_ratio": 1})
    assert made([RIGHT, long], max_length_ratio=2.0) == ([("so 7", "it is 9!!", "correctness")], {})
    # 5 tokens of which one differs: edit distance 1, similarity 0.8
    assert made([RIGHT, WRONG], max_side_similarity=0.79) == ([], {"similar_sides": 1})
    assert made([RIGHT, WRONG], max_side_similarity=0.8) == ([("so 7", "so 8", "correctness")], {})
    assert made([RIGHT, WRONG, long], max_side_similarity=0.79) == ([("so 7", "it is 9!!", "correctness")], {"similar_sides": 1})


@pytest.mark.parametrize(
    ("correct", "wrong", "expected"),
    [
        ("1", "10", True),
        ("10", "1", False),
        ("Yes", "yes, it is", True),
        ("the  red\nball", "The red ball and the blue one", True),
        ("red", "blue", False),
        ("", "anything", False),
        (" ", "a b", False),
        ("左", "左边", True),
    ],
)
def test_entailment(correct: str, wrong: str, expected: bool) -> None:
    assert entails(plain(correct), plain(wrong)) is expected


def test_provenance_is_kept() -> None:
    (pair,), _ = correctness_pairs(ASKED, *judged(WRONG, RIGHT), table(), 0)
    assert (pair.question, pair.chosen_index, pair.rejected_index, pair.chosen_answer, pair.rejected_answer, pair.cut) == (
        "q1",
        1,
        0,
        "7",
        "8",
        0,
    )
    assert pair.chosen_ids == (*map(ord, "so 7"), 0)


def test_records_that_do_not_belong_together() -> None:
    responses, verdicts = judged(RIGHT, WRONG)
    for bad in (verdicts[:1], [verdicts[0], verdicts[0]], [verdicts[0], Verdict(index=5, outcome="wrong")]):
        with pytest.raises(ValueError, match="do not match"):
            correctness_pairs(ASKED, responses, bad, table(), 0)
    with pytest.raises(ValueError, match="do not match"):
        correctness_pairs(ASKED, [responses[0], responses[0]], verdicts, table(), 0)


def many(right: int, wrong: int) -> AnswerSet:
    rights: list[Row] = [(f"right {i}", "correct", "7") for i in range(right)]
    wrongs: list[Row] = [(f"wrong {i}", "wrong", "8") for i in range(wrong)]
    return judged(*rights, *wrongs)


@pytest.mark.parametrize(("right", "wrong"), [(1, 31), (31, 1), (16, 16), (3, 29), (8, 8), (2, 4), (12, 18)])
def test_every_answer_is_used_evenly(right: int, wrong: int) -> None:
    responses, verdicts = many(right, wrong)
    pairs, drops = correctness_pairs(ASKED, responses, verdicts, table(max_per_question=15), 0)
    expected = min(15, right * wrong)
    assert len(pairs) == len({(p.chosen_index, p.rejected_index) for p in pairs}) == expected
    assert drops["over_cap"] == right * wrong - expected
    for side, size in ((Counter(p.chosen_index for p in pairs), right), (Counter(p.rejected_index for p in pairs), wrong)):
        uses = [*side.values(), *[0] * (size - len(side))]
        assert max(uses) - min(uses) <= 1


def test_the_choice_depends_on_seed_and_question_only() -> None:
    responses, verdicts = many(8, 8)
    chosen = [tuple((p.chosen, p.rejected) for p in correctness_pairs(ASKED, responses, verdicts, table(), seed)[0]) for seed in range(5)]
    assert len(set(chosen)) == 5
    assert chosen[0] == tuple((p.chosen, p.rejected) for p in correctness_pairs(ASKED, responses, verdicts, table(), 0)[0])


@pytest.mark.parametrize("cap", [1, 4])
def test_the_choice_is_uniform_enough(cap: int) -> None:
    """Over many seeds every one of 4 x 4 combinations is taken about equally often."""
    responses, verdicts = many(4, 4)
    seeds = 800 // cap
    taken = Counter(
        (p.chosen_index, p.rejected_index)
        for seed in range(seeds)
        for p in correctness_pairs(ASKED, responses, verdicts, table(max_per_question=cap), seed)[0]
    )
    assert len(taken) == 16
    assert all(25 <= count <= 75 for count in taken.values())  # 50 expected, standard deviation 7


@pytest.mark.slow
@given(answer_sets(), tables(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_rules_hold_for_any_answers(answers: AnswerSet, settings: PairsTable, seed: int, rng: random.Random) -> None:
    responses, verdicts = answers
    pairs, drops = correctness_pairs(ASKED, responses, verdicts, settings, seed)
    by_index = {r.index: (r, v) for r, v in zip(responses, verdicts, strict=True)}
    assert len(pairs) <= settings.max_per_question
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert drops.keys() <= REASONS.keys()
    assert all(count > 0 for count in drops.values())
    for pair in pairs:
        (chosen, good), (rejected, bad) = by_index[pair.chosen_index], by_index[pair.rejected_index]
        assert good.outcome == "correct"
        assert good.extracted is not None
        assert chosen.finish == "stop"
        assert rejected.finish != "error"
        assert (bad.outcome, pair.origin) in {("wrong", "correctness"), ("malformed", "format")}
        assert settings.format_negatives or pair.origin == "correctness"
        assert pair.chosen.strip() != pair.rejected.strip()
        assert not (settings.entailment and bad.extracted is not None and entails(plain(good.extracted), plain(bad.extracted)))
    texts = {(pair.chosen.strip(), pair.rejected.strip()) for pair in pairs}
    assert len(texts) == len(pairs)
    rng.shuffle(responses)
    rng.shuffle(verdicts)
    assert correctness_pairs(ASKED, responses, verdicts, settings, seed) == (pairs, drops)


@given(answer_sets(), tables())
def test_nothing_is_lost_uncounted(answers: AnswerSet, settings: PairsTable) -> None:
    """Every answer is on a side or in the drops, and every combination of the sides is a pair or in the drops."""
    responses, verdicts = answers
    pairs, drops = correctness_pairs(ASKED, responses, verdicts, settings, 0)
    answer_drops = sum(count for reason, count in drops.items() if REASONS[reason].unit == "answers")
    pair_drops = sum(count for reason, count in drops.items() if REASONS[reason].unit == "pairs")
    left = len(responses) - answer_drops
    assert any(right * (left - right) == len(pairs) + pair_drops for right in range(left + 1))


@given(st.integers(0, 20), st.integers(0, 20))
def test_diagonals_list_everything_evenly(rows: int, columns: int) -> None:
    order = list(diagonals(rows, columns))
    assert sorted(order) == [(r, c) for r in range(rows) for c in range(columns)]
    used = Counter[int](), Counter[int]()
    for row, column in order:
        used[0][row] += 1
        used[1][column] += 1
        for side, size in zip(used, (rows, columns), strict=True):
            counts = [side[i] for i in range(size)]
            assert max(counts) - min(counts) <= 1


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 40))
def test_spread_of_everything_is_a_beginning_of_the_diagonals(rows: int, columns: int, limit: int) -> None:
    assert sample_balanced(list(diagonals(rows, columns)), limit) == list(diagonals(rows, columns))[:limit]


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99))
def test_spread_over_a_part_uses_everything_that_can_be_used(rows: int, columns: int, share: float, seed: int) -> None:
    rng = random.Random(seed)
    edges = [edge for edge in diagonals(rows, columns) if rng.random() < share]
    taken = sample_balanced(edges, rows + columns)
    assert len(taken) == len(set(taken)) == min(len(edges), rows + columns)
    assert {r for r, _ in taken} == {r for r, _ in edges}
    assert {c for _, c in taken} == {c for _, c in edges}


def test_spread_covers_everything_before_it_repeats() -> None:
    """Five columns hang on row 0 alone, beside a complete square of 2 x 2: seven edges are needed and enough."""
    edges = [(0, column) for column in range(5)] + [(row, column) for row in (1, 2) for column in (5, 6)]
    taken = sample_balanced(edges, 7)
    assert {row for row, _ in taken} == {0, 1, 2}
    assert {column for _, column in taken} == set(range(7))


def test_similarity_falls_back_to_characters() -> None:
    responses, verdicts = judged(("so it is 7", "correct", "7"), ("so it is 8", "wrong", "8"))
    responses[1] = response(1, responses[1].text, token_ids=())
    assert correctness_pairs(ASKED, responses, verdicts, table(max_side_similarity=0.9), 0)[1] == {}  # 1 of 10 characters
    assert correctness_pairs(ASKED, responses, verdicts, table(max_side_similarity=0.89), 0)[1] == {"similar_sides": 1}


def test_lengths_fall_back_to_characters() -> None:
    responses, verdicts = judged(RIGHT, ("it is certainly 9", "wrong", "9"))
    responses[1] = response(1, responses[1].text, token_ids=())
    assert correctness_pairs(ASKED, responses, verdicts, table(max_length_ratio=4.25), 0)[1] == {}  # 17 characters against 4
    assert correctness_pairs(ASKED, responses, verdicts, table(max_length_ratio=4.2), 0)[1] == {"length_ratio": 1}
