"""The estimate of a batch's memory: a number for every configuration, never an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from mixpo.vlm import memory
from mixpo.vlm.memory import batch_bytes, free_bytes


class Raising:
    """A configuration that raises for what it has per layer, as heterogeneous ones do."""

    hidden_size, num_hidden_layers, vocab_size, num_attention_heads = 64, 2, 100, 4
    intermediate_size = (128, 256)

    @property
    def head_dim(self) -> int:
        raise ValueError("differs from layer to layer")


def vlm(config: Any) -> Any:
    return SimpleNamespace(model=SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)])))


@pytest.mark.parametrize("name", ["Gemma3nConfig", "Gemma4Config", "Gemma4UnifiedConfig", "Qwen2VLConfig", "MllamaConfig", "InklingConfig"])
def test_every_configuration_has_an_estimate(name: str) -> None:
    if not hasattr(tf, name):
        pytest.skip("an older transformers")
    config = getattr(tf, name)()
    config.get_text_config()._attn_implementation = "eager"
    assert 2**20 < batch_bytes(vlm(config), [], longest=1000, rows=4, new_tokens=100) < 2**42


def test_the_largest_layer_counts_and_the_rest_has_a_default() -> None:
    config = SimpleNamespace(get_text_config=Raising)
    assert batch_bytes(vlm(config), [], longest=10, rows=1, new_tokens=0) == 2 * 2 * 2 * 4 * 16 * 4 * 10 + 32 * 100
    empty = SimpleNamespace(get_text_config=SimpleNamespace)
    assert batch_bytes(vlm(empty), [], longest=10, rows=1, new_tokens=0) > 0


def test_the_cache_of_files_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise batches would be cut small on a busy machine, and their log-probs would be rounded otherwise from run to run."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       24683876 kB\nMemFree:          95000 kB\nMemAvailable:   14851468 kB\n")
    assert free_bytes(torch.device("cpu")) == 14851468 * 256
    (tmp_path / "meminfo").unlink()
    assert free_bytes(torch.device("cpu")) > 0
