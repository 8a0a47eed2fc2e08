"""The tree of responses against its definition: every response is the way from the prompt to its end, and enough is shared once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpo.train import prefix_tree as module
from mixpo.train.prefix_tree import Branch, PrefixTree, build_prefix_tree

RESPONSES = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=6)


def read(prefix_tree: PrefixTree, end: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while end >= 0:
        tokens, end = prefix_tree.branches[end].tokens + tokens, prefix_tree.branches[end].parent
    return tokens


@settings(max_examples=300)
@given(RESPONSES, st.integers(1, 4))
def test_every_response_is_on_its_way(responses: list[tuple[int, ...]], least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_SHARED", least)
        prefix_tree = build_prefix_tree(responses)
    assert [read(prefix_tree, end) for end in prefix_tree.end_branches] == responses
    assert all(branch.tokens and branch.parent < number for number, branch in enumerate(prefix_tree.branches))
    assert prefix_tree.tokens == sum(len(branch.tokens) for branch in prefix_tree.branches)
    if least == 1:
        # Then nothing is computed twice: as many tokens as there are different beginnings.
        assert prefix_tree.tokens == len({response[:end] for response in responses for end in range(1, len(response) + 1)})
    inner = {branch.parent for branch in prefix_tree.branches} - {-1}
    assert all(len(prefix_tree.branches[number].tokens) >= least for number in inner)


@settings(max_examples=100)
@given(RESPONSES)
def test_the_order_of_responses_changes_nothing(responses: list[tuple[int, ...]]) -> None:
    assert build_prefix_tree(responses).branches == build_prefix_tree(responses[::-1]).branches


def test_by_hand() -> None:
    kept = (1, 2, 3, 4, 5)
    short = build_prefix_tree([(1, 2, 3, 8), (1, 2, 3, 9)])
    assert short == PrefixTree((Branch(-1, (1, 2, 3, 8)), Branch(-1, (1, 2, 3, 9))), (0, 1))
    prefix_tree = build_prefix_tree([(*kept, 9, 9), (7,), (*kept, 8), kept])
    assert prefix_tree == PrefixTree((Branch(-1, kept), Branch(0, (8,)), Branch(0, (9, 9)), Branch(-1, (7,))), (2, 3, 1, 0))
    assert prefix_tree.tokens == 5 + 1 + 2 + 1
    deep = build_prefix_tree([(*kept, 6, 6, 6, 6, 1), (*kept, 6, 6, 6, 6, 2), (*kept, 3)])
    assert deep.branches == (Branch(-1, kept), Branch(0, (3,)), Branch(0, (6,) * 4), Branch(2, (1,)), Branch(2, (2,)))
