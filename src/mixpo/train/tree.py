"""Attention over rows of groups: [prompt | response 1 | ... | response R], several groups in a row, each branch blind to the others.

A response looks at its prompt and itself, a prompt at itself, as if every response were alone with its prompt. No mask of the whole
row exists: prompts attend in one set of calls, responses (each with its prompt's keys in front) in another, and what is of similar
length shares a call. T tokens of the row, B members of a call, Q queries and K keys of its longest, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixpo.vlm.families import Sight, window_of

NAME = "mixpo_tree"
PAD, PROMPT = -1, -1
SPARE = 32_768
"""Query-key pairs that one more call costs as much time as: so much padding is accepted to save a call."""


class Span(NamedTuple):
    """A group in its row. start: its first token. prompt, tails: tokens of the prompt and of each response.

    same: (prompt,) a number for each token, equal for tokens that see each other both ways, -1 for all others; None without.
    """

    start: int
    prompt: int
    tails: tuple[int, ...]
    same: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the kernel. queries, keys: (B, Q) and (B, K) places in the row, -1 where padded.

    causal: queries are the keys, and each sees those before it, so that no mask is needed.
    """

    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class Tree:
    """The plan for one row. at: (T,) place in the token's own sequence. branch: (T,) its response, or PROMPT. same: see `Span`.

    order: (T,) where each token's result stands among the results of all calls.
    """

    calls: tuple[Call, ...]
    order: Tensor
    at: Tensor
    branch: Tensor
    same: Tensor | None
    sight: Sight
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, Q, K) to be added to the scores of a call, made once; None for a causal call without a window."""
        call = self.calls[number]
        if call.causal and window is None:
            return None
        key = (number, window, dtype)
        if key not in self.masks:
            seen = self._seen(call, window)
            self.masks[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
        return self.masks[key]

    def _seen(self, call: Call, window: int | None) -> Tensor:
        """(B, Q, K) bool. A padded query sees the first token of its prompt, because a row without any key would be NaN."""
        queries, keys = call.queries[:, :, None], call.keys[:, None, :]
        ahead = self.at[queries].where(queries >= 0, 0) - self.at[keys]
        branch_q, branch_k = self.branch[queries].where(queries >= 0, -2), self.branch[keys]
        seen = ahead >= 0
        if window is not None:
            seen = seen & (ahead < window)
        if self.same is not None:
            both = (self.same[queries] == self.same[keys]) & (self.same[keys] >= 0) & (queries >= 0)
            seen = seen | (both & (ahead < window) if window is not None and self.sight.window_last else both)
        return seen & ((branch_k == PROMPT) | (branch_k == branch_q)) & (keys >= 0)


# --- planning ----------------------------------------------------------------------------------------------------------


def plant(spans: Sequence[Span], sight: Sight, device: torch.device) -> Tree:
    """The plan for a row in which these groups stand one after the other."""
    at, branch, same = [], [], []
    for span in spans:
        at += [torch.arange(span.prompt), *(torch.arange(span.prompt, span.prompt + tail) for tail in span.tails)]
        kinds = torch.arange(-1, len(span.tails))
        branch.append(kinds.repeat_interleave(torch.tensor([span.prompt, *span.tails])))
        inside = torch.full((span.prompt,), -1) if span.same is None else span.same
        same += [inside, torch.full((sum(span.tails),), -1)]
    both_ways = any(span.same is not None for span in spans)
    calls = [*_calls(_prompts(spans), causal=not both_ways), *_calls(_responses(spans), causal=False)]
    slots = torch.cat([call.queries.flatten() for call in calls])
    order = torch.empty(sum(len(part) for part in at), dtype=torch.long)
    order[slots[slots >= 0]] = (slots >= 0).nonzero()[:, 0]
    return Tree(
        calls=tuple(Call(call.queries.to(device), call.keys.to(device), call.causal) for call in calls),
        order=order.to(device),
        at=torch.cat(at).to(device),
        branch=torch.cat(branch).to(device),
        same=torch.cat(same).to(device) if both_ways else None,
        sight=sight,
    )


class _Member(NamedTuple):
    """Queries and keys of one branch, as places in the row."""

    queries: Tensor
    keys: Tensor


def _prompts(spans: Sequence[Span]) -> Iterator[_Member]:
    for span in spans:
        inside = torch.arange(span.start, span.start + span.prompt)
        yield _Member(inside, inside)


def _responses(spans: Sequence[Span]) -> Iterator[_Member]:
    for span in spans:
        prompt, first = torch.arange(span.start, span.start + span.prompt), span.start + span.prompt
        for tail in span.tails:
            own = torch.arange(first, first + tail)
            yield _Member(own, torch.cat([prompt, own]))
            first += tail


def _calls(members: Iterator[_Member], causal: bool) -> Iterator[Call]:
    """Divide members into calls, the longest first. Padding is at the end, where a causal mask hides it."""
    current: list[_Member] = []
    used = queries = keys = 0
    for member in sorted(members, key=lambda member: (-len(member.queries), -len(member.keys), int(member.queries[0]))):
        own = len(member.queries) * len(member.keys)
        wider, longer = max(queries, len(member.queries)), max(keys, len(member.keys))
        if current and (len(current) + 1) * wider * longer > used + own + max(SPARE, (used + own) // 8):
            yield _call(current, causal)
            current, used, wider, longer = [], 0, len(member.queries), len(member.keys)
        current.append(member)
        used, queries, keys = used + own, wider, longer
    if current:
        yield _call(current, causal)


def _call(members: Sequence[_Member], causal: bool) -> Call:
    queries, keys = (torch.nn.utils.rnn.pad_sequence(list(side), True, PAD) for side in zip(*members, strict=True))
    return Call(queries, keys, causal)


# --- the attention function --------------------------------------------------------------------------------------------


def tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, tree: Tree | None = None, **options: Any
) -> tuple[Tensor, None]:
    """What layers call instead of their own attention: (1, H, T, D) each -> (1, T, H, D).

    Raises NotImplementedError for what a layer asks that is not done here; nothing is ever ignored.
    """
    window = _window(module, options)
    if tree is None or query.shape[0] != 1 or query.shape[2] != len(tree.order) or key.shape[2] != len(tree.order):
        raise NotImplementedError("a forward pass that is not over one row of groups")
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    found = []
    for number, call in enumerate(tree.calls):
        mask = tree.mask(number, window, query.dtype)
        out = _kernel(_take(rows[0], call.queries), _take(rows[1], call.keys), _take(rows[2], call.keys), mask, options.get("scaling"))
        found.append(out.transpose(1, 2).flatten(0, 1))
    # (all results, H, D) -> (T, H, D)
    return torch.cat(found).index_select(0, tree.order)[None], None


def _take(row: Tensor, places: Tensor) -> Tensor:
    """(T, H, D) -> (B, H, places, D)."""
    return row.index_select(0, places.clamp(min=0).flatten()).view(*places.shape, *row.shape[1:]).transpose(1, 2)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    shared = query.shape[1] != key.shape[1]
    if shared and mask is not None and query.is_cuda:
        # The fast kernels for masks have no grouped heads there.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
        shared = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared)


_IGNORED = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict", "is_causal"}
_KNOWN = {"scaling", "dropout", "sliding_window"} | _IGNORED


def _window(module: Any, options: dict[str, Any]) -> int | None:
    """The layer's window. Raises NotImplementedError for an option with a meaning that is not known here."""
    for name, value in options.items():
        if name not in _KNOWN and value is not None:
            raise NotImplementedError(f"attention with {name}")
    if options.get("dropout") or options.get("is_causal") is False:
        raise NotImplementedError("attention with dropout, or without direction")
    expected = window_of(module.config, module.layer_idx)
    if options.get("sliding_window") != expected:
        raise NotImplementedError(f"a window of {options.get('sliding_window')} in a layer that the configuration gives {expected}")
    return expected


# --- switching ---------------------------------------------------------------------------------------------------------


@contextmanager
def _implementation(text: Any, name: str) -> Iterator[None]:
    had = text._attn_implementation
    text._attn_implementation = name
    try:
        yield
    finally:
        text._attn_implementation = had


def growing(model: Any) -> AbstractContextManager[None]:
    """Within it, the layers of the text model attend as in `tree_attention`; vision and everything outside stay as they are."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    return _implementation(model.config.get_text_config(), NAME)


def recomputing(model: Any) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For activation checkpointing, whose second forward comes when `growing` is over: attend then as the first time."""
    text = model.config.get_text_config()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _implementation(text, text._attn_implementation)

    return contexts
