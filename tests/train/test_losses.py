"""The loss against numbers worked out by hand, with nothing but math.exp and math.log."""

from __future__ import annotations

import math

import pytest
import torch

from mixpo.recipe import LossTable
from mixpo.train.forms import dpo
from mixpo.train.losses import (
    LossTerms,
    ResponseLogps,
    Weights,
    combine,
    expected_start,
    generation_loss,
    quality_loss,
    weights_of,
)

PAPER = weights_of("mpo", LossTable())


def terms(weights: Weights, delta: float = 0.0, beta: float = 0.1) -> LossTerms:
    """Three responses, two pairs: (0 over 1) and (2 over 1)."""
    logps = ResponseLogps(sums=torch.tensor([-10.0, -20.0, -6.0]), lengths=torch.tensor([4, 8, 3]))
    reference = torch.tensor([-12.0, -17.0, -6.0])
    return combine(weights, beta, logps, reference, torch.tensor([0, 2]), torch.tensor([1, 1]), delta)


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def test_by_hand() -> None:
    # rewards: 0.1 * (-10 + 12) = 0.2; 0.1 * (-20 + 17) = -0.3; 0.1 * 0 = 0
    found = terms(PAPER, delta=0.05)
    assert found.reward_chosen.tolist() == pytest.approx([0.2, 0.0])
    assert found.reward_rejected.tolist() == pytest.approx([-0.3, -0.3])
    preference = [minus_log_sigmoid(0.5), minus_log_sigmoid(0.3)]
    quality = [minus_log_sigmoid(0.15) + minus_log_sigmoid(0.35), minus_log_sigmoid(-0.05) + minus_log_sigmoid(0.35)]
    generation = [10 / 4, 6 / 3]
    assert found.preference.tolist() == pytest.approx(preference, rel=1e-6)
    assert found.quality.tolist() == pytest.approx(quality, rel=1e-6)
    assert found.generation.tolist() == pytest.approx(generation, rel=1e-6)
    total = [0.8 * p + 0.2 * q + g for p, q, g in zip(preference, quality, generation, strict=True)]
    assert found.total.tolist() == pytest.approx(total, rel=1e-6)


def test_a_number_of_the_paper() -> None:
    """sigmoid(ln 3) = 3/4, so -log sigmoid = ln 4/3."""
    assert dpo(torch.tensor(math.log(3)), 1.0).item() == pytest.approx(math.log(4 / 3))
    assert quality_loss(torch.tensor(math.log(3)), torch.tensor(-math.log(3)), 0.0).item() == pytest.approx(2 * math.log(4 / 3))
    assert generation_loss(torch.tensor(-3.0), torch.tensor(2)).item() == 1.5


def test_parts_times_weights_are_the_total() -> None:
    weights = Weights(preference=0.7, quality=0.15, generation=0.4)
    found = terms(weights, delta=-0.2)
    parts = 0.7 * found.preference + 0.15 * found.quality + 0.4 * found.generation
    assert torch.allclose(parts, found.total, atol=1e-6, rtol=0)


def test_objectives() -> None:
    assert weights_of("mpo", LossTable()) == Weights(0.8, 0.2, 1.0)
    assert weights_of("mpo", LossTable(preference=0.5, quality=0.0, generation=2.0)) == Weights(0.5, 0.0, 2.0)
    assert weights_of("dpo", LossTable(preference=0.5)) == Weights(1.0, 0.0, 0.0)
    assert weights_of("sft", LossTable(generation=0.0)) == Weights(0.0, 0.0, 1.0)
    assert torch.equal(terms(weights_of("dpo", LossTable())).total, terms(PAPER).preference)
    assert torch.equal(terms(weights_of("sft", LossTable())).total, terms(PAPER).generation)


def test_rewards_do_not_depend_on_the_weights() -> None:
    assert torch.equal(terms(PAPER).reward_chosen, terms(Weights(0.0, 0.0, 9.0)).reward_chosen)


def test_start_of_training() -> None:
    sums = torch.tensor([-9.0, -5.0, -8.0], dtype=torch.float64)
    found = combine(
        PAPER, 0.1, ResponseLogps(sums, torch.tensor([3, 5, 4])), sums.clone(), torch.tensor([0, 2]), torch.tensor([1, 1]), 0.0
    )  # fmt: skip
    nll = (9 / 3 + 8 / 4) / 2
    assert found.total.mean().item() == pytest.approx(0.8317766 + nll, abs=1e-6)

    def start(objective: str, beta: float = 0.1) -> float:
        logps = ResponseLogps(sums, torch.tensor([3, 5, 4]))
        return float(expected_start(weights_of(objective, LossTable()), beta, logps, torch.tensor([0, 2]), torch.tensor([1, 1])).mean())

    assert start("mpo") == pytest.approx(0.8 * math.log(2) + 0.2 * 2 * math.log(2) + nll)
    assert [start(name) for name in ("dpo", "cdpo", "robust_dpo")] == pytest.approx([math.log(2)] * 3)
    assert [start("sft"), start("bco"), start("rso"), start("kto_pair")] == pytest.approx([nll, 2 * math.log(2), 1, 1])
    assert [start("ipo"), start("sppo"), start("ipo", 0.5), start("sppo", 0.5)] == pytest.approx([25, 50, 1, 2])


def test_a_term_without_weight_cannot_spoil_the_gradient() -> None:
    logps = torch.tensor([-1.0, -math.inf], requires_grad=True)
    found = combine(
        Weights(0.0, 0.0, 1.0), 0.1, ResponseLogps(logps, torch.tensor([1, 1])), torch.zeros(2), torch.tensor([0]), torch.tensor([1]), 0.0
    )  # fmt: skip
    found.total.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1.0, 0.0]


def test_gradients_against_differences() -> None:
    lengths, reference = torch.tensor([4, 8, 3]), torch.tensor([-12.0, -17.0, -6.0], dtype=torch.float64)

    def loss(sums: torch.Tensor) -> torch.Tensor:
        return combine(PAPER, 0.1, ResponseLogps(sums, lengths), reference, torch.tensor([0, 2, 0]), torch.tensor([1, 1, 2]), 0.3).total

    start = torch.tensor([-10.0, -20.0, -5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, atol=1e-7)


def test_extreme_rewards_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4])
    assert dpo(2 * far, 1.0).tolist() == [0.0, 2e4]
    assert torch.isfinite(quality_loss(far, -far, 0.0)).all()
