"""Attention over rows of groups: [prompt | branch 1 | branch 2 ...], several groups in a row, each branch blind to its siblings.

A branch looks at its prompt, at the branches that it grows from and at itself, as if every response were alone with its prompt. No
mask of the whole row exists. Two plans give the same numbers: `Padded` gathers what is of similar length into few calls of torch's
attention and works everywhere; `Ragged` hands all sequences, packed end to end, to one call of a kernel that takes their lengths.
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
from mixpo.vlm.families import Sight

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
    same: Tensor | None = None

    def inside(self) -> Tensor:
        """Places of the prompt in the row."""
        return torch.arange(self.start, self.start + self.prompt)

    def chains(self) -> list[Tensor]:
        """For each branch the places of its whole sequence, from the first token of the prompt to its own last one."""
        found, first = list[Tensor](), self.start + self.prompt
        for branch in self.branches:
            before = found[branch.parent] if branch.parent >= 0 else self.inside()
            found.append(torch.cat([before, torch.arange(first, first + len(branch.tokens))]))
            first += len(branch.tokens)
        return found


class Asked(NamedTuple):
    """What a layer asks of its attention. window: tokens that it sees back, itself among them. cap: soft-cap of its scores; 0: none."""

    window: int | None = None
    scale: float | None = None
    cap: float = 0.0


class Member(NamedTuple):
    """Queries and keys of one sequence, as places in the row; the queries are the last of the keys."""

    queries: Tensor
    keys: Tensor


def members(spans: Sequence[Span]) -> Iterator[Member]:
    """The prompt of each group, then its branches: in the order of the row."""
    for span in spans:
        yield Member(span.inside(), span.inside())
        for branch, chain in zip(span.branches, span.chains(), strict=True):
            yield Member(chain[-len(branch.tokens) :], chain)


# --- few calls of torch's attention --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Call:
    """One call. queries, keys: (B, Q) and (B, K) places in the row, -1 where padded.

    causal: queries are the keys, and each sees those before it, so that no mask is needed.
    """

    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class Padded:
    """The plan for one row. at: (T,) place in the token's own sequence. same: see `Span`.

    order: (T,) where each token's result stands among the results of all calls.
    """

    calls: tuple[Call, ...]
    order: Tensor
    at: Tensor
    same: Tensor | None
    sight: Sight
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.order)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
        """(T, H, D) each -> (T, H, D)."""
        found = []
        for number, call in enumerate(self.calls):
            free = call.causal and asked.window is None and not asked.cap
            mask = None if free else self.mask(number, asked.window, query.dtype)
            out = _kernel(_take(query, call.queries), _take(key, call.keys), _take(value, call.keys), mask, asked)
            found.append(out.transpose(1, 2).flatten(0, 1))
        # (all results, H, D) -> (T, H, D)
        return torch.cat(found).index_select(0, self.order)

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, Q, K) to be added to the scores of a call, made once."""
        key = (number, window, dtype)
        if key not in self.masks:
            seen = self._seen(self.calls[number], window)
            self.masks[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
        return self.masks[key]

    def _seen(self, call: Call, window: int | None) -> Tensor:
        """(B, Q, K) bool. A padded query sees the first token of its prompt, because a row without any key would be NaN."""
        queries, keys = call.queries[:, :, None], call.keys[:, None, :]
        ahead = self.at[queries].where(queries >= 0, 0) - self.at[keys]
        seen = ahead >= 0
        if window is not None:
            seen = seen & (ahead < window)
        if self.same is not None:
            both = (self.same[queries] == self.same[keys]) & (self.same[keys] >= 0) & (queries >= 0)
            seen = seen | (both & (ahead < window) if window is not None and self.sight.window_last else both)
        return seen & (keys >= 0)


def plant(spans: Sequence[Span], sight: Sight, device: torch.device) -> Padded:
    """The plan for a row in which these groups stand one after the other."""
    at, same, prompts, branches = list[Tensor](), list[Tensor](), list[Member](), list[Member]()
    for member in members(spans):
        at.append(torch.arange(len(member.keys) - len(member.queries), len(member.keys)))
        (prompts if len(member.queries) == len(member.keys) else branches).append(member)
    for span in spans:
        inside = torch.full((span.prompt,), -1) if span.same is None else span.same
        same += [inside, torch.full((sum(len(branch.tokens) for branch in span.branches),), -1)]
    both_ways = any(span.same is not None for span in spans)
    calls = [*_calls(prompts, causal=not both_ways), *_calls(branches, causal=False)]
    slots = torch.cat([call.queries.flatten() for call in calls])
    order = torch.empty(sum(map(len, at)), dtype=torch.long)
    order[slots[slots >= 0]] = (slots >= 0).nonzero()[:, 0]
    return Padded(
        calls=tuple(Call(call.queries.to(device), call.keys.to(device), call.causal) for call in calls),
        order=order.to(device),
        at=torch.cat(at).to(device),
        same=torch.cat(same).to(device) if both_ways else None,
        sight=sight,
    )


def _calls(found: Sequence[Member], causal: bool) -> Iterator[Call]:
    """Divide members into calls, the longest first. Padding is at the end, where a causal mask hides it."""
    current: list[Member] = []
    used = queries = keys = 0
    for member in sorted(found, key=lambda member: (-len(member.queries), -len(member.keys), int(member.queries[0]))):
        own = len(member.queries) * len(member.keys)
        wider, longer = max(queries, len(member.queries)), max(keys, len(member.keys))
        if current and (len(current) + 1) * wider * longer > used + own + max(SPARE, (used + own) // 8):
            yield _call(current, causal)
            current, used, wider, longer = [], 0, len(member.queries), len(member.keys)
        current.append(member)
        used, queries, keys = used + own, wider, longer
    if current:
        yield _call(current, causal)


def _call(found: Sequence[Member], causal: bool) -> Call:
    queries, keys = (torch.nn.utils.rnn.pad_sequence(list(side), True, PAD) for side in zip(*found, strict=True))
    return Call(queries, keys, causal)


def _take(row: Tensor, places: Tensor) -> Tensor:
    """(T, H, D) -> (B, H, places, D)."""
    return row.index_select(0, places.clamp(min=0).flatten()).view(*places.shape, *row.shape[1:]).transpose(1, 2)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, asked: Asked) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    if shared and (asked.cap or (mask is not None and query.is_cuda)):
        # The fast kernels for masks have no grouped heads there.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        shared = False
    if asked.cap and mask is not None:
        return _capped(query, key, value, mask, asked)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=asked.scale, enable_gqa=shared)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, asked: Asked) -> Tensor:
    """Scores s become cap tanh(s / cap) before the mask and the softmax, which is in float32: no kernel of torch does that."""
    scale = query.shape[-1] ** -0.5 if asked.scale is None else asked.scale
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / asked.cap)) * asked.cap + mask
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


# --- one call of a kernel for sequences of any length ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ragged:
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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, asked: Asked) -> Tensor:
        """(T, H, D) each -> (T, H, D). Raises NotImplementedError for soft-capped scores."""
        if asked.cap:
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
            scale=asked.scale,
            window_size=(-1 if asked.window is None else asked.window - 1, 0),
            **({"enable_gqa": True} if grouped else {}),
        )
        return out


def plant_ragged(spans: Sequence[Span], device: torch.device) -> Ragged:
    """The plan for a row in which these groups stand one after the other. Nothing in them may see both ways."""
    assert all(span.same is None for span in spans)
    found = list(members(spans))
    lengths = torch.tensor([[len(member.queries), len(member.keys)] for member in found])
    ends = F.pad(lengths.cumsum(0), (0, 0, 1, 0)).int().to(device)
    return Ragged(
        keys=torch.cat([member.keys for member in found]).to(device),
        query_ends=ends[:, 0].contiguous(),
        key_ends=ends[:, 1].contiguous(),
        longest=(int(lengths[:, 0].max()), int(lengths[:, 1].max())),
        tokens=int(lengths[:, 0].sum()),
    )


Tree = Padded | Ragged
"""The plan of a row."""
