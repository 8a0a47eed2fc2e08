"""The reference in the training step: equal to the stage's, and moving as the paper's equations say."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slow_rows import slow_except
from train.cases import fresh, groups, job, scored

from mixpo.errors import TrainError
from mixpo.progress import Silent
from mixpo.recipe import ImageTable, LossTable, TrainTable
from mixpo.train import loop
from mixpo.train.groups import from_record
from mixpo.train.loop import train
from mixpo.train.metrics import StepMetrics
from mixpo.train.online_reference import OnlineReference
from mixpo.train.reference import ReferenceScorer
from mixpo.types import Group, Pair
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

LORA = {"rank": 3}


@pytest.fixture
def bare(tiny_vlm: Vlm, tmp_path: Path) -> list[Group]:
    return groups(tiny_vlm, tmp_path / "images")


FROZEN = {"freeze": ["vision", "projector"], "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("table", "objective"),
    slow_except(
        product(({}, {"lora": LORA}, FROZEN), ("mpo", "aot", "kto_pair")), ({}, "aot"), ({"lora": LORA}, "mpo"), (FROZEN, "kto_pair")
    ),
)
def test_online_equals_the_stage(tiny_vlm: Vlm, bare: list[Group], tmp_path: Path, objective: str, table: dict[str, Any]) -> None:
    if table.get("lora"):
        pytest.importorskip("peft")
    settings = {"epochs": 2, "batch_size": 6, "tokens_per_batch": 200, "learning_rate": 3e-4, **table}
    stage = train(job(fresh(tiny_vlm), scored(tiny_vlm, bare), tmp_path / "a", objective, **settings), Silent())
    online = train(job(fresh(tiny_vlm), bare, tmp_path / "b", objective, reference="online", **settings), Silent())
    for one, two in zip(stage.steps, online.steps, strict=True):
        assert (two.loss, two.margin, two.grad_norm) == pytest.approx((one.loss, one.margin, one.grad_norm), rel=1e-4, abs=1e-5)
        assert two.loss == pytest.approx(one.loss, rel=1e-5)


def test_the_records_hold_what_the_stage_finds(tiny_vlm: Vlm, bare: list[Group], monkeypatch: pytest.MonkeyPatch) -> None:
    """With an online reference the stage makes groups and asks the model nothing."""
    monkeypatch.setattr(ReferenceScorer, "score", lambda *_: pytest.fail("a forward pass"))
    reference = ReferenceScorer(tiny_vlm, ImageTable(), TrainTable(reference="online"))
    rows = [(group.question, group.prompt, [_pair(group)]) for group in bare]
    found = [from_record(row[0], row[1], record) for row, record in zip(rows, reference.records(rows), strict=True)]
    assert [(group.responses, group.pairs, group.reference) for group in found] == [
        (group.responses[:2], ((0, 1),), None) for group in bare
    ]


def _pair(group: Group) -> Pair:
    ids = group.responses
    return Pair(
        id="p",
        question=group.question.id,
        chosen="sampled",
        rejected="sampled",
        origin="correctness",
        chosen_ids=ids[0],
        rejected_ids=ids[1],
    )


def test_the_policy_is_given_back(tiny_vlm: Vlm, tmp_path: Path) -> None:
    """Also after an error in the middle; and no gradient reaches the reference."""
    vlm = fresh(tiny_vlm)
    online = OnlineReference(vlm.model, "dpo", LossTable())
    before = {name: value.detach().clone() for name, value in vlm.model.named_parameters()}
    with torch.no_grad():
        for value in vlm.model.parameters():
            value.add_(1)
    seen: list[float] = []

    def broken(_: object) -> None:
        seen.append(max(float((value - before[name]).abs().max()) for name, value in vlm.model.named_parameters()))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        online.fill(broken, object())  # type: ignore[arg-type]
    assert seen == [0.0]
    assert all(torch.allclose(value, before[name] + 1) for name, value in vlm.model.named_parameters())


@pytest.mark.parametrize(("alpha", "every"), [(0.25, 1), (0.6, 2), (1.0, 2)])
def test_the_update_by_hand(alpha: float, every: int) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(8.0)
    online = OnlineReference(model, "tr_dpo", LossTable(reference_alpha=alpha, reference_every=every))
    found, policies = [], [16.0, 0.0, 4.0, 4.0]
    for step, value in enumerate(policies, start=1):
        model.weight.data.fill_(value)
        online.update(step)
        found.append(online.values["weight"].item())
    # 8 -> 0.75 * 8 + 0.25 * 16 = 10 -> 7.5 -> 6.625 -> 5.96875; 8 -> 0.4 * 8 + 0.6 * 0 = 3.2 -> 0.4 * 3.2 + 0.6 * 4 = 3.68.
    by_hand = {0.25: [10, 7.5, 6.625, 5.96875], 0.6: [8, 3.2, 3.2, 3.68], 1.0: [8, 0, 0, 4]}
    assert found == pytest.approx(by_hand[alpha])
    still = OnlineReference(model, "dpo", LossTable(reference_alpha=1, reference_every=1))
    model.weight.data.fill_(-5.0)
    still.update(1)
    assert still.values["weight"].item() == 4


SETTINGS = {"epochs": 3, "batch_size": 4, "save_every": 2, "reference": "online", "learning_rate": 3e-3}
SOFT = {"reference_alpha": 0.6, "reference_every": 1}
HARD = {"reference_alpha": 1.0, "reference_every": 3}


def test_a_moving_reference_step_by_step(tiny_vlm: Vlm, bare: list[Group], tmp_path: Path) -> None:
    """A second copy of the model that is updated after each step, and DPO's loss against it, the slow way."""
    policy, losses = fresh(tiny_vlm), []
    slow = fresh(tiny_vlm)
    real = loop._advance

    def advance(session: Any, row: StepMetrics) -> None:
        real(session, row)
        reference = dict(slow.model.named_parameters())
        with torch.no_grad():
            for name, value in policy.model.named_parameters():
                reference[name].copy_(0.4 * reference[name] + 0.6 * value)
        step = next(session.schedule.steps(row.step), None)
        if step is None:
            return
        found, before = (scored(vlm, bare) for vlm in (fresh(policy), slow))
        margins = []
        for part in step:
            mine, theirs = found[part.group].reference, before[part.group].reference
            assert mine is not None
            assert theirs is not None
            pairs = [bare[part.group].pairs[number] for number in part.pairs]
            margins += [mine[chosen] - theirs[chosen] - mine[rejected] + theirs[rejected] for chosen, rejected in pairs]
        losses.append(float(-torch.nn.functional.logsigmoid(0.1 * torch.tensor(margins)).mean()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_advance", advance)
        result = train(job(policy, bare, tmp_path, "tr_dpo", **{**SETTINGS, "epochs": 1, "loss": SOFT}), Silent())
    assert [row.loss for row in result.steps[1:]] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("table", "loss"), slow_except([({}, SOFT), ({}, HARD), ({"lora": LORA}, HARD)], ({}, SOFT), ({"lora": LORA}, HARD))
)
def test_resume_goes_on_with_the_moved_reference(
    tiny_vlm: Vlm, bare: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], loss: dict[str, Any]
) -> None:
    if table:
        pytest.importorskip("peft")
    settings = {**SETTINGS, **table, "loss": loss}
    whole = train(job(fresh(tiny_vlm), bare, tmp_path / "whole", "tr_dpo+sft", **settings), Silent())
    real = loop._advance

    def advance(session: Any, row: StepMetrics) -> None:
        if row.step > 5:
            raise KeyboardInterrupt
        real(session, row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_advance", advance)
        with pytest.raises(KeyboardInterrupt):
            train(job(fresh(tiny_vlm), bare, tmp_path / "cut", "tr_dpo+sft", **settings), Silent())
    folder = tmp_path / "cut" / "work" / "checkpoints" / "step-000004"
    moving_values, trained = (load_file(folder / f"{name}.safetensors") for name in ("reference", "model"))
    assert moving_values.keys() == trained.keys()
    assert any(not torch.equal(moving_values[name], trained[name]) for name in moving_values)
    resumed = train(job(fresh(tiny_vlm), bare, tmp_path / "cut", "tr_dpo+sft", **settings), Silent())
    assert [row.loss for row in resumed.steps] == [row.loss for row in whole.steps]
    still = train(job(fresh(tiny_vlm), bare, tmp_path / "still", "dpo+sft", **{**settings, "loss": {}}), Silent())
    assert whole.steps[-1].loss != pytest.approx(still.steps[-1].loss, rel=1e-4)
    assert not list((tmp_path / "still" / "work").rglob("reference.safetensors"))


def test_an_online_start_that_differs_is_found(tiny_vlm: Vlm, bare: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnlineReference.__init__

    def other(self: OnlineReference, *args: Any) -> None:
        real(self, *args)
        self.values["model.language_model.norm.weight"] *= 1.5

    monkeypatch.setattr(OnlineReference, "__init__", other)
    with pytest.raises(TrainError, match=r"where the reference gives .* the copy of the base model differs from it"):
        train(job(fresh(tiny_vlm), bare, tmp_path, reference="online"), Silent())
