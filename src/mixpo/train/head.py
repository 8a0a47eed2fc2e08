"""Log-probs of tokens from hidden states. Logits of a large vocabulary exist for some tokens at a time only, never for all.

A predicted tokens, D width, V vocabulary, C tokens of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixpo.vlm.families import HeadRule

WHOLE = 256 * 2**20
"""Logits of up to this many bytes in float32 are made at once, which saves computing them again in the backward pass."""
TILE = 64 * 2**20
"""Bytes of the float32 logits of one tile."""


def token_logps(head: Any, rule: HeadRule, hidden_ad: Tensor, target_a: Tensor, whole: int = WHOLE, tile: int = TILE) -> Tensor:
    """(A,) log-probs in float32, whatever `hidden_ad` is in.

    head: the output layer. One that is not a plain linear layer (an adapter around it) is called as it is, tile by tile.
    """
    vocabulary = int(head.weight.shape[0])
    if len(target_a) * vocabulary * 4 <= whole:
        return _score(head(hidden_ad), rule, target_a)
    rows = max(1, tile // (4 * vocabulary))
    if type(head) is nn.Linear:
        kind = hidden_ad.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ad.dtype
        found: Tensor = _TiledLogps.apply(hidden_ad, head.weight, head.bias, target_a, rule, rows, dtype)
        return found
    parts = zip(torch.split(hidden_ad, rows), torch.split(target_a, rows), strict=True)
    return torch.cat([checkpoint(lambda h, t: _score(head(h), rule, t), h_cd, t_c, use_reentrant=False) for h_cd, t_c in parts])


def _score(logits_cv: Tensor, rule: HeadRule, target_c: Tensor) -> Tensor:
    return -F.cross_entropy(_finish(logits_cv.float(), rule), target_c, reduction="none")


def _finish(logits_cv: Tensor, rule: HeadRule) -> Tensor:
    """What the model does to its logits."""
    if rule.scale != 1:
        logits_cv = logits_cv * rule.scale
    return torch.tanh(logits_cv / rule.cap) * rule.cap if rule.cap else logits_cv


class _TiledLogps(torch.autograd.Function):
    """Keeps one number per token for the backward pass and computes every tile's logits again there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ad: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        target_a: Tensor,
        rule: HeadRule,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        lse, found = [], []
        with torch.autocast(hidden_ad.device.type, enabled=False):
            weight, bias = weight_vd.to(dtype), None if bias_v is None else bias_v.to(dtype)
            for h_cd, t_c in zip(torch.split(hidden_ad, rows), torch.split(target_a, rows), strict=True):
                logits_cv = _finish(F.linear(h_cd.to(dtype), weight, bias).float(), rule)
                lse.append(logits_cv.logsumexp(-1))
                found.append(logits_cv.gather(-1, t_c[:, None])[:, 0] - lse[-1])
        ctx.save_for_backward(hidden_ad, weight_vd, bias_v, target_a, torch.cat(lse))
        ctx.rule, ctx.rows, ctx.dtype = rule, rows, dtype
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad_a: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ad, weight_vd, bias_v, target_a, lse_a = ctx.saved_tensors
        rule, dtype = ctx.rule, ctx.dtype
        weight, bias = weight_vd.to(dtype), None if bias_v is None else bias_v.to(dtype)
        grad_h = torch.empty_like(hidden_ad) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros(weight_vd.shape, device=weight_vd.device) if ctx.needs_input_grad[1] else None
        grad_b = torch.zeros(bias_v.shape, device=bias_v.device) if bias_v is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(hidden_ad.device.type, enabled=False):
            for first in range(0, len(target_a), ctx.rows):
                tile = slice(first, first + ctx.rows)
                h_cd = hidden_ad[tile].to(dtype)
                logits_cv = _finish(F.linear(h_cd, weight, bias).float(), rule)
                # d logp / d logits = onehot(target) - softmax
                grad_cv = (logits_cv - lse_a[tile, None]).exp_().mul_(-grad_a[tile, None])
                grad_cv.scatter_add_(1, target_a[tile, None], grad_a[tile, None])
                if rule.cap:
                    grad_cv *= 1 - (logits_cv / rule.cap) ** 2
                grad_cv = (grad_cv * rule.scale if rule.scale != 1 else grad_cv).to(dtype)
                if grad_h is not None:
                    grad_h[tile] = grad_cv @ weight
                if grad_w is not None:
                    # Sums over tiles are kept in float32 under bfloat16 too.
                    grad_w += grad_cv.T @ h_cd
                if grad_b is not None:
                    grad_b += grad_cv.sum(0)
        return grad_h, _like(grad_w, weight_vd), _like(grad_b, bias_v), None, None, None, None


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)
