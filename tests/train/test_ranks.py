"""Two processes train as one does. Some steps give a rank no images, or nothing at all."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train.cases import groups, job, scored

from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.loop import train
from mixpo.train.metrics import read_metrics
from mixpo.vlm.load import Vlm, load

PROGRAM = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from train.cases import groups, job, scored
from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.loop import train
from mixpo.vlm.load import load

model, images, work = map(Path, sys.argv[1:])
for name in ("mpo", "aot"):
    vlm = load(ModelTable(path=str(model), device="cpu"), Path())
    data = scored(vlm, groups(vlm, images))
    train(job(vlm, data, work / name, name, epochs=2, batch_size=3, tokens_per_batch=150, learning_rate=1e-4), Silent())
"""


@pytest.mark.slow
def test_two_ranks_are_one(tiny_vlm: Vlm, tiny_folder: Path, tmp_path: Path) -> None:
    data = scored(tiny_vlm, groups(tiny_vlm, tmp_path / "images"))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(path=[str(Path(__file__).parents[1]), *sys.path]), encoding="utf-8")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "localhost:0",
    ]
    done = subprocess.run(
        [*launch, str(program), str(tiny_folder), str(tmp_path / "images"), str(tmp_path / "two")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("mpo", "aot"):
        alone = replace(tiny_vlm, model=copy.deepcopy(tiny_vlm.model), facts={})
        settings = {"epochs": 2, "batch_size": 3, "tokens_per_batch": 150, "learning_rate": 1e-4}
        a_job = job(alone, data, tmp_path / "one" / name, name, **settings)
        assert any(len(step) == 1 for step in a_job.schedule.steps(0)), "no step leaves a rank without work"
        one = train(a_job, Silent())
        two = read_metrics(tmp_path / "two" / name / "work" / "metrics.jsonl")
        assert [row.step for row in two] == [row.step for row in one.steps]
        for row, expected in zip(two, one.steps, strict=True):
            found = (row.loss, row.grad_norm, row.delta, row.tokens)
            assert found == pytest.approx((expected.loss, expected.grad_norm, expected.delta, expected.tokens), rel=1e-3, abs=1e-6)
            # Before the first update rewards are 0 but for rounding, so that which of two is larger is chance.
            assert row.step == 1 or row.accuracy == pytest.approx(expected.accuracy)
        trained = load(ModelTable(path=str(tmp_path / "two" / name / "model"), device="cpu"), Path())
        expected_weights = dict(alone.model.named_parameters())
        for key, value in trained.model.named_parameters():
            assert torch.allclose(value, expected_weights[key], atol=2e-4), key
