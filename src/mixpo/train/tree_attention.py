"""Attention over rows of groups: [prompt | branch 1 | branch 2 ...], several groups in a row, each branch blind to its siblings.

A branch looks at its prompt, at the branches that it grows from and at itself, as if every response were alone with its prompt. No
mask of the whole row exists. Two plans give the same numbers: `PaddedPlan` gathers what is of similar length into few calls of torch's
attention and works everywhere; `VarlenPlan` hands all sequences, packed end to end, to one call of a kernel that takes their lengths.
T tokens of the row, N sequences, B of them in a call, Q queries and K keys of its longest, H heads, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import varlen

from mixpo.train.prefix_tree import Branch
from mixpo.vlm.families import Visibility

PAD = -1
SPARE = 32_768
"""Query-key pairs that one more call costs as much time as: so much padding is accepted to save a call."""


class Span(NamedTuple):
    """A group in its row. start: its first token. prompt: tokens of the prompt. branches: behind it, in this order.

    same: (prompt,) a number for each token, equal for tokens that see each other both ways, -1 for all others; None without.
    """

    start: int
    prompt: int
    branches: tuple[Branch, ...]
    block_ids: Tensor | None = None

    def prompt_positions(self) -> Tensor:
        """Places of the prompt in the row."""
        return torch.arange(self.start, self.start + self.prompt)

    def paths(self) -> list[Tensor]:
        """For each branch the places of its whole sequence, from the first token of the prompt to its own last one."""
        found, first = list[Tensor](), self.start + self.prompt
        for branch in self.branches:
            before = found[branch.parent] if branch.parent >= 0 else self.prompt_positions()
            found.append(torch.cat([before, torch.arange(first, first + len(branch.tokens))]))
            first += len(branch.tokens)
        return found


class AttentionOptions(NamedTuple):
    """What a layer asks of its attention. window: tokens that it sees back, itself among them. cap: soft-cap of its scores; 0: none."""

    window: int | None = None
    scale: float | None = None
    softcap: float = 0.0


class QueryKeys(NamedTuple):
    """Queries and keys of one sequence, as places in the row; the queries are the last of the keys."""

    queries: Tensor
    keys: Tensor


def sequences(spans: Sequence[Span]) -> Iterator[QueryKeys]:
    """The prompt of each group, then its branches: in the order of the row."""
    for span in spans:
        yield QueryKeys(span.prompt_positions(), span.prompt_positions())
        for branch, path in zip(span.branches, span.paths(), strict=True):
            yield QueryKeys(path[-len(branch.tokens) :], path)


# --- few calls of torch's attention --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call. queries, keys: (B, Q) and (B, K) places in the row, -1 where padded.

    causal: queries are the keys, and each sees those before it, so that no mask is needed.
    """

    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class PaddedPlan:
    """The plan for one row. at: (T,) place in the token's own sequence. same: see `Span`.

    order: (T,) where each token's result stands among the results of all calls.
    """

    calls: tuple[AttentionCall, ...]
    order: Tensor
    position: Tensor
    block_ids: Tensor | None
    visibility: Visibility
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.order)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """(T, H, D) each -> (T, H, D)."""
        found = []
        for number, call in enumerate(self.calls):
            free = call.causal and options.window is None and not options.softcap
            mask = None if free else self.mask(number, options.window, query.dtype)
            out = _kernel(_gather_heads(query, call.queries), _gather_heads(key, call.keys), _gather_heads(value, call.keys), mask, options)
            found.append(out.transpose(1, 2).flatten(0, 1))
        # (all results, H, D) -> (T, H, D)
        return torch.cat(found).index_select(0, self.order)

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, Q, K) to be added to the scores of a call, made once."""
        key = (number, window, dtype)
        if key not in self.masks:
            visible = self._visible(self.calls[number], window)
            self.masks[key] = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))[:, None]
        return self.masks[key]

    def _visible(self, call: AttentionCall, window: int | None) -> Tensor:
        """(B, Q, K) bool. A padded query sees the first token of its prompt, because a row without any key would be NaN."""
        queries, keys = call.queries[:, :, None], call.keys[:, None, :]
        ahead = self.position[queries].where(queries >= 0, 0) - self.position[keys]
        visible = ahead >= 0
        if window is not None:
            visible = visible & (ahead < window)
        if self.block_ids is not None:
            both = (self.block_ids[queries] == self.block_ids[keys]) & (self.block_ids[keys] >= 0) & (queries >= 0)
            visible = visible | (both & (ahead < window) if window is not None and self.visibility.window_applies else both)
        return visible & (keys >= 0)


def plan_padded(spans: Sequence[Span], visibility: Visibility, device: torch.device) -> PaddedPlan:
    """The plan for a row in which these groups stand one after the other."""
    position, block_ids, prompts, branches = list[Tensor](), list[Tensor](), list[QueryKeys](), list[QueryKeys]()
    for member in sequences(spans):
        position.append(torch.arange(len(member.keys) - len(member.queries), len(member.keys)))
        (prompts if len(member.queries) == len(member.keys) else branches).append(member)
    for span in spans:
        prompt_positions = torch.full((span.prompt,), -1) if span.block_ids is None else span.block_ids
        block_ids += [prompt_positions, torch.full((sum(len(branch.tokens) for branch in span.branches),), -1)]
    bidirectional = any(span.block_ids is not None for span in spans)
    calls = [*_calls(prompts, causal=not bidirectional), *_calls(branches, causal=False)]
    slots = torch.cat([call.queries.flatten() for call in calls])
    order = torch.empty(sum(map(len, position)), dtype=torch.long)
    order[slots[slots >= 0]] = (slots >= 0).nonzero()[:, 0]
    return PaddedPlan(
        calls=tuple(AttentionCall(call.queries.to(device), call.keys.to(device), call.causal) for call in calls),
        order=order.to(device),
        position=torch.cat(position).to(device),
        block_ids=torch.cat(block_ids).to(device) if bidirectional else None,
        visibility=visibility,
    )


def _calls(found: Sequence[QueryKeys], causal: bool) -> Iterator[AttentionCall]:
    """Divide members into calls, the longest first. Padding is at the end, where a causal mask hides it."""
    current: list[QueryKeys] = []
    used = queries = keys = 0
    for member in sorted(found, key=lambda member: (-len(member.queries), -len(member.keys), int(member.queries[0]))):
        own = len(member.queries) * len(member.keys)
        wider, longer = max(queries, len(member.queries)), max(keys, len(member.keys))
        if current and (len(current) + 1) * wider * longer > used + own + max(SPARE, (used + own) // 8):
            yield _pad_call(current, causal)
            current, used, wider, longer = [], 0, len(member.queries), len(member.keys)
        current.append(member)
        used, queries, keys = used + own, wider, longer
    if current:
        yield _pad_call(current, causal)


def _pad_call(found: Sequence[QueryKeys], causal: bool) -> AttentionCall:
    queries, keys = (torch.nn.utils.rnn.pad_sequence(list(side), True, PAD) for side in zip(*found, strict=True))
    return AttentionCall(queries, keys, causal)


def _gather_heads(row: Tensor, places: Tensor) -> Tensor:
    """(T, H, D) -> (B, H, places, D)."""
    return row.index_select(0, places.clamp(min=0).flatten()).view(*places.shape, *row.shape[1:]).transpose(1, 2)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    if shared and (options.softcap or (mask is not None and query.is_cuda)):
        # The fast kernels for masks have no grouped heads there.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        shared = False
    if options.softcap and mask is not None:
        return _capped(query, key, value, mask, options)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=options.scale, enable_gqa=shared)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Scores s become cap tanh(s / cap) before the mask and the softmax, which is in float32: no kernel of torch does that."""
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / options.softcap)) * options.softcap + mask
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


# --- one call of a kernel for sequences of any length ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class VarlenPlan:
    """The plan for one row. keys: places of the keys of all sequences, end to end; queries are the row as it stands.

    query_ends, key_ends: (N + 1) int32, where each sequence's queries and keys begin and end. longest: queries, keys of a sequence.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    tokens: int

    def __len__(self) -> int:
        return self.tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """(T, H, D) each -> (T, H, D). Raises NotImplementedError for soft-capped scores."""
        if options.softcap:
            raise NotImplementedError("soft-capped scores in the varlen kernel")
        # Unlike torch's own attention the kernel is not on autocast's list, and rotations leave float32 behind.
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
        kernel: Any = varlen.varlen_attn
        # Windows count back from the last key, which is where a sequence's queries stand. Releases without the option take
        # grouped heads as they are.
        grouped = query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(kernel).parameters
        out: Tensor = kernel(
            query.to(dtype),
            key.index_select(0, self.keys).to(dtype),
            value.index_select(0, self.keys).to(dtype),
            self.query_ends,
            self.key_ends,
            *self.longest,
            scale=options.scale,
            window_size=(-1 if options.window is None else options.window - 1, 0),
            **({"enable_gqa": True} if grouped else {}),
        )
        return out


def plan_varlen(spans: Sequence[Span], device: torch.device) -> VarlenPlan:
    """The plan for a row in which these groups stand one after the other. Nothing in them may see both ways."""
    assert all(span.block_ids is None for span in spans)
    found = list(sequences(spans))
    lengths = torch.tensor([[len(member.queries), len(member.keys)] for member in found])
    ends = F.pad(lengths.cumsum(0), (0, 0, 1, 0)).int().to(device)
    return VarlenPlan(
        keys=torch.cat([member.keys for member in found]).to(device),
        query_ends=ends[:, 0].contiguous(),
        key_ends=ends[:, 1].contiguous(),
        longest=(int(lengths[:, 0].max()), int(lengths[:, 1].max())),
        tokens=int(lengths[:, 0].sum()),
    )


AttentionPlan = PaddedPlan | VarlenPlan
"""The plan of a row."""
