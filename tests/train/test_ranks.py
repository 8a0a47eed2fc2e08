"""Two processes train as one does, whether each has the model or half of it. Some steps give a rank no images, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from train import ranks_program
from train.cases import fresh, groups, job, scored
from train.ranks_program import ADAPTER, CUT, HOLD, REPLAY, SETTINGS, mixed, sft_rows

from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.group_data import in_memory
from mixpo.train.loop import train
from mixpo.train.metrics import StepMetrics, read_metrics
from mixpo.train.schedule import Step, rank_share
from mixpo.types import Group
from mixpo.vlm.load import Vlm, load

KINDS = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
}
"""What `accelerate launch` tells the ranks; without a GPU Accelerate itself stays with copies."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked_saves")]


@pytest.fixture(scope="module")
def images(tiny_vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all pictures made, so that ranks do not write the same file."""
    folder = tmp_path_factory.mktemp("images")
    groups(tiny_vlm, folder)
    mixed(tiny_vlm, folder)
    sft_rows(tiny_vlm, folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def two(request: pytest.FixtureRequest, tiny_folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have trained."""
    work = tmp_path_factory.mktemp(request.param)
    done = forked.ranks(ranks_program.main, tiny_folder, images, work, request.param, environment=KINDS[request.param])
    assert done.status == 0, done.error[-3000:]
    return work


@pytest.fixture(scope="module")
def data(tiny_vlm: Vlm, images: Path) -> list[Group]:
    return scored(tiny_vlm, groups(tiny_vlm, images), HOLD)


def rows(folder: Path) -> list[StepMetrics]:
    return read_metrics(folder / "work" / "metrics.jsonl")


def same(found: Sequence[StepMetrics], expected: Sequence[StepMetrics]) -> None:
    """Float32 sums in another order: losses and gradient norms within 1e-3 of each other."""
    assert [row.step for row in found] == [row.step for row in expected]
    for one, other in zip(found, expected, strict=True):
        numbers = [(row.loss, row.grad_norm, row.delta, row.tokens) for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-6)
        # Before the first update rewards are 0 but for rounding, so that which of two is larger is chance.
        assert one.step == 1 or one.accuracy == pytest.approx(other.accuracy)


@pytest.mark.parametrize("name", ["mpo", "aot"])
def test_two_ranks_are_one(two: Path, tiny_vlm: Vlm, data: list[Group], tmp_path: Path, name: str) -> None:
    alone = fresh(tiny_vlm)
    a_job = job(alone, data, tmp_path, name, **SETTINGS)
    assert any(len(step) == 1 for step in a_job.schedule.steps(0)), "no step leaves a rank without work"
    same(rows(two / name), train(a_job, Silent()).steps)
    trained = load(ModelTable(path=str(two / name / "model"), device="cpu"), Path())
    expected = dict(alone.model.named_parameters())
    for key, value in trained.model.named_parameters():
        assert torch.allclose(value, expected[key], atol=2e-4), key


def test_recomputed_activations(two: Path) -> None:
    same(rows(two / "recomputed"), rows(two / "mpo"))


def test_bfloat16(two: Path, tiny_folder: Path, images: Path, tmp_path: Path) -> None:
    """Gradients are summed in float32 on all launches; what differs is rounding within the forward passes."""

    def half() -> Vlm:
        return load(ModelTable(path=str(tiny_folder), device="cpu", dtype="bfloat16"), Path())

    alone = half()
    rows_alone = train(job(alone, scored(half(), groups(half(), images)), tmp_path, **SETTINGS), Silent()).steps
    for row, other in zip(rows(two / "half"), rows_alone, strict=True):
        assert (row.loss, row.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=0.05)
    trained = load(ModelTable(path=str(two / "half" / "model"), device="cpu", dtype="bfloat16"), Path())
    for (name, value), other in zip(trained.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(value.float(), other.float(), rtol=0.01, atol=2e-3), name


def test_replay_rows_are_shared(two: Path, tiny_vlm: Vlm, images: Path, data: list[Group], tmp_path: Path) -> None:
    alone = train(replace(job(fresh(tiny_vlm), data, tmp_path, **REPLAY), replay=in_memory(sft_rows(tiny_vlm, images))), Silent()).steps
    same(rows(two / "replay"), alone)
    for row, other in zip(rows(two / "replay"), alone, strict=True):
        assert (row.replay_rows, row.replay_skipped) == (other.replay_rows, other.replay_skipped)
        # The same rows with the same weight; what differs is the order of float32 sums, 1e-6 after eight steps.
        assert (row.replay, row.loss, row.grad_norm) == pytest.approx((other.replay, other.loss, other.grad_norm), rel=1e-5)
    assert alone[-1].replay_skipped > 0
    assert [row.hold for row in rows(two / "replay")] == pytest.approx([row.hold for row in alone], rel=1e-2, abs=1e-5)
    assert alone[-1].hold > 1e-4


def test_an_adapter(two: Path, tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    same(rows(two / "adapter"), train(job(fresh(tiny_vlm), data, tmp_path, **ADAPTER), Silent()).steps)
    merged = [load(ModelTable(path=str(folder / "model"), device="cpu"), Path()).model for folder in (two / "adapter", tmp_path)]
    for (name, value), other in zip(merged[0].named_parameters(), merged[1].parameters(), strict=True):
        assert torch.allclose(value, other, atol=2e-3), name
    assert (two / "adapter" / "model" / "adapter" / "adapter_model.safetensors").exists()


def test_text_only_on_one_rank(two: Path, tiny_vlm: Vlm, images: Path, tmp_path: Path) -> None:
    found = mixed(tiny_vlm, images)
    a_job = job(fresh(tiny_vlm), found, tmp_path, batch_size=2, epochs=4, learning_rate=1e-4)

    def pictured(step: Step, rank: int) -> tuple[bool, ...]:
        mine = rank_share(step, rank, 2, lambda number: sum(map(len, found[number].responses)))
        return tuple(bool(found[part.group].question.images) for part in mine)

    shares = [{pictured(step, rank) for rank in (0, 1)} for step in a_job.schedule.steps(0)]
    assert {(True,), (False,)} in shares, "no step has images on one rank and text on the other"
    assert any(not any(map(any, share)) for share in shares), "no step is without images"
    same(rows(two / "mixed"), train(a_job, Silent()).steps)
    trained = load(ModelTable(path=str(two / "mixed" / "model"), device="cpu"), Path())
    expected, before = dict(a_job.vlm.model.named_parameters()), dict(tiny_vlm.model.named_parameters())
    for key, value in trained.model.named_parameters():
        # Weights, not losses: a gradient of 0 where there should be none moves them, and no loss of the same step shows it.
        assert torch.allclose(value, expected[key], atol=2e-5), (key, float((expected[key] - before[key]).abs().max()))


def test_going_on(two: Path) -> None:
    assert [row.step for row in rows(two / "cut")] == [row.step for row in rows(two / "mpo")]
    for one, other in zip(rows(two / "cut"), rows(two / "mpo"), strict=True):
        assert (one.loss, one.grad_norm, one.delta) == pytest.approx((other.loss, other.grad_norm, other.delta), rel=1e-6, abs=1e-9)


def test_one_process_goes_on_where_two_stopped(two: Path, tiny_vlm: Vlm, data: list[Group]) -> None:
    said = Silent()
    done = train(job(fresh(tiny_vlm), data, two / "handed-on", **CUT), said)
    assert any("resuming after step 3" in line for line in said.lines)
    same(done.steps, rows(two / "mpo"))
