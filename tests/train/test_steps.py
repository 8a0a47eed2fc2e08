"""What decides a step: its random numbers, its share of a batch, its images; and the check of the layout between steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from failures import fails
from train.cases import fresh, group, job, scored

from mixpo.errors import TrainError
from mixpo.progress import Silent
from mixpo.train import loop
from mixpo.train.inputs import plan_step
from mixpo.train.loop import train
from mixpo.train.schedule import share_of_batch
from mixpo.train.session import open_session
from mixpo.train.tree_attention import PaddedPlan
from mixpo.types import Group
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")


@pytest.fixture(scope="module")
def data(tiny_vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    """7 pairs."""
    return scored(tiny_vlm, [group(tiny_vlm, tmp_path_factory.mktemp("images"), number, number % 2, 2) for number in range(7)])


def weights(vlm: Vlm) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in vlm.model.parameters()])


@pytest.mark.slow
def test_nothing_before_a_training_changes_its_dropout(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    trained = []
    for number in range(2):
        torch.manual_seed(number)
        vlm = fresh(tiny_vlm)
        train(job(vlm, data, tmp_path / str(number), learning_rate=1e-2, lora={"rank": 2, "dropout": 0.5}), Silent())
        trained.append(weights(vlm))
    assert torch.equal(*trained)
    vlm = fresh(tiny_vlm)
    train(replace(job(vlm, data, tmp_path / "round", learning_rate=1e-2, lora={"rank": 2, "dropout": 0.5}), round=2), Silent())
    assert not torch.equal(weights(vlm), trained[0])


def test_a_short_step_has_its_share_of_the_learning_rate(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    a_job = job(fresh(tiny_vlm), data, tmp_path, batch_size=3, learning_rate=1e-4, schedule="constant")
    assert [share_of_batch(step, 3) for step in a_job.schedule.steps(0)] == pytest.approx([1, 1, 1 / 3])
    assert [row.learning_rate for row in train(a_job, Silent()).steps] == pytest.approx([1e-4, 1e-4, 1e-4 / 3])


def test_a_step_without_images_has_no_dummy_with_one(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: Any) -> None:
    """A gradient of 0 is not none: the optimizer would move the vision tower by its momentum."""
    session = open_session(job(fresh(tiny_vlm), data, tmp_path, batch_size=1), Silent())
    monkeypatch.setattr(type(session.accelerator), "num_processes", 2)
    shown = 0
    monkeypatch.setattr(session.accelerator, "gather", lambda value: torch.cat([value, torch.tensor([[2, shown]])]))
    for step in session.schedule.steps(0):
        pictured = bool(data[step[0].group].question.images)
        shown = int(pictured)
        for rank in (0, 1):
            monkeypatch.setattr(type(session.accelerator), "process_index", rank)
            batches = loop._batches(session, plan_step(session, 0, step))
            assert [any(chunk.group.question.images for chunk in chunks) for chunks in batches] == [pictured] * 2


def test_a_layout_that_goes_wrong_later_stops_training(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loop, "SENTINEL_EVERY", 2)
    train(job(fresh(tiny_vlm), data, tmp_path / "right", batch_size=2), Silent())
    attend, advance = PaddedPlan.attend, loop._advance

    def broken(session: Any, row: Any) -> None:
        advance(session, row)
        monkeypatch.setattr(PaddedPlan, "attend", lambda *args: attend(*args) * 0.5)

    monkeypatch.setattr(loop, "_advance", broken)
    with fails("layout-not-exact", TrainError) as failure:
        train(job(fresh(tiny_vlm), data, tmp_path / "wrong", batch_size=2), Silent())
    assert failure.message.startswith("step 3: ")
