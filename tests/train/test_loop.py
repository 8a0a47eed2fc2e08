"""Whole trainings of a tiny model: what moves, what is reported, what stops it."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_rows import slow_except
from torch import nn
from train.cases import fresh, groups, job, scored

from mixpo.errors import MissingExtra, TrainError
from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train import loop
from mixpo.train.batch import Batch, Chunk
from mixpo.train.loop import TrainResult, train
from mixpo.train.losses import LossTerms, combine
from mixpo.train.metrics import read_metrics
from mixpo.train.reference import ReferenceScorer
from mixpo.train.session import Session, TrainJob
from mixpo.types import Group
from mixpo.vlm.load import Vlm, load

pytestmark = pytest.mark.usefixtures("unchecked_saves")


@pytest.fixture
def vlm(tiny_vlm: Vlm) -> Vlm:
    return fresh(tiny_vlm)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


UNUSED = "vision_tower.embeddings.mask_token"
"""InternVL has it for masked images only."""


def test_training_moves_everything_and_saves_it(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    before, said = weights(vlm.model), Silent()
    result = train(job(vlm, data, tmp_path, epochs=2), said)
    after = weights(vlm.model)
    assert [name for name in before if torch.equal(before[name], after[name]) and UNUSED not in name] == []
    assert len(result.steps) == 6
    again = load(ModelTable(path=str(result.folder), device="cpu"), Path())
    assert all(torch.equal(value, after[name]) for name, value in weights(again.model).items())
    assert any("first loss" in line and "expected" in line for line in said.lines)
    assert any("vision" in line and "(trained)" in line for line in said.lines)


def test_first_loss_is_the_one_of_the_paper(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    result = train(job(vlm, data, tmp_path, batch_size=12), Silent())
    nll = sum(-g.reference[0] / len(g.responses[0]) * len(g.pairs) for g in data if g.reference) / 12
    first = result.steps[0]
    assert first.loss == pytest.approx(0.8317766 + nll, abs=1e-4)
    assert (first.weighted_preference, first.weighted_quality) == pytest.approx((0.8 * math.log(2), 0.4 * math.log(2)), abs=1e-4)
    assert (first.delta, first.pairs, first.epoch) == (0.0, 12, 1.0)


def test_rows_add_up_and_delta_is_the_mean_of_past_rewards(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    result = train(job(vlm, data, tmp_path, epochs=3, batch_size=5), Silent())
    assert read_metrics(tmp_path / "work" / "metrics.jsonl") == list(result.steps)
    rewards: list[float] = []
    for row in result.steps:
        assert row.weighted_preference + row.weighted_quality + row.weighted_generation == pytest.approx(row.loss, abs=1e-6)
        assert row.margin == pytest.approx(row.reward_chosen - row.reward_rejected, abs=1e-9)
        assert row.delta == pytest.approx(sum(rewards) / len(rewards) if rewards else 0.0, abs=1e-9)
        rewards += [row.reward_chosen, row.reward_rejected] * row.pairs
    assert [row.pairs for row in result.steps] == [5, 5, 2] * 3
    assert [row.epoch for row in result.steps] == pytest.approx([epoch + seen / 12 for epoch in range(3) for seen in (5, 10, 12)])
    assert result.steps[-1].delta != 0


@pytest.mark.parametrize("objective", ["mpo", "dpo", "sft"])
def test_it_learns_what_it_is_told(vlm: Vlm, data: list[Group], tmp_path: Path, objective: str) -> None:
    result = train(job(vlm, data, tmp_path, objective, epochs=8, batch_size=12, schedule="constant", weight_decay=0.0), Silent())
    first, last = result.steps[0], result.steps[-1]
    assert last.loss < 0.8 * first.loss
    if objective == "sft":
        assert last.logp_chosen > first.logp_chosen + 5
        assert last.loss == pytest.approx(last.generation)
    else:
        assert last.margin > 0.5
        assert last.accuracy == 1.0
    if objective == "dpo":
        assert last.loss == pytest.approx(last.preference)


@pytest.mark.parametrize("other", [{"tokens_per_batch": 60}, {"gradient_checkpointing": True}])
def test_micro_batches_and_recomputation_change_nothing(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, other: dict[str, object]) -> None:
    """16 x 1 is 4 x 4: the same losses, gradient norms and weights however a step is divided."""
    first = fresh(tiny_vlm)
    second = fresh(tiny_vlm)
    settings = {"batch_size": 6, "epochs": 2, "learning_rate": 1e-4}
    whole = train(job(first, data, tmp_path / "a", **{**settings, "tokens_per_batch": 100_000}), Silent())
    parts = train(job(second, data, tmp_path / "b", **{**settings, **other}), Silent())
    for one, two in zip(whole.steps, parts.steps, strict=True):
        assert (two.loss, two.grad_norm, two.delta) == pytest.approx((one.loss, one.grad_norm, one.delta), rel=1e-4, abs=1e-6)
    for name, value in weights(first.model).items():
        # Adam divides by the size of a gradient, so that one of pure rounding noise can make a step of up to its learning rate.
        assert torch.allclose(weights(second.model)[name], value, atol=2e-4), name


def test_gradient_checkpointing_recomputes(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    calls = [0]
    layer = vlm.model.model.language_model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    counted = []
    for name, on in (("a", False), ("b", True)):
        train(job(vlm, scored(vlm, data), tmp_path / name, gradient_checkpointing=on, batch_size=12, tokens_per_batch=10**6), Silent())
        counted.append(calls[0])
        calls[0] = 0
    assert counted[1] == counted[0] + 1


def test_one_step_is_the_gradient_of_the_mean_over_pairs(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    """The norm that is reported, against the loss written out for one pair at a time."""
    from mixpo.recipe import ImageTable, LossTable
    from mixpo.train.batch import make_chunk
    from mixpo.train.collate import collate
    from mixpo.train.logps import Scorer
    from mixpo.train.losses import combine, loss_weights
    from mixpo.train.prompt_cache import PromptCache

    slow = fresh(tiny_vlm)
    scorer, prompts = Scorer(slow.model, "plain"), PromptCache(slow, ImageTable())
    for group in data:
        for pair in group.pairs:
            batch = collate(slow, [make_chunk(group, [pair])], prompts.get, "plain")
            terms = combine(
                loss_weights("mpo", LossTable()), 0.1, scorer(batch), batch.reference, batch.chosen, batch.rejected, delta=0.0
            )  # fmt: skip
            (terms.total.sum() / 12).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in slow.model.parameters() if p.grad is not None))
    fast = fresh(tiny_vlm)
    result = train(job(fast, data, tmp_path, batch_size=12, tokens_per_batch=150), Silent())
    assert result.steps[0].grad_norm == pytest.approx(norm, rel=1e-4)


def test_frozen_parts_stay_as_they_are(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    before, said = weights(vlm.model), Silent()
    train(job(vlm, data, tmp_path, freeze=["vision", "projector"]), said)
    moved = {name for name, value in weights(vlm.model).items() if not torch.equal(before[name], value)}
    assert moved == {name for name in before if "language_model" in name or "lm_head" in name}
    assert any("projector" in line and "(frozen)" in line for line in said.lines)


def test_bfloat16(tiny_vlm: Vlm, tmp_path: Path) -> None:
    half = load(ModelTable(path=str(tiny_vlm.folder), dtype="bfloat16", device="cpu"), Path())
    data = scored(half, groups(half, tmp_path / "images"))
    before = weights(half.model)
    result = train(job(half, data, tmp_path, epochs=2, learning_rate=3e-4), Silent())
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}
    assert sum(not torch.equal(before[name], value) for name, value in weights(half.model).items()) > 30
    assert all(math.isfinite(row.loss) for row in result.steps)
    assert load(ModelTable(path=str(result.folder), dtype="bfloat16", device="cpu"), Path()).model.dtype == torch.bfloat16


# --- refusals ----------------------------------------------------------------------------------------------------------


def changed(data: list[Group], number: int, **fields: object) -> list[Group]:
    return [replace(group, **fields) if place == number else group for place, group in enumerate(data)]  # type: ignore[arg-type]


def test_wrong_reference_is_found_before_the_first_update(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    assert data[2].reference is not None
    wrong = changed(data, 2, reference=(data[2].reference[0] + 0.05, *data[2].reference[1:]))
    before = weights(vlm.model)
    with pytest.raises(TrainError, match=rf"question {data[2].question.id}: at the start the policy gives"):
        train(job(vlm, wrong, tmp_path, batch_size=12), Silent())
    assert all(torch.equal(before[name], value) for name, value in weights(vlm.model).items())


def test_other_images_are_found_at_the_start(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    """Reference log-probs of one image, training with another: the silent error that no loss curve shows."""
    question = replace(data[0].question, images=data[3].question.images)
    with pytest.raises(TrainError, match=f"question {question.id}: at the start"):
        train(job(vlm, changed(data, 0, question=question), tmp_path, batch_size=12), Silent())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda data: [], "no pairs to train mpo on"),
        (lambda data: [replace(group, pairs=()) for group in data], "no pairs to train mpo on"),
        (lambda data: changed(data, 1, reference=None), "no reference log-probs"),
        (lambda data: changed(data, 1, responses=((), *data[1].responses[1:])), "a response has no tokens"),
        (lambda data: changed(data, 1, reference=(math.nan,) * 3), "at the start the policy"),
    ],
)
def test_data_that_cannot_be_trained_on(
    vlm: Vlm, data: list[Group], tmp_path: Path, break_it: Callable[[list[Group]], list[Group]], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        train(job(vlm, break_it(data), tmp_path, batch_size=12), Silent())


def test_a_tracker_that_is_not_installed(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.train.session.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'mixpo\[trackio\]'"):
        train(job(vlm, data, tmp_path, trackers=["trackio"]), Silent())


def poisoned(call: int) -> Callable[..., None]:
    """A hook that puts NaN into the gradient of the `call`-th backward pass."""
    calls = [0]

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == call else gradient

    return hook  # type: ignore[return-value]


def test_nan_gradient_stops_with_the_last_good_weights(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    vlm.model.lm_head.weight.register_hook(poisoned(3))
    with pytest.raises(TrainError, match=r"step 3: the gradients are not finite.*last checkpoint is kept"):
        train(job(vlm, data, tmp_path, batch_size=4, tokens_per_batch=100_000, save_every=1, epochs=2), Silent())
    assert all(torch.isfinite(value).all() for value in vlm.model.parameters())
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert not (tmp_path / "model").exists()


def test_infinite_loss_stops_and_names_the_question(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Session.complete, [0]

    def broken(session: Session, batch: Batch, chunks: Sequence[Chunk]) -> Batch:
        calls[0] += 1
        batch = real(session, batch, chunks)
        if calls[0] == 2:
            with torch.no_grad():
                vlm.model.lm_head.weight[int(batch.target[0])] = -math.inf
        return batch

    monkeypatch.setattr(Session, "complete", broken)
    with pytest.raises(TrainError, match=r"step 2: the loss is (nan|inf) \(question [0-9a-f]{16}: log-probability"):
        train(job(vlm, data, tmp_path, tokens_per_batch=100_000), Silent())


def test_loss_of_exactly_zero_stops(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(*args: Any) -> LossTerms:
        terms = combine(*args)
        return replace(terms, total=terms.total * 0)

    monkeypatch.setattr(loop, "combine", masked)
    monkeypatch.setattr(loop, "check_first_loss", lambda *_: None)
    with pytest.raises(TrainError, match="step 3: the loss was exactly 0 in 3 steps in a row"):
        train(job(vlm, data, tmp_path, epochs=2), Silent())


OBJECTIVES = ("cdpo", "robust_dpo+sft", "ipo", "rso", "sppo", "kto_pair", "bco", "orpo", "aot")


@pytest.mark.parametrize("objective", slow_except(OBJECTIVES, "robust_dpo+sft", "kto_pair", "orpo"))
def test_every_objective_starts_as_expected_and_learns(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, objective: str) -> None:
    """The first loss is checked on the way; chosen responses gain on rejected ones."""
    own = fresh(tiny_vlm)
    said = Silent()
    result = train(job(own, data, tmp_path, objective, epochs=5, batch_size=12, schedule="constant", learning_rate=3e-4), said)
    assert any("first loss" in line for line in said.lines)
    assert result.steps[-1].margin > result.steps[0].margin + 1e-3
    assert all(math.isfinite(row.loss) for row in result.steps)


@pytest.mark.parametrize("budget", slow_except([60, 200], 60))
def test_aot_sorts_over_the_whole_step(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, budget: int) -> None:
    """However a step is divided, margins are sorted over all of its pairs."""
    found = []
    for number, tokens in enumerate((100_000, budget)):
        own = fresh(tiny_vlm)
        settings = {"epochs": 3, "batch_size": 12, "tokens_per_batch": tokens, "learning_rate": 1e-3}
        found.append(train(job(own, data, tmp_path / str(number), "aot", **settings), Silent()).steps)
    for one, other in zip(*found, strict=True):
        assert (one.loss, one.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=1e-3)
    assert found[0][2].loss != pytest.approx(found[0][0].loss, rel=1e-3)


def test_first_loss_far_from_expected_is_refused(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "combine", lambda *args: replace(terms := combine(*args), total=terms.total + 2e-3))
    with pytest.raises(TrainError, match="the first loss is"):
        train(job(vlm, data, tmp_path), Silent())


@pytest.mark.slow
def test_pairs_that_are_too_easy_are_reported_once(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    said = Silent()
    train(job(vlm, data[:2], tmp_path, epochs=41, batch_size=3, learning_rate=3e-3, schedule="constant"), said)
    assert sum("told apart already" in line for line in said.lines) == 1


def test_log_every(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    result = train(job(vlm, data, tmp_path, epochs=4, log_every=5), Silent())
    assert [row.step for row in result.steps] == [1, 5, 10, 12]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is optional")
def test_tensorboard_gets_every_step(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(job(vlm, data, tmp_path, trackers=["tensorboard"]), Silent())
    events = EventAccumulator(str(next((tmp_path / "logs").rglob("events.out.tfevents.*")).parent))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row.step, pytest.approx(row.loss)) for row in result.steps]


def test_trackers_call_the_training_by_its_label(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each run has a random name, and nobody finds the objective or the round."""
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda self, project, **settings: asked.append((project, settings)))
    train(replace(job(vlm, data, tmp_path, trackers=["tensorboard"]), label="site mpo-round-1"), Silent())
    ((project, settings),) = asked
    assert project == "mixpo"
    assert {settings["init_kwargs"][tracker]["name"] for tracker in ("wandb", "trackio")} == {"site mpo-round-1"}
    wandb = settings["init_kwargs"]["wandb"]
    assert (wandb["entity"], wandb["group"], wandb["dir"]) == (None, "site", str(tmp_path / "logs"))


def test_wandb_files_go_where_the_recipe_says(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda self, project, **settings: asked.append((project, settings)))
    table = {"project": "docs", "entity": "team", "group": "sweep"}
    train(replace(job(vlm, data, tmp_path, trackers=["tensorboard"], wandb=table), wandb_folder=tmp_path / "w"), Silent())
    ((project, settings),) = asked
    wandb = settings["init_kwargs"]["wandb"]
    assert (project, wandb["entity"], wandb["group"], wandb["dir"]) == ("docs", "team", "sweep", str(tmp_path / "w"))
    assert (tmp_path / "w").is_dir()


def test_plain_layout_trains_the_same(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(tiny_vlm)
    second = fresh(tiny_vlm)
    fast = train(job(first, data, tmp_path / "a"), Silent())
    monkeypatch.setattr("mixpo.train.session.choose_layout", lambda *_, **__: ("plain", "slow"))
    said = Silent()
    slow = train(job(second, data, tmp_path / "b"), said)
    assert any("slow" in line for line in said.lines)
    assert [row.loss for row in fast.steps] == pytest.approx([row.loss for row in slow.steps], rel=1e-4)


def test_same_objective_on_qwen(tiny_qwen: Vlm, tmp_path: Path) -> None:
    """Another architecture, with positions on three axes and images of any size."""
    vlm = fresh(tiny_qwen)
    data = scored(vlm, groups(vlm, tmp_path / "images"))
    before = weights(vlm.model)
    result = train(job(vlm, data, tmp_path, epochs=2), Silent())
    assert [name for name, value in weights(vlm.model).items() if torch.equal(value, before[name])] == []
    assert result.steps[-1].loss < result.steps[0].loss


def test_a_reference_stage_in_between_does_not_disturb(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    """After training the model is the policy: its log-probs differ from the reference by the rewards that were reported."""
    a_job: TrainJob = job(vlm, data, tmp_path, batch_size=12, epochs=2)
    result: TrainResult = train(a_job, Silent())
    reference = ReferenceScorer(vlm, a_job.images, a_job.table)
    after = reference.score(data)
    with (tmp_path / "work" / "metrics.jsonl").open(encoding="utf-8") as handle:
        assert [json.loads(line)["step"] for line in handle] == [1, 2]
    old = sum(g.reference[c] for g in data for c, _ in g.pairs if g.reference) / 12
    assert result.steps[1].reward_chosen == pytest.approx(0.1 * (result.steps[1].logp_chosen - old), abs=1e-4)
    assert sum(logps.sums[c] for logps, g in zip(after, data, strict=True) for c, _ in g.pairs) / 12 > result.steps[1].logp_chosen
