"""Choosing tokens: by hand, and by counting. The preallocated cache against the one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from mixpo.vlm.generate import PreallocatedLayer, TokenSampling, distribution, expand_cache, inverse_cdf, sample_tokens, uniforms

NONE = torch.zeros(4, dtype=torch.bool)


def test_inverse_cdf_by_hand() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.25, 0.25, 0.0]], dtype=torch.float64).expand(7, -1)
    numbers = torch.tensor([0.0, 0.49999, 0.5, 0.74999, 0.75, 0.99999, 1.0])
    assert inverse_cdf(probs, numbers).tolist() == [1, 1, 2, 2, 3, 3, 3]


def test_counts_follow_the_probabilities() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    numbers = torch.from_numpy(np.stack([uniforms(seed, 1) for seed in range(20_000)])[:, 0])
    drawn = sample_tokens(probs.log().expand(20_000, -1), numbers, NONE, TokenSampling(1.0))
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, probs, atol=0.01, rtol=0)


def test_temperature_and_bans() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    expected = torch.softmax(torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=torch.float64), -1)
    torch.testing.assert_close(distribution(scores, TokenSampling(2.0))[0], expected)
    banned = torch.tensor([False, False, False, True])
    assert sample_tokens(scores, torch.tensor([0.5]), banned, TokenSampling(0)).item() == 2
    assert sample_tokens(scores.expand(99, -1), torch.arange(99) / 99, banned, TokenSampling(9.0)).max().item() == 2


def test_top_k_and_top_p() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    torch.testing.assert_close(
        distribution(scores, TokenSampling(1.0, top_k=2))[0], torch.tensor([0, 0, 3 / 7, 4 / 7], dtype=torch.float64)
    )
    assert distribution(scores, TokenSampling(1.0, top_k=99)).count_nonzero() == 4
    kept = {p: (distribution(scores, TokenSampling(1.0, top_p=p))[0] > 0).tolist() for p in (0.01, 0.39, 0.41, 0.71, 0.95)}
    assert kept[0.01] == kept[0.39] == [False, False, False, True]
    assert kept[0.41] == [False, False, True, True]
    assert kept[0.71] == [False, True, True, True]
    assert kept[0.95] == [True] * 4


def test_streams_are_prefixes_and_differ() -> None:
    assert uniforms(5, 100)[:10].tolist() == uniforms(5, 10).tolist()
    assert uniforms(5, 10).tolist() != uniforms(6, 10).tolist()
    assert len(uniforms(-1, 3)) == len(uniforms(2**63, 3)) == 3


def filled() -> DynamicCache:
    """Two prompts of five tokens in two layers."""
    torch.manual_seed(0)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), layer)
    return cache


def test_equals_the_usual_cache() -> None:
    rows, kept = torch.LongTensor([0, 0, 1, 1, 1]), torch.LongTensor([1, 4])
    usual, roomy = filled(), filled()
    usual.reorder_cache(rows)
    expand_cache(roomy, rows, steps=3)
    assert all(isinstance(layer, PreallocatedLayer) for layer in roomy.layers)
    for step in range(3):
        for layer in range(2):
            states = torch.randn(2, 5 if step == 0 else 2, 3, 1, 4)
            for mine, theirs in zip(roomy.update(*states, layer), usual.update(*states, layer), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert roomy.get_seq_length() == usual.get_seq_length() == 6 + step
        if step == 0:
            usual.reorder_cache(kept)
            roomy.reorder_cache(kept)


def test_a_sliding_layer_keeps_its_own_way() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    cache = DynamicCache(config=config)
    for layer in range(2):
        cache.update(torch.ones(1, 2, 6, 4), torch.ones(1, 2, 6, 4), layer)
    expand_cache(cache, torch.tensor([0, 0, 0]), steps=2)
    assert [isinstance(layer, PreallocatedLayer) for layer in cache.layers] == [True, False]
    layers: Sequence[Any] = cache.layers
    assert [layer.keys.shape[0] for layer in layers] == [3, 3]
