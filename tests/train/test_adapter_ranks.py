"""Two processes train an adapter against a reference that moves, with vision features kept, as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file
from train import ranks_program
from train.cases import fresh, groups, job

from mixpo.progress import Silent
from mixpo.train.loop import train
from mixpo.train.metrics import read_metrics
from mixpo.vlm.load import Vlm

pytest.importorskip("peft")

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 3,
    "tokens_per_batch": 150,
    "learning_rate": 1e-3,
    "reference": "online",
    "lora": {"rank": 3},
    "cache_vision": True,
    "loss": {"reference_alpha": 1.0, "reference_every": 2},
}


def test_two_ranks_are_one(tiny_vlm: Vlm, tiny_folder: Path, tmp_path: Path) -> None:
    data = groups(tiny_vlm, tmp_path / "images")
    environment = {"ACCELERATE_USE_CPU": "true"}
    done = forked.ranks(ranks_program.adapter, tiny_folder, tmp_path / "images", tmp_path / "two", SETTINGS, environment=environment)
    assert done.status == 0, done.error[-3000:]
    alone = fresh(tiny_vlm)
    one = train(job(alone, data, tmp_path / "one", "tr_dpo+sft", **SETTINGS), Silent())
    two = read_metrics(tmp_path / "two" / "work" / "metrics.jsonl")
    assert [row.step for row in two] == [row.step for row in one.steps]
    for row, expected in zip(two, one.steps, strict=True):
        assert (row.loss, row.grad_norm, row.tokens) == pytest.approx((expected.loss, expected.grad_norm, expected.tokens), rel=1e-3)
    values, others = (load_file(tmp_path / name / "model" / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(others[name], value, atol=2e-3) for name, value in values.items())
