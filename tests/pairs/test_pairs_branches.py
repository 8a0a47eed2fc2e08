"""Branches: where responses are cut, the value of each place and the pairs, compared with hand-computed ones and a plain count."""

from __future__ import annotations

import random
from itertools import product

import pytest

from mixpo.engines.scripted import ByteCodec
from mixpo.errors import RecipeError
from mixpo.pairs.branches import branch_pairs, cuts, places, places_of, sentence_ends, steps
from mixpo.pairs.build import build, rebuild
from mixpo.recipe import BranchesTable, PairsTable, parse
from mixpo.records import Judged, Sampled, Valued
from mixpo.types import Outcome, Place, Question, Response, Verdict

CODEC = ByteCodec()
END = (ByteCodec.END,)
QUESTION = Question(id="q", text="<image>\nHow many?", answer="3", kind="number")


def response(index: int, text: str, **more: object) -> Response:
    return Response(question="q", index=index, text=text, token_ids=CODEC.encode(text), **more)  # type: ignore[arg-type]


def verdict(index: int, outcome: Outcome) -> Verdict:
    extracted = {"correct": "3", "wrong": "7"}.get(outcome)
    return Verdict(question="q", index=index, outcome=outcome, extracted=extracted)


def judged(*outcomes: Outcome) -> Judged:
    return Judged(question="q", verdicts=tuple(verdict(index, outcome) for index, outcome in enumerate(outcomes)))


# --- where to cut -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("One cat. Two dogs! Three?", ["One cat.", "One cat. Two dogs!"]),
        ("It is 3.5 m. Final answer: 3.5", ["It is 3.5 m."]),
        ("First line\n\nSecond line\n", ["First line"]),
        ('He says "no." Then (so!) it ends', ['He says "no."', 'He says "no." Then (so!)']),
        ("1. Look at it. 2. Count.", ["1. Look at it.", "1. Look at it. 2."[:14]]),
        ("它是九。所以答案是九。", ["它是九。"]),
        ("No end here", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_say(text: str, ends: list[str]) -> None:
    assert [text[:end] for end in sentence_ends(text)] == list(dict.fromkeys(ends))


def test_ratios_leave_a_token_on_both_sides() -> None:
    table = BranchesTable(at=("ratios",), ratios=(0.01, 0.5, 0.99))
    assert places_of(response(0, "abcdefghij"), table, CODEC.decode, END) == [5, 9]
    assert places_of(response(0, "a"), table, CODEC.decode, END) == []


def test_a_cut_never_splits_a_character() -> None:
    table = BranchesTable(at=("ratios",), ratios=(0.5,))
    (kept,) = places_of(response(0, "a九九"), table, CODEC.decode, END)
    assert CODEC.decode(CODEC.encode("a九九")[:kept]) == "a"


def test_surprisal_cuts_before_the_least_likely_tokens() -> None:
    table = BranchesTable(at=("surprisal",), max_places=2)
    sampled = response(0, "abcde", logprobs=(-9.0, -0.1, -3.0, -0.2, -5.0, -0.0))
    assert places_of(sampled, table, CODEC.decode, END) == [2, 4]
    assert places_of(response(0, "abcde"), table, CODEC.decode, END) == []  # no log-probs


def test_of_many_places_evenly_spaced_ones_are_used() -> None:
    text = " ".join(f"Step {number} is done." for number in range(10))
    table = BranchesTable(max_places=3)
    kept = [CODEC.decode(CODEC.encode(text)[:n]) for n in places_of(response(0, text), table, CODEC.decode, END)]
    assert [one.count("done.") for one in kept] == [2, 5, 8]


def test_only_questions_and_responses_of_the_rule_are_cut() -> None:
    texts = ("I see. A: 3", "I saw. A: 7", "Well? A: 3", "So what. And")
    sampled = Sampled(question="q", responses=tuple(response(index, text) for index, text in enumerate(texts)))
    outcomes = judged("correct", "wrong", "undecided", "malformed")

    def cut(**settings: object) -> list[int]:
        table = BranchesTable(max_responses=9, **settings)  # type: ignore[arg-type]
        return [one.response.index for one in cuts(sampled, outcomes, table, 1, CODEC.decode, END)]

    assert cut() == [0, 1, 3]
    assert cut(cut_responses="correct") == [0]
    assert cut(cut_responses="wrong") == [1, 3]
    right = judged("correct", "correct", "correct", "correct")
    assert not cuts(sampled, right, BranchesTable(), 1, CODEC.decode, END)
    assert cuts(sampled, right, BranchesTable(only_mixed=False), 1, CODEC.decode, END)
    turned = Sampled(question="q", responses=sampled.responses[::-1])
    table = BranchesTable(max_responses=1)
    assert cuts(turned, outcomes, table, 5, CODEC.decode, END) == cuts(sampled, outcomes, table, 5, CODEC.decode, END)


def test_truncated_and_repeated_responses_are_not_cut() -> None:
    responses = (response(0, "I see. A: 3"), response(1, "I see. A: 3"), response(2, "I saw. A: 7", finish="length"))
    made = cuts(Sampled(question="q", responses=responses), judged("correct", "correct", "wrong"), BranchesTable(), 0, CODEC.decode, END)
    assert [one.response.index for one in made] == [0]


# --- values and pairs ---------------------------------------------------------------------------------------------------

TABLE = BranchesTable(max_places=2, continuations=4, max_per_place=16)
PAIRS = PairsTable(branches=TABLE)
ORIGINAL = response(1, "One. Two. A: 3")


def continuations(place: int, kept: int, *ends: str) -> list[Response]:
    begun = CODEC.encode("One. Two. A: 3")[:kept]
    return [
        Response(
            question="q", index=index, text=CODEC.decode(begun) + end, token_ids=(*begun, *CODEC.encode(end)), prefix_len=kept
        )
        for index, end in zip(TABLE.indices(1, place), ends, strict=True)
    ]  # fmt: skip


def example() -> tuple[Sampled, Sampled, Valued]:
    """Two places of response 1: right 1 of 3 (one undecided), and right 4 of 4."""
    sampled = Sampled(question="q", responses=(response(0, "A: 7"), ORIGINAL))
    first, second = continuations(0, 4, " A: 3", " A: 7", " Hm", " A: ?"), continuations(1, 9, " a: 3", " b: 3", " c: 3", " d: 3")
    outcomes: list[Outcome] = ["correct", "wrong", "malformed", "undecided", *["correct"] * 4]  # type: ignore[list-item]
    verdicts = tuple(verdict(one.index, outcome) for one, outcome in zip([*first, *second], outcomes, strict=True))
    continued = Sampled(question="q", responses=(*first, *second))
    found = tuple(places(sampled, continued, Judged(question="q", verdicts=verdicts), TABLE, CODEC.decode))
    return sampled, continued, Valued(question="q", verdicts=verdicts, places=found)


def test_values_by_hand() -> None:
    assert example()[2].places == (
        Place(response=1, tokens=4, characters=4, value=1 / 3, n=3),
        Place(response=1, tokens=9, characters=9, value=1.0, n=4),
    )


def test_pairs_by_hand() -> None:
    sampled, continued, valued = example()
    pairs, drops = branch_pairs(QUESTION, continued, valued, PAIRS, seed=0)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("One. A: 3", "One. A: 7"), ("One. A: 3", "One. Hm")]
    assert {(pair.origin, pair.cut, pair.chosen_index) for pair in pairs} == {("branch", 4, 8)}
    assert drops == {"undecided": 1}
    for pair in pairs:
        assert pair.chosen_ids[: pair.cut] == pair.rejected_ids[: pair.cut] == ORIGINAL.token_ids[: pair.cut]
        assert rebuild(pair, sampled, branches=(continued, valued)) == pair


def test_pairs_and_values_equal_a_plain_count() -> None:
    rng = random.Random(3)
    for _ in range(50):
        outcomes: list[Outcome] = [rng.choice(["correct", "wrong", "malformed", "undecided"]) for _ in range(8)]
        made = [*continuations(0, 4, *(f" x{n}" for n in range(4))), *continuations(1, 9, *(f" y{n}" for n in range(4)))]
        verdicts = tuple(verdict(one.index, outcome) for one, outcome in zip(made, outcomes, strict=True))
        rng.shuffle(made)
        continued, sampled = Sampled(question="q", responses=tuple(made)), Sampled(question="q", responses=(ORIGINAL,))
        found = list(places(sampled, continued, Judged(question="q", verdicts=verdicts), TABLE, CODEC.decode))
        pairs, _ = branch_pairs(QUESTION, continued, Valued(question="q", verdicts=verdicts, places=tuple(found)), PAIRS, 0)
        expected = set()
        for number, of_place in enumerate((outcomes[:4], outcomes[4:])):
            decided = [outcome for outcome in of_place if outcome != "undecided"]
            value = sum(outcome == "correct" for outcome in decided) / len(decided) if decided else None
            assert (found[number].value, found[number].n) == (value, len(decided))
            indices = TABLE.indices(1, number)
            for right, wrong in product(range(4), range(4)):
                if of_place[right] == "correct" and of_place[wrong] in ("wrong", "malformed"):
                    expected.add((indices[right], indices[wrong]))
        assert {(pair.chosen_index, pair.rejected_index) for pair in pairs} == expected


def test_at_most_max_per_place_pairs_and_none_twice() -> None:
    outcomes: tuple[Outcome, ...] = ("correct", "correct", "wrong", "wrong")
    # Both places end in the same texts: the second gives no pair of its own.
    made = [*continuations(0, 4, " Two. a", " Two. b", " Two. c", " Two. d"), *continuations(1, 9, " a", " b", " c", " d")]
    verdicts = tuple(verdict(one.index, outcome) for one, outcome in zip(made, outcomes * 2, strict=True))
    continued, valued = Sampled(question="q", responses=tuple(made)), Valued(question="q", verdicts=verdicts)
    pairs, drops = branch_pairs(QUESTION, continued, valued, PAIRS, 0)
    assert [pair.cut for pair in pairs] == [4] * 4
    assert drops == {"same_pair": 4}
    similar = PAIRS.model_copy(update={"max_side_similarity": 0.0})
    assert branch_pairs(QUESTION, continued, valued, similar, 0) == (pairs, drops), "sides that share a beginning are always similar"
    capped = PairsTable(branches=TABLE.model_copy(update={"max_per_place": 1}))
    pairs, drops = branch_pairs(QUESTION, Sampled(question="q", responses=tuple(made[:4])), valued, capped, 0)
    assert len(pairs) == 1
    assert drops == {"over_cap": 3}


def test_a_continuation_without_ids_counts_for_the_value_and_makes_no_pair() -> None:
    made = continuations(0, 4, " a", " b", " c", " d")
    lost = Response(question="q", index=made[0].index, text=made[0].text)
    continued = Sampled(question="q", responses=(lost, *made[1:]))
    verdicts = tuple(verdict(one.index, "correct" if one is made[0] else "wrong") for one in made)
    valued = Valued(question="q", verdicts=verdicts)
    (place,) = places(Sampled(question="q", responses=(ORIGINAL,)), continued, valued, TABLE, CODEC.decode)
    assert (place.tokens, place.value) == (4, 0.25)
    assert branch_pairs(QUESTION, continued, valued, PAIRS, 0) == ([], {"wrong_prefix": 1})


def test_they_stand_beside_the_pairs_of_sampled_responses() -> None:
    sampled, continued, valued = example()
    made = build(QUESTION, sampled, judged("wrong", "correct"), None, PAIRS, 0, branches=(continued, valued))
    assert [pair.origin for pair in made.pairs] == ["correctness", "branch", "branch"]


def test_indices_tell_the_response() -> None:
    seen = [index for response_, place in product(range(3), range(2)) for index in TABLE.indices(response_, place)]
    assert seen == list(range(24))
    assert all(TABLE.response_of(index) == index // 8 for index in seen)


def test_steps_join_to_the_response() -> None:
    found = [*example()[2].places, Place(response=1, tokens=2, characters=2, value=None, n=0)]
    made = steps(ORIGINAL, found, verdict(1, "correct"))
    assert [(step.text, step.value, step.n) for step in made] == [("One.", 1 / 3, 3), (" Two.", 1.0, 4), (" A: 3", 1.0, 0)]
    assert steps(ORIGINAL, found, verdict(1, "undecided"))[-1].value is None


# --- recipe -------------------------------------------------------------------------------------------------------------

SOURCE = {"kind": "jsonl", "path": "q.jsonl"}


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"pairs": {"branches": {"continuations": 1}}}, "continuations"),
        ({"pairs": {"branches": {"at": ["words"]}}}, "words"),
        ({"pairs": {"branches": {"at": ["ratios", "ratios"]}}}, "twice"),
        ({"pairs": {"branches": {"at": []}}}, "at"),
        ({"pairs": {"branches": {"ratios": [1.0]}}}, "ratios"),
        ({"pairs": {"branches": {}}, "sample": {"engine": "file", "responses": "r.jsonl"}}, 'sample.engine = "file"'),
        (
            {"pairs": {"branches": {}}, "sample": {"engine": "openai", "server": {"urls": ["http://a"], "same_model": False}}},
            "same_model = false",
        ),
        ({"source": None, "preferences": [{"path": "p.jsonl"}], "pairs": {"branches": {}}}, "without [source]"),
    ],
)
def test_what_cannot_work_is_refused(more: dict[str, object], part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"source": SOURCE} | more, "recipe.toml")
    assert caught.value.code == "recipe-invalid"
    assert part in str(caught.value)
