"""The cache with room against the usual one."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from mixpo.vlm.cache import RoomyLayer, spread


def filled() -> DynamicCache:
    """Two prompts of five tokens in two layers."""
    torch.manual_seed(0)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), layer)
    return cache


def test_equals_the_usual_cache() -> None:
    rows, kept = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 4])
    usual, roomy = filled(), filled()
    usual.reorder_cache(rows)
    spread(roomy, rows, steps=3)
    assert all(isinstance(layer, RoomyLayer) for layer in roomy.layers)
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
    spread(cache, torch.tensor([0, 0, 0]), steps=2)
    assert [isinstance(layer, RoomyLayer) for layer in cache.layers] == [True, False]
    assert [layer.keys.shape[0] for layer in cache.layers] == [3, 3]
