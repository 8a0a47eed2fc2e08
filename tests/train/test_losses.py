"""The losses against numbers computed by hand with math.exp and math.log, and against claims of their papers."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from mixpo.objectives import OBJECTIVES
from mixpo.recipe import LossTable
from mixpo.train.losses import (
    PREFERENCE_LOSSES,
    LossTerms,
    LossWeights,
    PreferenceInputs,
    ResponseLogps,
    cdpo,
    combine,
    dpo,
    generation_loss,
    initial_loss,
    ipo,
    kto_pair,
    loss_weights,
    optimal_transport_shift,
    orpo,
    quality_loss,
    robust_dpo,
    rso,
    sppo,
)

PAPER = loss_weights("mpo", LossTable())


def terms(weights: LossWeights, delta: float = 0.0, beta: float = 0.1) -> LossTerms:
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
    weights = LossWeights(preference=0.7, quality=0.15, generation=0.4)
    found = terms(weights, delta=-0.2)
    parts = 0.7 * found.preference + 0.15 * found.quality + 0.4 * found.generation
    assert torch.allclose(parts, found.total, atol=1e-6, rtol=0)


def test_objectives() -> None:
    assert loss_weights("mpo", LossTable()) == LossWeights(0.8, 0.2, 1.0)
    assert loss_weights("mpo", LossTable(preference=0.5, quality=0.0, generation=2.0)) == LossWeights(0.5, 0.0, 2.0)
    assert loss_weights("dpo", LossTable(preference=0.5)) == LossWeights(1.0, 0.0, 0.0)
    assert loss_weights("sft", LossTable(generation=0.0)) == LossWeights(0.0, 0.0, 1.0)
    assert torch.equal(terms(loss_weights("dpo", LossTable())).total, terms(PAPER).preference)
    assert torch.equal(terms(loss_weights("sft", LossTable())).total, terms(PAPER).generation)


def test_rewards_do_not_depend_on_the_weights() -> None:
    assert torch.equal(terms(PAPER).reward_chosen, terms(LossWeights(0.0, 0.0, 9.0)).reward_chosen)


def test_start_of_training() -> None:
    sums = torch.tensor([-9.0, -5.0, -8.0], dtype=torch.float64)
    found = combine(
        PAPER, 0.1, ResponseLogps(sums, torch.tensor([3, 5, 4])), sums.clone(), torch.tensor([0, 2]), torch.tensor([1, 1]), 0.0
    )  # fmt: skip
    nll = (9 / 3 + 8 / 4) / 2
    assert found.total.mean().item() == pytest.approx(0.8317766 + nll, abs=1e-6)

    def start(objective: str, beta: float = 0.1) -> float:
        logps = ResponseLogps(sums, torch.tensor([3, 5, 4]))
        return float(initial_loss(loss_weights(objective, LossTable()), beta, logps, torch.tensor([0, 2]), torch.tensor([1, 1])).mean())

    assert start("mpo") == pytest.approx(0.8 * math.log(2) + 0.2 * 2 * math.log(2) + nll)
    assert [start(name) for name in ("dpo", "cdpo", "robust_dpo")] == pytest.approx([math.log(2)] * 3)
    assert [start("sft"), start("bco"), start("rso"), start("kto_pair")] == pytest.approx([nll, 2 * math.log(2), 1, 1])
    assert [start("ipo"), start("sppo"), start("ipo", 0.5), start("sppo", 0.5)] == pytest.approx([25, 50, 1, 2])


def test_a_term_without_weight_cannot_spoil_the_gradient() -> None:
    logps = torch.tensor([-1.0, -math.inf], requires_grad=True)
    found = combine(
        LossWeights(0.0, 0.0, 1.0),
        0.1,
        ResponseLogps(logps, torch.tensor([1, 1])),
        torch.zeros(2),
        torch.tensor([0]),
        torch.tensor([1]),
        0.0,
    )
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


# --- the preference losses ---

BETA = 0.5
CHOSEN, REJECTED = 2.0, -1.0  # log-ratios, so h = 3 and rewards are 1 and -0.5


def sides(smoothing: float = 0.0, delta: float = 0.0) -> PreferenceInputs:
    one = [torch.tensor([value], dtype=torch.float64) for value in (CHOSEN, REJECTED, math.log(0.5), math.log(0.2))]
    return PreferenceInputs(one[0], one[1], one[2], one[3], BETA, delta, smoothing)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


RIGHT, FLIPPED = minus_log_sigmoid(1.5), minus_log_sigmoid(-1.5)

BY_HAND = {
    "dpo": (sides(), RIGHT),
    "cdpo": (sides(0.1), 0.9 * RIGHT + 0.1 * FLIPPED),
    "robust_dpo": (sides(0.1), (0.9 * RIGHT - 0.1 * FLIPPED) / 0.8),
    "ipo": (sides(), (3 - 1 / (2 * 0.5)) ** 2),  # (3 - 1)^2 = 4
    "rso": (sides(), 0.0),  # max(0, 1 - 1.5)
    "sppo": (sides(), (2 - 1) ** 2 + (-1 + 1) ** 2),  # eta / 2 = 1
    "kto_pair": (sides(delta=0.25), 1 - sigmoid(0.75) + 1 - sigmoid(0.25 + 0.5)),
    "aot": (sides()._replace(shift=torch.tensor([-1.0])), minus_log_sigmoid(0.5 * (3 - 1))),
    "orpo": (sides(), minus_log_sigmoid(math.log((0.5 / 0.5) / (0.2 / 0.8)))),  # odds 1 against 1/4: log(5/4)
}


@pytest.mark.parametrize("loss_type", list(PREFERENCE_LOSSES))
def test_preference_loss_by_hand(loss_type: str) -> None:
    given, expected = BY_HAND[loss_type]
    assert PREFERENCE_LOSSES[loss_type](given).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)  # type: ignore[index]


def test_orpo_is_a_number_of_mind() -> None:
    assert orpo(torch.tensor(math.log(0.5)), torch.tensor(math.log(0.2))).item() == pytest.approx(math.log(5 / 4), rel=1e-6)


def test_smoothing_zero_is_dpo() -> None:
    margin = torch.linspace(-5, 5, 11)
    assert torch.equal(cdpo(margin, 0.3, 0.0), dpo(margin, 0.3))
    assert torch.equal(robust_dpo(margin, 0.3, 0.0), dpo(margin, 0.3))


def test_robust_is_unbiased_and_conservative_has_its_minimum_at_the_right_odds() -> None:
    """The mean over flipped labels is DPO on clean ones; cDPO is least where sigma(beta h) = 1 - e."""
    margin = torch.linspace(-5, 5, 11, dtype=torch.float64)
    noisy = 0.8 * robust_dpo(margin, 0.3, 0.2) + 0.2 * robust_dpo(-margin, 0.3, 0.2)
    assert torch.allclose(noisy, dpo(margin, 0.3))
    best = torch.tensor(math.log(0.8 / 0.2) / 0.3, dtype=torch.float64, requires_grad=True)
    cdpo(best, 0.3, 0.2).backward()
    assert best.grad is not None
    assert abs(best.grad.item()) < 1e-9


def test_where_the_squares_are_zero() -> None:
    assert ipo(torch.tensor(5.0), 0.1).item() == 0
    assert sppo(torch.tensor(5.0), torch.tensor(-5.0), 10.0).item() == 0


def test_hinge() -> None:
    margin = torch.tensor([-2.0, 0.0, 9.0, 11.0], requires_grad=True)
    loss = rso(margin, 0.1)
    assert loss.tolist() == pytest.approx([1.2, 1.0, 0.1, 0.0])
    loss.sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.1, -0.1, -0.1, 0.0])


def test_transport_pairs_margins_by_rank() -> None:
    """Policy margins 5, -1, 2 (ranks 3, 1, 2) against reference margins 0, 4, 1 (sorted 0, 1, 4): 5 - 4, -1 - 0, 2 - 1."""
    policy, reference = torch.tensor([5.0, -1.0, 2.0]), torch.tensor([0.0, 4.0, 1.0])
    assert (policy - reference + optimal_transport_shift(policy, reference)).tolist() == [1.0, -1.0, 1.0]
    assert optimal_transport_shift(reference, reference).tolist() == [0.0, 0.0, 0.0]


def test_kto_never_anchors_below_zero() -> None:
    reward = torch.tensor(0.3)
    assert kto_pair(reward, -reward, -2.0).item() == pytest.approx(2 * (1 - sigmoid(0.3)))


@pytest.mark.parametrize("loss_type", list(PREFERENCE_LOSSES))
def test_preference_gradients_against_differences(loss_type: str) -> None:
    def loss(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return PREFERENCE_LOSSES[loss_type](PreferenceInputs(a, b, c, d, BETA, 0.2, 0.1))  # type: ignore[index]

    values = [torch.tensor([value, value - 0.7], dtype=torch.float64, requires_grad=True) for value in (0.4, -0.3, -0.9, -1.6)]
    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss_type", list(PREFERENCE_LOSSES))
def test_extremes_stay_finite(loss_type: str) -> None:
    far = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    sure = torch.tensor([0.0, -1e4, -1e-9], requires_grad=True)
    loss = PREFERENCE_LOSSES[loss_type](PreferenceInputs(far, -far, sure, sure.flip(0), 0.1, 0.0, 0.1))  # type: ignore[index]
    loss.sum().backward()
    gradients = [value.grad for value in (far, sure) if value.grad is not None]
    assert loss.isfinite().all()
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective(name: str) -> None:
    """Weights of the table: 1 for a single term, the recipe's for several; the sum is what its parts say."""
    table = LossTable(preference=0.3, quality=0.6, generation=0.7, label_smoothing=0.2)
    weights = loss_weights(name, table)
    objective = OBJECTIVES[name]
    assert (weights.preference > 0, weights.quality > 0, weights.generation > 0) == (
        objective.preference,
        objective.quality,
        objective.generation,
    )
    if name.endswith("+sft"):
        alone = loss_weights(name.removesuffix("+sft"), table)
        assert (weights.generation, weights.loss_type, alone.generation) == (0.7, alone.loss_type, 0)
        assert {alone.preference, alone.quality} == {1.0, 0.0}
        assert {weights.preference, weights.quality} <= {0.3, 0.6, 0.0}
    assert weights.smoothing == (0.2 if name.split("+")[0] in ("cdpo", "robust_dpo") else 0)
    sums, reference = torch.tensor([-10.0, -20.0, -6.0], dtype=torch.float64), torch.tensor([-12.0, -17.0, -6.0], dtype=torch.float64)
    logps = ResponseLogps(sums, torch.tensor([4, 8, 3]))
    found = combine(weights, 0.5, logps, reference, torch.tensor([0, 2]), torch.tensor([1, 1]), 0.1)
    parts = sum(value * getattr(found, key) for key, value in asdict(weights).items() if key in ("preference", "quality", "generation"))
    assert torch.allclose(found.total, torch.as_tensor(parts))
    ratio, mean = sums - reference, sums / logps.lengths
    given = PreferenceInputs(ratio[[0, 2]], ratio[[1, 1]], mean[[0, 2]], mean[[1, 1]], 0.5, 0.1, weights.smoothing)
    assert torch.allclose(found.preference, PREFERENCE_LOSSES[weights.loss_type](given))
