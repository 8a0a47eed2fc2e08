"""The loss of Mixed Preference Optimization (arXiv 2411.10442) and its relatives as pure functions. Knows no model and keeps no state.

R responses, K pairs. y_c chosen, y_r rejected, pi the policy, pi_0 the reference, r(y) = beta log(pi(y|x) / pi_0(y|x)) a reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixpo.objectives import OBJECTIVES, LossType
from mixpo.recipe import LossTable


class ResponseLogps(NamedTuple):
    """sums: (R,) log pi(y|x) summed over the response's tokens. lengths: (R,) number of these tokens."""

    sums: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class LossWeights:
    """w_p, w_q and w_g as they are applied; a term with weight 0 takes no part in the gradient.

    form: of the preference term. smoothing: the share of pairs that it takes to be the wrong way round, where it uses one.
    """

    preference: float
    quality: float
    generation: float
    loss_type: LossType = "dpo"
    smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Everything of K pairs, each tensor (K,). `total` has the gradient; the terms are raw, multiplied by no weight."""

    total: Tensor
    preference: Tensor
    quality: Tensor
    generation: Tensor
    reward_chosen: Tensor
    reward_rejected: Tensor
    logp_chosen: Tensor
    logp_rejected: Tensor


# --- the preference term ---


class PreferenceInputs(NamedTuple):
    """What is known of K pairs. ratio: log(pi/pi_0) of each side. mean: log pi per token of each side.

    delta: mean reward of past steps. smoothing: the share of pairs taken to be the wrong way round. shift: see `transport`.
    """

    ratio_chosen: Tensor
    ratio_rejected: Tensor
    mean_chosen: Tensor
    mean_rejected: Tensor
    beta: float
    delta: float
    smoothing: float
    shift: Tensor | float = 0.0


def dpo(margin: Tensor, beta: float) -> Tensor:
    """Direct preference optimization, arXiv 2305.18290, Eq. 7."""
    return -F.logsigmoid(beta * margin)  # -log sigma(beta h)


def cdpo(margin: Tensor, beta: float, smoothing: float) -> Tensor:
    """Conservative DPO: cross-entropy with labels that are right with probability 1 - e (Mitchell 2023, ericmitchell.ai/cdpo.pdf)."""
    return (1 - smoothing) * dpo(margin, beta) + smoothing * dpo(-margin, beta)


def robust_dpo(margin: Tensor, beta: float, smoothing: float) -> Tensor:
    """The loss whose mean over labels flipped with probability e is that of DPO on clean labels, arXiv 2403.00409. e < 1/2."""
    return ((1 - smoothing) * dpo(margin, beta) - smoothing * dpo(-margin, beta)) / (1 - 2 * smoothing)


def ipo(margin: Tensor, tau: float) -> Tensor:
    """Identity preference optimization, arXiv 2310.12036, Eq. 17; log-ratios of whole responses, not per token."""
    return (margin - 1 / (2 * tau)) ** 2


def rso(margin: Tensor, gamma: float) -> Tensor:
    """The hinge on normalised likelihoods, arXiv 2309.06657: max(0, 1 - gamma h)."""
    return torch.relu(1 - gamma * margin)


def sppo(ratio_chosen: Tensor, ratio_rejected: Tensor, eta: float) -> Tensor:
    """Self-play preference optimization, arXiv 2405.00675, Eq. 4.7 with a win probability of 1 for y_c and 0 for y_r."""
    return (ratio_chosen - eta / 2) ** 2 + (ratio_rejected + eta / 2) ** 2


def kto_pair(reward_chosen: Tensor, reward_rejected: Tensor, anchor: float) -> Tensor:
    """Kahneman-Tversky optimization of both sides with weights 1, arXiv 2402.01306.

    anchor: stands for beta KL(pi, pi_0), which has no gradient and is never below 0. Ours is the mean reward of past steps where
    the paper takes responses to other questions.
    """
    z = max(anchor, 0.0)
    return (1 - torch.sigmoid(reward_chosen - z)) + (1 - torch.sigmoid(z - reward_rejected))


def orpo(mean_chosen: Tensor, mean_rejected: Tensor) -> Tensor:
    """The odds ratio term, arXiv 2403.07691, Eq. 7: odds = P / (1 - P) with P the geometric mean over the response's tokens."""
    return -F.logsigmoid(_log_odds(mean_chosen) - _log_odds(mean_rejected))


def _log_odds(logp: Tensor) -> Tensor:
    # log P - log(1 - P); a P that is 1 to the last bit would have infinite odds.
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-6)))


def aot(margin: Tensor, shift: Tensor | float, beta: float) -> Tensor:
    """Alignment via optimal transport, paired form, arXiv 2406.05882: the i-th smallest margin log pi(y_c) - log pi(y_r) is compared
    with the i-th smallest one of the reference, not with that of its own pair. shift: (K,) from `transport` over all pairs of a step.
    """
    return dpo(margin + shift, beta)


def optimal_transport_shift(policy: Tensor, reference: Tensor) -> Tensor:
    """What turns h of each pair into its distance from the reference margin of the same rank. Margins of all pairs of a step."""
    return reference - reference.sort().values[policy.argsort(stable=True).argsort()]


def _margin(sides: PreferenceInputs) -> Tensor:
    return sides.ratio_chosen - sides.ratio_rejected


PREFERENCE_LOSSES: dict[LossType, Callable[[PreferenceInputs], Tensor]] = {
    "dpo": lambda s: dpo(_margin(s), s.beta),
    "cdpo": lambda s: cdpo(_margin(s), s.beta, s.smoothing),
    "robust_dpo": lambda s: robust_dpo(_margin(s), s.beta, s.smoothing),
    "ipo": lambda s: ipo(_margin(s), s.beta),
    "rso": lambda s: rso(_margin(s), s.beta),
    "sppo": lambda s: sppo(s.ratio_chosen, s.ratio_rejected, 1 / s.beta),
    "kto_pair": lambda s: kto_pair(s.beta * s.ratio_chosen, s.beta * s.ratio_rejected, s.delta),
    "aot": lambda s: aot(_margin(s), s.shift, s.beta),
    "orpo": lambda s: orpo(s.mean_chosen, s.mean_rejected),
}


# --- the other terms and their sum ---


def quality_loss(reward_chosen: Tensor, reward_rejected: Tensor, delta: float) -> Tensor:
    """BCO: is each response good by itself? All (K,). delta: the reward shift, running mean of the rewards of past steps."""
    good = -F.logsigmoid(reward_chosen - delta)  # L_q+ = -log sigmoid( r(y_c) - delta )
    bad = -F.logsigmoid(-(reward_rejected - delta))  # L_q- = -log sigmoid( -( r(y_r) - delta ) )
    return good + bad  # L_q = L_q+ + L_q-


def generation_loss(logp_chosen: Tensor, length_chosen: Tensor) -> Tensor:
    """SFT: how is the chosen one written? Each response counts the same, however long. All (K,)."""
    return -logp_chosen / length_chosen  # L_g = -log pi(y_c|x) / |y_c|


def loss_weights(objective: str, table: LossTable) -> LossWeights:
    """The weights of a named objective: the recipe's for its terms, 1 for a single term."""
    terms = OBJECTIVES[objective]
    return LossWeights(
        preference=(1.0 if terms.single else table.preference) * terms.preference,
        quality=(1.0 if terms.single else table.quality) * terms.quality,
        generation=(1.0 if terms.single else table.generation) * terms.generation,
        loss_type=terms.loss_type,
        smoothing=table.label_smoothing if terms.smoothing else 0.0,
    )


def combine(
    weights: LossWeights,
    beta: float,
    logps: ResponseLogps,
    reference: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    delta: float,
    shift: Tensor | float = 0.0,
) -> LossTerms:
    """L = w_p L_p + w_q L_q + w_g L_g for each pair.

    reference: (R,) summed log-probs under pi_0. chosen, rejected: (K,) positions among the R responses. shift: (K,) for "aot".
    """
    ratio, mean = logps.sums - reference, logps.sums / logps.lengths  # log pi/pi_0 of the whole response, log pi per token
    reward = beta * ratio  # r(y)
    reward_chosen, reward_rejected = reward[chosen], reward[rejected]
    sides = PreferenceInputs(ratio[chosen], ratio[rejected], mean[chosen], mean[rejected], beta, delta, weights.smoothing, shift)
    preference = PREFERENCE_LOSSES[weights.loss_type](sides)
    quality = quality_loss(reward_chosen, reward_rejected, delta)
    generation = generation_loss(logps.sums[chosen], logps.lengths[chosen])
    terms = ((weights.preference, preference), (weights.quality, quality), (weights.generation, generation))
    # A term without weight is left out rather than multiplied: 0 times an infinite value would be NaN.
    total = sum((weight * term for weight, term in terms if weight > 0), start=reward_chosen.new_zeros(len(chosen)))
    return LossTerms(
        total=total,
        preference=preference,
        quality=quality,
        generation=generation,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
        logp_chosen=logps.sums[chosen],
        logp_rejected=logps.sums[rejected],
    )


def initial_loss(weights: LossWeights, beta: float, logps: ResponseLogps, chosen: Tensor, rejected: Tensor) -> Tensor:
    """(K,) losses while pi = pi_0 and delta = 0, so that all rewards are 0. logps: under pi_0.

    With the paper's weights this is 0.8 ln 2 + 0.2 * 2 ln 2 + the mean of L_g = 0.832 + NLL per token.
    """
    return combine(weights, beta, logps, logps.sums, chosen, rejected, delta=0.0).total
