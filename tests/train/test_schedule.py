"""Which pairs go into which step and which micro-batch: every pair exactly once, whatever the groups are."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpo.train.batch import Chunk, Footprint, Layout, footprint, make_chunk, micro_batches, step_chunks
from mixpo.train.schedule import Schedule, epoch_steps, rank_share
from mixpo.types import Group, Question

COUNTS = st.lists(st.integers(0, 9), max_size=30)


@given(COUNTS, st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_every_pair_once_in_full_steps(counts: list[int], batch_size: int, epoch: int, pairs_per_group: int) -> None:
    steps = list(epoch_steps(counts, batch_size, seed=1, epoch=epoch, pairs_per_group=pairs_per_group))
    sizes = [sum(len(part.pairs) for part in step) for step in steps]
    assert all(size == batch_size for size in sizes[:-1])
    assert all(0 < size <= batch_size for size in sizes)
    found = Counter((part.group, pair) for step in steps for part in step for pair in part.pairs)
    assert found == Counter((group, pair) for group, count in enumerate(counts) for pair in range(count))


def test_order_depends_on_seed_and_epoch_only() -> None:
    counts = [2] * 20
    first, again, later, other = (list(epoch_steps(counts, 4, seed, epoch)) for seed, epoch in ((7, 0), (7, 0), (7, 1), (8, 0)))
    assert first == again
    assert first not in (later, other)


def test_pairs_drawn_one_by_one() -> None:
    """Pairs of a question meet in a step by chance only, and become one chunk when they do."""
    steps = list(epoch_steps([8] * 20, 8, seed=1, epoch=0, pairs_per_group=1))
    assert all(len({part.group for part in step}) > 3 for step in steps)
    found = [group(number, [2] * 9, [(0, other) for other in range(1, 9)]) for number in range(20)]
    for step in steps:
        made = step_chunks(step, found)
        assert len(made) == len({part.group for part in step})
        assert sum(len(chunk.pairs) for chunk in made) == 8


@given(COUNTS, st.integers(1, 8), st.integers(1, 3), st.integers(0, 40))
def test_going_on_after_any_step(counts: list[int], batch_size: int, epochs: int, done: int) -> None:
    schedule = Schedule(pair_counts=tuple(counts), batch_size=batch_size, epochs=epochs, seed=3)
    whole = list(schedule.steps(0))
    assert len(whole) == schedule.total
    assert list(schedule.steps(min(done, len(whole)))) == whole[done:]


@given(COUNTS.filter(any), st.integers(1, 4))
def test_ranks_share_a_step_without_overlap(counts: list[int], ranks: int) -> None:
    step = next(epoch_steps(counts, 16, 0, 0))
    shares = [rank_share(step, rank, ranks, lambda group: group) for rank in range(ranks)]
    assert Counter(part for mine in shares for part in mine) == Counter(step)


def group(number: int, lengths: list[int], pairs: list[tuple[int, int]]) -> Group:
    responses = tuple((1000 * number + place, *[number] * (length - 1)) for place, length in enumerate(lengths))
    return Group(question=Question(id=f"q{number}", text=""), prompt="", responses=responses, pairs=tuple(pairs))


@st.composite
def chunks(draw: st.DrawFn) -> list[Chunk]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        lengths = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
        pairs = [(0, other) for other in range(1, len(lengths))]
        found.append(make_chunk(group(number, lengths, pairs), pairs))
    return found


@settings(max_examples=200)
@given(chunks(), st.integers(1, 30), st.integers(1, 400), st.sampled_from(["tree", "shared", "plain"]))
def test_micro_batches_hold_every_pair_once_and_fit(found: list[Chunk], prompt: int, budget: int, layout: Layout) -> None:
    batches = micro_batches(found, lambda _: prompt, budget, layout)
    pairs = Counter((chunk.group.question.id, pair) for batch in batches for chunk in batch for pair in chunk.pairs)
    assert pairs == Counter((chunk.group.question.id, pair) for chunk in found for pair in chunk.pairs)
    for batch in batches:
        rows = sum(len(chunk.responses) for chunk in batch)
        longest = max(prompt + len(chunk.group.responses[response]) for chunk in batch for response in chunk.responses)
        tokens = sum(prompt + sum(len(chunk.group.responses[response]) for response in chunk.responses) for chunk in batch)
        alone = len(batch) == 1 and len(batch[0].pairs) == 1
        assert (tokens if layout == "tree" else rows * longest) <= budget or alone
        for chunk in batch:
            assert {response for pair in chunk.pairs for response in pair} == set(chunk.responses)


def test_common_beginnings_leave_room() -> None:
    """Two responses of 25 tokens, 15 of them common, and a prompt of 10: 45 tokens instead of 60."""
    kept = tuple(range(15))
    asked = Question(id="q", text="")
    whole = [
        make_chunk(Group(question=asked, prompt="", responses=(kept + (1,) * 10, kept + (2,) * 10), pairs=((0, 1),)), ((0, 1),))
        for _ in "ab"
    ]
    assert footprint(whole[0], 10) == Footprint(tokens=45, rows=2, longest=35)
    assert [len(batch) for batch in micro_batches(whole, lambda _: 10, 90, "tree")] == [2]
    assert [len(batch) for batch in micro_batches(whole, lambda _: 10, 89, "tree")] == [1, 1]
    assert [len(batch) for batch in micro_batches(whole, lambda _: 10, 139, "plain")] == [1, 1]


def test_order_of_pieces_changes_nothing() -> None:
    found = [make_chunk(group(number, [5, number + 1], [(0, 1)]), [(0, 1)]) for number in range(9)]
    assert micro_batches(found, lambda _: 4, 40, "tree") == micro_batches(found[::-1], lambda _: 4, 40, "tree")


def test_responses_without_pairs_are_divided_too() -> None:
    one = group(1, [10] * 8, [])
    whole = Chunk(one, tuple(range(8)), ())
    padded = micro_batches([whole], lambda _: 10, 40, "plain")
    assert [sum(len(chunk.responses) for chunk in batch) for batch in padded] == [2, 2, 2, 2]
    packed = micro_batches([whole], lambda _: 10, 50, "tree")
    assert [sum(len(chunk.responses) for chunk in batch) for batch in packed] == [4, 4]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_pairs_no_steps(batch_size: int) -> None:
    assert list(epoch_steps([0, 0], batch_size, 0, 0)) == []
    assert list(Schedule(pair_counts=(), batch_size=batch_size, epochs=2, seed=0).steps(0)) == []
