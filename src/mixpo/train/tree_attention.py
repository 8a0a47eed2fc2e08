"""Tree attention over packed rows [prompt | branch 1 | branch 2 ...] of several groups.

A branch attends to its prompt, its ancestors and itself, as if every response were alone with its prompt; no mask of the whole row is
built. Two equivalent plans: `PaddedPlan` runs length-bucketed calls of SDPA and works everywhere; `VarlenPlan` runs one call of torch's
varlen kernel over all sequences. T tokens of the row, N sequences, B sequences of a call, Q queries and K keys of its longest, H heads,
D width.
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
"""Cost of one more call in query-key pairs: so much padding is accepted to save a call."""


class Span(NamedTuple):
    """A group in its row. start: position of its first token. prompt: tokens of the prompt. branches: follow it, in this order.

    block_ids: (prompt,) equal for tokens with bidirectional attention among each other, -1 for causal ones; None without any.
    """

    start: int
    prompt: int
    branches: tuple[Branch, ...]
    block_ids: Tensor | None = None

    def prompt_positions(self) -> Tensor:
        """(prompt,) row positions of the prompt."""
        return torch.arange(self.start, self.start + self.prompt)

    def paths(self) -> list[Tensor]:
        """For each branch the row positions of its full sequence, from the first prompt token to its own last token."""
        paths, first = list[Tensor](), self.start + self.prompt
        for branch in self.branches:
            before = paths[branch.parent] if branch.parent >= 0 else self.prompt_positions()
            paths.append(torch.cat([before, torch.arange(first, first + len(branch.tokens))]))
            first += len(branch.tokens)
        return paths


class AttentionOptions(NamedTuple):
    """Attention options of a layer. window: sliding window in tokens, the query included. softcap: of the scores; 0: none."""

    window: int | None = None
    scale: float | None = None
    softcap: float = 0.0


class QueryKeys(NamedTuple):
    """Row positions of the queries and keys of one sequence; the queries are the last keys."""

    queries: Tensor
    keys: Tensor


def sequences(spans: Sequence[Span]) -> Iterator[QueryKeys]:
    """The prompt of each group, then its branches, in row order."""
    for span in spans:
        yield QueryKeys(span.prompt_positions(), span.prompt_positions())
        for branch, path in zip(span.branches, span.paths(), strict=True):
            yield QueryKeys(path[-len(branch.tokens) :], path)


# --- length-bucketed SDPA --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One SDPA call. queries, keys: (B, Q) and (B, K) row positions, -1 where padded.

    causal: queries equal keys and attention is causal, so no mask is needed.
    """

    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class PaddedPlan:
    """Plan of one row. position: (T,) of each token in its own sequence. block_ids: (T,), see `Span`.

    order: (T,) index of each token in the concatenated outputs of all calls.
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
        outputs = []
        for number, call in enumerate(self.calls):
            free = call.causal and options.window is None and not options.softcap
            mask = None if free else self.mask(number, options.window, query.dtype)
            out = _kernel(_gather_heads(query, call.queries), _gather_heads(key, call.keys), _gather_heads(value, call.keys), mask, options)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        # (all results, H, D) -> (T, H, D)
        return torch.cat(outputs).index_select(0, self.order)

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, Q, K) additive mask of a call; cached."""
        key = (number, window, dtype)
        if key not in self.masks:
            visible = self._visible(self.calls[number], window)
            self.masks[key] = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))[:, None]
        return self.masks[key]

    def _visible(self, call: AttentionCall, window: int | None) -> Tensor:
        """(B, Q, K) bool. A padded query attends to the first token of its prompt: without any key its output would be NaN."""
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
    """The plan of a row of these groups."""
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


def _calls(members: Sequence[QueryKeys], causal: bool) -> Iterator[AttentionCall]:
    """Bucket sequences into calls, longest first. Padding is at the end, where a causal mask hides it."""
    current: list[QueryKeys] = []
    used = queries = keys = 0
    for member in sorted(members, key=lambda member: (-len(member.queries), -len(member.keys), int(member.queries[0]))):
        own = len(member.queries) * len(member.keys)
        wider, longer = max(queries, len(member.queries)), max(keys, len(member.keys))
        if current and (len(current) + 1) * wider * longer > used + own + max(SPARE, (used + own) // 8):
            yield _pad_call(current, causal)
            current, used, wider, longer = [], 0, len(member.queries), len(member.keys)
        current.append(member)
        used, queries, keys = used + own, wider, longer
    if current:
        yield _pad_call(current, causal)


def _pad_call(members: Sequence[QueryKeys], causal: bool) -> AttentionCall:
    queries, keys = (torch.nn.utils.rnn.pad_sequence(list(side), True, PAD) for side in zip(*members, strict=True))
    return AttentionCall(queries, keys, causal)


def _gather_heads(row: Tensor, places: Tensor) -> Tensor:
    """(T, H, D) -> (B, H, places, D)."""
    return row.index_select(0, places.clamp(min=0).flatten()).view(*places.shape, *row.shape[1:]).transpose(1, 2)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    if shared and (options.softcap or (mask is not None and query.is_cuda)):
        # SDPA kernels with a mask do not support grouped heads here.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        shared = False
    if options.softcap and mask is not None:
        return _capped(query, key, value, mask, options)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=options.scale, enable_gqa=shared)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Scores s become softcap tanh(s / softcap) before mask and softmax (in float32), which SDPA does not support."""
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / options.softcap)) * options.softcap + mask
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


# --- one call of the varlen kernel ---------------------------------------------------------------------


def kernel_dtype(query: Tensor, value: Tensor) -> torch.dtype:
    """The dtype for the kernel, which autocast does not cover, unlike SDPA; rotary embeddings return float32."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype


@dataclass(frozen=True, eq=False)
class VarlenPlan:
    """The plan of one row. keys: row positions of the keys of all sequences, concatenated; the queries are the row itself.

    query_ends, key_ends: (N + 1,) int32, cumulative lengths. longest: most queries and keys of a sequence.
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
        dtype = kernel_dtype(query, value)
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
    members = list(sequences(spans))
    lengths = torch.tensor([[len(member.queries), len(member.keys)] for member in members])
    ends = F.pad(lengths.cumsum(0), (0, 0, 1, 0)).int().to(device)
    return VarlenPlan(
        keys=torch.cat([member.keys for member in members]).to(device),
        query_ends=ends[:, 0].contiguous(),
        key_ends=ends[:, 1].contiguous(),
        longest=(int(lengths[:, 0].max()), int(lengths[:, 1].max())),
        tokens=int(lengths[:, 0].sum()),
    )


AttentionPlan = PaddedPlan | VarlenPlan
"""The attention plan of a row."""
