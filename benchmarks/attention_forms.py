"""Two other ways to attend over a row of groups, to compare with the plans of `mixpo.train.tree_attention`. mixpo does not use them.

Branches stand in the row in depth-first order, so that a token is seen exactly by what stands between it and the end of everything that
grows from its branch. For models that only look back, without windows and soft caps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixpo.train.tree_attention import AttentionOptions, Span


def seen_until(spans: Sequence[Span]) -> Tensor:
    """(T,) for each token the place in the row from which on it is seen no more."""
    found = torch.zeros(sum(span.prompt + sum(len(branch.tokens) for branch in span.branches) for span in spans), dtype=torch.long)
    for span in spans:
        paths = span.paths()
        for places in (span.prompt_positions(), *paths):
            # Later branches come last, and so do their ends: each one pushes on the end of all that it grows from.
            found[places] = places[-1] + 1
    return found


def _refuse(options: AttentionOptions) -> None:
    if options.window is not None or options.softcap:
        raise NotImplementedError("windows and soft caps are not compared here")


@dataclass(frozen=True, eq=False)
class Dense:
    """One call with a mask of the whole row, (T, T) bool."""

    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """(T, H, D) each -> (T, H, D)."""
        _refuse(options)
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=options.scale, enable_gqa=query.shape[1] != key.shape[1])
        return out[0].transpose(0, 1)


def plan_dense(spans: Sequence[Span], device: torch.device) -> Dense:
    """The plan for a row."""
    places, until = torch.arange(len(seen_until(spans))), seen_until(spans)
    mask = (places[None] <= places[:, None]) & (places[:, None] < until[None])
    return Dense(mask.to(device))


@dataclass(frozen=True, eq=False)
class Flex:
    """FlexAttention with a block mask; compiled on a GPU. It has no backward pass on the CPU."""

    mask: Any
    tokens: int
    call: Callable[..., Any]

    def __len__(self) -> int:
        return self.tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """(T, H, D) each -> (T, H, D)."""
        _refuse(options)
        # Like the varlen kernel it wants one type, also where autocast left two.
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
        parts = [part.to(dtype).transpose(0, 1)[None] for part in (query, key, value)]
        out: Tensor = self.call(*parts, block_mask=self.mask, scale=options.scale, enable_gqa=query.shape[1] != key.shape[1])
        return out[0].transpose(0, 1)


def plan_flex(spans: Sequence[Span], device: torch.device) -> Flex:
    """The plan for a row."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    until = seen_until(spans).to(device)
    tokens = len(until)

    def seen(_: Tensor, __: Tensor, at: Tensor, other: Tensor) -> Tensor:
        return (other <= at) & (at < until[other])

    mask = create_block_mask(seen, None, None, tokens, tokens, device=str(device))
    call: Any = _compiled() if device.type == "cuda" else flex_attention
    return Flex(mask, tokens, call)


_COMPILED: list[Callable[..., Any]] = []


def _compiled() -> Callable[..., Any]:
    """Compiled once, for rows of any length."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _COMPILED:
        _COMPILED.append(torch.compile(flex_attention, dynamic=True))
    return _COMPILED[0]
