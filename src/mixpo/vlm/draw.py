"""Choosing the next token: pure functions of tensors. R rows, V vocabulary.

Randomness is a stream of uniform numbers for each answer, keyed by the answer's own seed. A token is then the inverse of the
cumulative distribution at that number, so batch size, order and neighbours cannot change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token. Applied in the order temperature, top_k, top_p."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


def uniforms(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The first `count` numbers in [0, 1) of the stream of `seed` (Philox, a counter-based generator)."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128)).random(count)


def pick(log_probs: Tensor, numbers: Tensor, banned: Tensor, rule: Rule) -> Tensor:
    """One token id for each row: (R, V) log-probs at temperature 1, (R,) uniform numbers, (V,) bool -> (R,) int64."""
    scores = log_probs.masked_fill(banned, float("-inf"))
    if rule.temperature == 0:
        return scores.argmax(-1)
    return inverse_cdf(distribution(scores, rule), numbers)


def distribution(scores: Tensor, rule: Rule) -> Tensor:
    """(R, V) probabilities after temperature, top_k and top_p; those of top_p are not normalised again."""
    scores = scores.to(torch.float32 if scores.device.type == "mps" else torch.float64) / rule.temperature
    if 0 < rule.top_k < scores.shape[-1]:
        least = scores.topk(rule.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    probs = scores.softmax(-1)
    if rule.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        # A token stays while those before it hold less than top_p, so at least one always stays.
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= rule.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    return probs


def inverse_cdf(probs: Tensor, numbers: Tensor) -> Tensor:
    """The token at which the cumulative sum of `probs` (R, V) first exceeds its row's number times the row's sum."""
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    index = (cumulative <= numbers.to(probs)[:, None] * total).sum(-1)
    # A number just below 1 may be rounded up to the whole sum; the last token of non-zero probability is then meant.
    return torch.minimum(index, (cumulative < total).sum(-1))
