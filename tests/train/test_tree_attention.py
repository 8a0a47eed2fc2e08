"""Attention over a row of groups against the obvious way: every response alone with its prompt and a mask of the whole sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from train.kernels import slow_varlen

from mixpo.train import tree_attention as module
from mixpo.train.attention_patch import tree_attention
from mixpo.train.prefix_tree import Branch
from mixpo.train.tree_attention import Span, plan_padded, plan_varlen
from mixpo.vlm.families import Visibility

HEADS, SHARED, WIDTH = 4, 2, 8
CPU = torch.device("cpu")
Shapes = list[tuple[int, list[tuple[int, int]]]]
"""Tokens of each prompt, and for each of its branches a number that draws its parent, and its tokens."""
GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4)), min_size=1, max_size=5
)


def flat(prompt: int, *tails: int) -> tuple[int, list[tuple[int, int]]]:
    """Every branch grows from the prompt."""
    return prompt, [(0, tail) for tail in tails]


def spans_of(shapes: Shapes, visibility: Visibility = Visibility()) -> list[Span]:  # noqa: B008
    first, found = 0, []
    for prompt, tails in shapes:
        kinds = {"none": None, "prompt": torch.zeros(prompt, dtype=torch.long)}
        # Two images of two tokens each at the beginning.
        kinds["image"] = torch.tensor([0, 0, 1, 1])[:prompt] if prompt <= 4 else torch.tensor([0, 0, 1, 1] + [-1] * (prompt - 4))
        branches = tuple(Branch(draw % (number + 1) - 1, (0,) * tail) for number, (draw, tail) in enumerate(tails))
        found.append(Span(first, prompt, branches, kinds[visibility.bidirectional]))
        first += prompt + sum(tail for _, tail in tails)
    return found


def states(total: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(total)
    shapes = [(1, heads, total, WIDTH) for heads in (HEADS, SHARED, SHARED)]
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, value


def alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: list[Span],
    visibility: Visibility,
    window: int | None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """(1, T, H, D), one sequence at a time."""
    out = torch.zeros_like(query)
    for span in spans:
        sequences, first = {-1: list(range(span.start, span.start + span.prompt))}, span.start + span.prompt
        for number, (parent, tail) in enumerate([(-1, 0), *((branch.parent, len(branch.tokens)) for branch in span.branches)], -1):
            places = sequences[number] = sequences[parent] + list(range(first, first + tail))
            count = len(places)
            ahead = torch.arange(count)[:, None] - torch.arange(count)[None]
            near = ahead < (window or count)
            block_ids = torch.full((count,), -1) if span.block_ids is None else F.pad(span.block_ids, (0, count - span.prompt), value=-1)
            both = (block_ids[:, None] == block_ids[None]) & (block_ids >= 0)[None]
            mask = (ahead >= 0) & near | (both & near if visibility.window_applies else both)
            parts = [part[:, :, places] for part in (query, key, value)]
            result = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask, scale=0.4, enable_gqa=True)
            if softcap:
                scores = parts[0] @ parts[1].repeat_interleave(HEADS // SHARED, 1).mT * 0.4
                weights = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf")).softmax(-1)
                result = weights @ parts[2].repeat_interleave(HEADS // SHARED, 1)
            own = places[-tail:]
            out[:, :, own] = result[:, :, len(places) - len(own) :]
            first += tail
    return out.transpose(1, 2)


def layer(window: int | None = None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(sliding_window=window), layer_idx=0, is_causal=True)


@settings(max_examples=40, deadline=None)
@given(
    GROUPS,
    st.sampled_from(
        [
            Visibility(),
            Visibility("image"),
            Visibility("image", window_applies=False),
            Visibility("prompt", window_applies=False),
        ]
    ),
    st.sampled_from([None, 1, 3, 100]),
    st.sampled_from([0, 60, 10**6]),
    st.sampled_from([None, 0.7]),
)
def test_equal_to_one_sequence_at_a_time(
    shapes: Shapes, visibility: Visibility, window: int | None, spare: int, softcap: float | None
) -> None:
    """Values and gradients, with everything in calls of its own or padded together."""
    spans = spans_of(shapes, visibility)
    total = sum(prompt + sum(tail for _, tail in tails) for prompt, tails in shapes)
    query, key, value = states(total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARE", spare)
        plan = plan_padded(spans, visibility, CPU)
    options = {"scaling": 0.4, "sliding_window": window, "dropout": 0.0, "softcap": softcap}
    found, _ = tree_attention(layer(window), query, key, value, None, attention_plan=plan, **options)
    expected = alone(query, key, value, spans, visibility, window, softcap or 0.0)
    assert_same(found, expected, query, key, value)


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.sampled_from([None, 1, 3, 100]))
def test_one_call_of_the_varlen_kernel_is_the_same(shapes: Shapes, window: int | None) -> None:
    """Its arithmetic (keys, where sequences end, windows) through a slow kernel with the rules of the GPU's."""
    spans = spans_of(shapes)
    query, key, value = states(sum(prompt + sum(tail for _, tail in tails) for prompt, tails in shapes))
    plan = plan_varlen(spans, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
        found, _ = tree_attention(layer(window), query, key, value, None, attention_plan=plan, scaling=0.4, sliding_window=window)
    assert_same(found, alone(query, key, value, spans, Visibility(), window), query, key, value)


def test_the_varlen_kernel_gets_one_type() -> None:
    """Under autocast a rotation leaves queries and keys in float32; the kernel takes 16 bits only."""
    plan, (query, key, value) = plan_varlen(spans_of([flat(3, 2, 2)]), CPU), states(7)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
        found, _ = tree_attention(layer(), query.float(), key.float(), value.bfloat16(), None, attention_plan=plan)
    assert found.dtype == torch.bfloat16


def assert_same(found: torch.Tensor, expected: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Values and gradients."""
    assert torch.allclose(found, expected, atol=1e-12)
    factors = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).reshape(found.shape)
    for one, other in zip(
        torch.autograd.grad((found * factors).sum(), inputs),
        torch.autograd.grad((expected * factors).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


def test_the_real_kernel_takes_these_arguments() -> None:
    """Without a GPU it fails inside, not at its door."""
    plan, (query, key, value) = plan_varlen(spans_of([flat(3, 2, 2)]), CPU), (part.bfloat16() for part in states(7))
    with pytest.raises((NotImplementedError, RuntimeError), match="_flash_attention_forward"):
        tree_attention(layer(3), query, key, value, None, attention_plan=plan, sliding_window=3, scaling=0.4)


def test_few_calls_for_alike_groups_and_no_mask_of_the_row() -> None:
    plan = plan_padded(spans_of([flat(46 + number % 3, 20, 18, 25, 19) for number in range(30)]), Visibility(), CPU)
    assert len(plan.calls) <= 3
    masks = [plan.mask(number, None, torch.float32) for number in range(1, len(plan.calls))]
    assert [call.causal for call in plan.calls] == [True] + [False] * len(masks)
    assert sum(map(len, masks)) == 120
    assert all(mask.shape[2] <= 25 and mask.shape[3] <= 48 + 25 for mask in masks)
    assert plan.mask(1, None, torch.float32) is masks[0]


def test_padding_is_bounded() -> None:
    """Very different lengths do not share a call."""
    shapes = [flat(length, length // 2, 7) for length in (30, 900, 60, 850, 1000, 40)]
    plan = plan_padded(spans_of(shapes), Visibility(), CPU)
    padded = sum(call.queries.numel() * call.keys.shape[1] for call in plan.calls)
    real = sum(p * p + sum(t * (p + t) for _, t in tails) for p, tails in shapes)
    assert padded <= 1.125 * real + len(plan.calls) * module.SPARE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax_bias": 50.0}, "softmax_bias"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "direction"),
        ({"sliding_window": 7}, "window of 7"),
        ({"attention_plan": None}, "not over one row"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    query, key, value = states(7)
    given = {"attention_plan": plan_padded(spans_of([flat(3, 2, 2)]), Visibility(), CPU), **options}
    with pytest.raises(NotImplementedError, match=message):
        tree_attention(layer(), query, key, value, None, **given)
    with pytest.raises(NotImplementedError, match="a mask of the model's own"):
        tree_attention(
            layer(), query, key, value, torch.ones(1, 1, 7, 7), attention_plan=plan_padded(spans_of([flat(3, 2, 2)]), Visibility(), CPU)
        )
    with pytest.raises(NotImplementedError, match="soft-capped"):
        tree_attention(layer(), query, key, value, None, attention_plan=plan_varlen(spans_of([flat(3, 2, 2)]), CPU), softcap=50.0)
    with pytest.raises(NotImplementedError, match="not over one row"):
        tree_attention(layer(), *states(8), None, attention_plan=plan_padded(spans_of([flat(3, 2, 2)]), Visibility(), CPU))
