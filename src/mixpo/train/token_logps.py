"""Log-probs of tokens from hidden states, tiled so that the logits of a large vocabulary never exist at once.

A predicted tokens, D width, V vocabulary, C tokens (or vocabulary entries) of a tile.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixpo.train.compute_weights import same_weights
from mixpo.vlm.families import LogitScaling

FULL_LOGITS_BYTES = 256 * 2**20
"""Up to this many bytes of float32 logits are computed without tiles, which saves recomputing them in the backward pass."""
TILE_BYTES = 64 * 2**20
"""Bytes of the float32 logits of one tile."""
CPU_TILE_BYTES = 8 * 2**20
"""The same on a CPU: a tile should fit into its cache."""


def token_logps(
    head: Any, scaling: LogitScaling, hidden_ad: Tensor, target_a: Tensor, whole: int = FULL_LOGITS_BYTES, tile: int | None = None
) -> Tensor:
    """(A,) log-probs in float32, whatever the dtype of `hidden_ad` (A, D). target_a: (A,) token ids.

    head: the output layer; one that is not a plain nn.Linear (such as an adapted one) is called in tiles of tokens.
    """
    vocabulary = int(head.weight.shape[0])
    if len(target_a) * vocabulary * 4 <= whole:
        return _score(head(hidden_ad), scaling, target_a)
    if type(head) is nn.Linear:
        kind = hidden_ad.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ad.dtype
        tile_width = max(1, (tile or (CPU_TILE_BYTES if kind == "cpu" else TILE_BYTES)) // (4 * len(target_a)))
        logps_a: Tensor = _TiledLogps.apply(hidden_ad, head.weight, head.bias, target_a, scaling, tile_width, dtype)
        return logps_a
    rows = max(1, (tile or TILE_BYTES) // (4 * vocabulary))
    parts = zip(torch.split(hidden_ad, rows), torch.split(target_a, rows), strict=True)
    return torch.cat([_recomputed(head, scaling, h_cd, t_c) for h_cd, t_c in parts])


def _recomputed(head: Any, scaling: LogitScaling, hidden_cd: Tensor, target_c: Tensor) -> Tensor:
    logps_c: Tensor = checkpoint(
        lambda h, t: _score(head(h), scaling, t), hidden_cd, target_c,
        use_reentrant=False, context_fn=lambda: (nullcontext(), same_weights(head)),
    )  # fmt: skip
    return logps_c


def _score(logits_cv: Tensor, scaling: LogitScaling, target_c: Tensor) -> Tensor:
    return -F.cross_entropy(_scale_logits(logits_cv.float(), scaling), target_c, reduction="none")


def _scale_logits(logits_cv: Tensor, scaling: LogitScaling) -> Tensor:
    """Scale and soft-cap the logits as the model does."""
    if scaling.scale != 1:
        logits_cv = logits_cv * scaling.scale
    return torch.tanh(logits_cv / scaling.softcap) * scaling.softcap if scaling.softcap else logits_cv


class _TiledLogps(torch.autograd.Function):
    """Saves one number per token for the backward pass, which recomputes the logits of every tile.

    A tile spans all tokens and a slice of the vocabulary, so the weight and its gradient, the largest tensors, are read once. Sums over
    tiles are in float32, under bfloat16 too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ad: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        target_a: Tensor,
        scaling: LogitScaling,
        tile_width: int,
        dtype: torch.dtype,
    ) -> Tensor:
        lse_a = torch.full(target_a.shape, float("-inf"), device=hidden_ad.device)
        logit_a = torch.zeros_like(lse_a)
        with torch.autocast(hidden_ad.device.type, enabled=False):
            h_ad = hidden_ad.to(dtype)
            for first in range(0, len(weight_vd), tile_width):
                logits_ac = _tile(h_ad, weight_vd, bias_v, scaling, slice(first, first + tile_width))
                here_a, place_a = _in_tile(target_a, first, logits_ac.shape[1])
                logit_a = torch.where(here_a, logits_ac.gather(1, place_a[:, None])[:, 0], logit_a)
                lse_a = torch.logaddexp(lse_a, logits_ac.logsumexp(-1))
        ctx.save_for_backward(hidden_ad, weight_vd, bias_v, target_a, lse_a)
        ctx.scaling, ctx.tile_width, ctx.dtype = scaling, tile_width, dtype
        return logit_a - lse_a

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ad, weight_vd, bias_v, target_a, lse_a = ctx.saved_tensors
        scaling, dtype = ctx.scaling, ctx.dtype
        h_ad = hidden_ad.to(dtype)
        grad_h = torch.zeros(hidden_ad.shape, device=hidden_ad.device) if ctx.needs_input_grad[0] else None
        grad_w = torch.empty_like(weight_vd) if ctx.needs_input_grad[1] else None
        grad_b = torch.empty_like(bias_v) if bias_v is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(hidden_ad.device.type, enabled=False):
            for first in range(0, len(weight_vd), ctx.tile_width):
                tile = slice(first, first + ctx.tile_width)
                logits_ac = _tile(h_ad, weight_vd, bias_v, scaling, tile)
                # d logp / d logits = onehot(target) - softmax
                grad_ac = (logits_ac - lse_a[:, None]).exp_().mul_(-grad_a[:, None])
                here_a, place_a = _in_tile(target_a, first, grad_ac.shape[1])
                grad_ac.scatter_add_(1, place_a[:, None], (grad_a * here_a)[:, None])
                if scaling.softcap:
                    grad_ac *= 1 - (logits_ac / scaling.softcap) ** 2
                grad_ac = (grad_ac * scaling.scale if scaling.scale != 1 else grad_ac).to(dtype)
                if grad_h is not None:
                    grad_h += grad_ac @ weight_vd[tile].to(dtype)
                if grad_w is not None:
                    grad_w[tile] = grad_ac.T @ h_ad
                if grad_b is not None:
                    grad_b[tile] = grad_ac.sum(0)
        return None if grad_h is None else grad_h.to(hidden_ad.dtype), grad_w, grad_b, None, None, None, None


def _tile(h_ad: Tensor, weight_vd: Tensor, bias_v: Tensor | None, scaling: LogitScaling, tile: slice) -> Tensor:
    """(A, C) logits of a slice of the vocabulary, in float32."""
    bias = None if bias_v is None else bias_v[tile].to(h_ad.dtype)
    return _scale_logits(F.linear(h_ad, weight_vd[tile].to(h_ad.dtype), bias).float(), scaling)


def _in_tile(target_a: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """(A,) whether the target is in this tile, and its index there (0 if not)."""
    place_a = target_a - first
    here_a = (place_a >= 0) & (place_a < width)
    return here_a, place_a.where(here_a, 0)
