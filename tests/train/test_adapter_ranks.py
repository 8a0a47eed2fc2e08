"""Two processes train an adapter against a reference that moves, with vision features kept, as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
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

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from train.cases import groups, job
from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.loop import train
from mixpo.vlm.load import load

model, images, work = map(Path, sys.argv[1:])
vlm = load(ModelTable(path=str(model), device="cpu"), Path())
train(job(vlm, groups(vlm, images), work, "tr_dpo+sft", **{settings!r}), Silent())
"""


def test_two_ranks_are_one(tiny_vlm: Vlm, tiny_folder: Path, tmp_path: Path) -> None:
    data = groups(tiny_vlm, tmp_path / "images")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(path=[str(Path(__file__).parents[1]), *sys.path], settings=SETTINGS), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = subprocess.run(
        [*launch, "--rdzv_endpoint", "localhost:0", str(program), str(tiny_folder), str(tmp_path / "images"), str(tmp_path / "two")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = fresh(tiny_vlm)
    one = train(job(alone, data, tmp_path / "one", "tr_dpo+sft", **SETTINGS), Silent())
    two = read_metrics(tmp_path / "two" / "work" / "metrics.jsonl")
    assert [row.step for row in two] == [row.step for row in one.steps]
    for row, expected in zip(two, one.steps, strict=True):
        assert (row.loss, row.grad_norm, row.tokens) == pytest.approx((expected.loss, expected.grad_norm, expected.tokens), rel=1e-3)
    values, others = (load_file(tmp_path / name / "model" / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(others[name], value, atol=2e-3) for name, value in values.items())
