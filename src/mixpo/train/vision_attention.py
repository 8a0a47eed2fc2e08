"""Attention of vision towers in one grouped call per layer, for families that attend within images or windows of one row of patches.

Without FlashAttention, such towers split the row and call SDPA for each window, in every layer. Here windows of like length share a call,
or all windows one call of the varlen kernel. B sequences of a call, L patches of its longest, T patches of the row, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.utils.weak import WeakTensorKeyDictionary

from mixpo.train.attention_patch import IGNORED, implementations
from mixpo.train.tree_attention import PAD, SPARE, kernel_dtype
from mixpo.vlm.families import varlen_vision_configs

NAME = "mixpo_flash_vision"
"""The towers hand over the ends of their windows only to an attention with "flash" in its name."""

_IGNORED = {*IGNORED, "attention_plan"}
"""The plan is of the text layers."""
_REFUSED: WeakSet[nn.Module] = WeakSet()
_PLANS: Any = WeakTensorKeyDictionary()
"""Plan by the tensor of ends, which all layers share."""


@dataclass(frozen=True, eq=False)
class WindowCall:
    """One SDPA call. places: (B, L) positions in the row, -1 where padded. mask: (B, 1, L, L) bool, None without padding."""

    places: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Calls for all windows of a row. order: (T,) index of each patch in their concatenated outputs, None if there is one call in order."""

    calls: tuple[WindowCall, ...]
    order: Tensor | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """(T, H, D) each -> (T, H, D)."""
        outputs = []
        for call in self.calls:
            q, k, v = (self._gather(part, call.places) for part in (query, key, value))
            shared = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=call.mask, scale=scale, enable_gqa=shared)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return outputs[0] if self.order is None else torch.cat(outputs).index_select(0, self.order)

    def _gather(self, row: Tensor, places: Tensor) -> Tensor:
        """(T, H, D) -> (B, H, L, D)."""
        chosen = row if self.order is None else row.index_select(0, places.clamp(min=0).flatten())
        return chosen.reshape(*places.shape, *row.shape[1:]).transpose(1, 2)


def plan_windows(ends: Tensor) -> WindowPlan:
    """The plan of a row whose windows end at `ends`, (N + 1,) from 0: longest first, padded where that costs less than another call."""
    cpu = ends.cpu().long()
    lengths, starts = cpu.diff(), cpu[:-1]
    calls, low, high, count, used = list[WindowCall](), 0, 0, 0, 0
    unique, counts = (part.flip(0).tolist() for part in torch.unique(lengths[lengths > 0], return_counts=True))
    for length, number in zip(unique, counts, strict=True):
        own = number * length**2
        if count and (count + number) * high**2 > used + own + max(SPARE, (used + own) // 8):
            calls.append(_window_call(starts, lengths, low, high))
            count = used = 0
        low, high, count, used = length, high if count else length, count + number, used + own
    calls.append(_window_call(starts, lengths, low, high))
    slots = torch.cat([call.places.flatten() for call in calls])
    order = torch.empty(int(cpu[-1]), dtype=torch.long)
    order[slots[slots >= 0]] = (slots >= 0).nonzero()[:, 0]
    device = ends.device
    moved = (WindowCall(call.places.to(device), None if call.mask is None else call.mask.to(device)) for call in calls)
    in_order = len(calls) == 1 and calls[0].mask is None
    return WindowPlan(tuple(moved), None if in_order else order.to(device))


def _window_call(starts: Tensor, lengths: Tensor, low: int, high: int) -> WindowCall:
    """The call of all windows with `low` to `high` patches."""
    members = ((lengths >= low) & (lengths <= high)).nonzero()[:, 0]
    offsets = torch.arange(high)
    real = offsets < lengths[members, None]
    places = torch.where(real, starts[members, None] + offsets, PAD)
    return WindowCall(places, None if low == high else real[:, None, None, :].expand(-1, 1, high, -1))


def window_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of the towers: query, key, value (1, H, T, D) -> (1, T, H, D). cu_seq_lens: (N + 1,) ends of the windows.

    Raises NotImplementedError for any option that is not supported; none is ignored.
    """
    for name, option in options.items():
        if name not in _IGNORED and option not in (None, False, 0.0):
            raise NotImplementedError(f"vision attention with {name}")
    if attention_mask is not None or cu_seq_lens_q is None or cu_seq_lens_k is not cu_seq_lens_q or query.shape[0] != 1:
        raise NotImplementedError("vision attention that is not over windows of one row")
    row = [part[0].transpose(0, 1) for part in (query, key, value)]
    dtype = kernel_dtype(query, value)
    if max_length_q and _fits_kernel(query, key, dtype):
        kernel: Any = varlen.varlen_attn
        ends = cu_seq_lens_q.int()
        out: Tensor = kernel(*(part.to(dtype) for part in row), ends, ends, max_length_q, max_length_q, scale=scaling)
        return out[None], None
    if cu_seq_lens_q not in _PLANS:
        _PLANS[cu_seq_lens_q] = plan_windows(cu_seq_lens_q)
    return _PLANS[cu_seq_lens_q].attend(*row, scaling)[None], None


def _fits_kernel(query: Tensor, key: Tensor, dtype: torch.dtype) -> bool:
    """Whether the varlen kernel takes these; any window is then a part of one call."""
    return query.is_cuda and dtype != torch.float32 and query.shape[-1] % 8 == 0 and key.shape[1] == query.shape[1]


@contextmanager
def windows_grouped(model: Any) -> Iterator[None]:
    """Context in which the vision tower of `model` groups its windows; nothing changes for other families and refused models."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, window_attention)
    with implementations([] if model in _REFUSED else [(config, NAME) for config in varlen_vision_configs(model)]):
        yield


def groups_windows(model: Any) -> bool:
    """Whether `windows_grouped` changes anything."""
    return model not in _REFUSED and bool(varlen_vision_configs(model))


def refuse_grouping(model: nn.Module) -> None:
    """Let the tower of this model compute window by window from now on."""
    _REFUSED.add(model)
