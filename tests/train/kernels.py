"""A slow, obvious stand-in for the GPU's kernel for sequences of any length, with its arguments and its rules."""

from __future__ import annotations

import torch
from torch import Tensor


def slow_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """(T, H, D): sequence by sequence and score by score; the last query stands at the last key, as in FlashAttention from 2.1 on."""
    assert query.dtype == key.dtype == value.dtype
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous()
    assert cu_seq_k.is_contiguous()
    assert (int(cu_seq_q[0]), int(cu_seq_q[-1]), int(cu_seq_k[0]), int(cu_seq_k[-1])) == (0, len(query), 0, len(key))
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    left, right = window_size
    out = []
    for number in range(len(cu_seq_q) - 1):
        queries, keys = (slice(int(ends[number]), int(ends[number + 1])) for ends in (cu_seq_q, cu_seq_k))
        q, k, v = query[queries].transpose(0, 1), key[keys].transpose(0, 1), value[keys].transpose(0, 1)
        at = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        places = torch.arange(k.shape[1])[None]
        seen = (places >= at - left if left >= 0 else torch.ones(1, 1, dtype=torch.bool)) & (places <= at + right if right >= 0 else True)
        scores = q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        out.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)
