"""The loss of Mixed Preference Optimization (MPO, arXiv 2411.10442) and related objectives, as pure functions of tensors.

R responses, K pairs. y_c chosen, y_r rejected, pi the policy, pi_0 the reference, r(y) = beta log(pi(y|x) / pi_0(y|x)) the reward,
h = log(pi/pi_0)(y_c) - log(pi/pi_0)(y_r) the margin of log-ratios, sigma the logistic function. Preference losses are (K,) -> (K,).
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
    """sums: (R,) log pi(y|x) summed over the response's tokens. lengths: (R,) number of these tokens.

    tokens: (A,) log pi of each token, response by response; None where only the sums are known.
    """

    sums: Tensor
    lengths: Tensor
    tokens: Tensor | None = None


class HeldTokens(NamedTuple):
    """What the hold term compares tokens with. reference: (A,) log pi_0 of each. response: (A,) its response, 0 .. R-1.

    held: (A,) bool, False for forks. pairs: (K,) bool, pairs whose chosen response is held.
    """

    reference: Tensor
    response: Tensor
    held: Tensor
    pairs: Tensor


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The weights w_p, w_q and w_g of MPO and w_h of the hold term as applied; a term of weight 0 contributes no gradient.

    loss_type: of the preference term. smoothing: its label smoothing, 0 where it has none. hold_width: see `hold_loss`.
    """

    preference: float
    quality: float
    generation: float
    loss_type: LossType = "dpo"
    smoothing: float = 0.0
    hold: float = 0.0
    hold_width: float = 0.3


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Losses and rewards of K pairs, each (K,). `total` is weighted and has the gradient; the terms are unweighted."""

    total: Tensor
    preference: Tensor
    quality: Tensor
    generation: Tensor
    hold: Tensor
    reward_chosen: Tensor
    reward_rejected: Tensor
    logp_chosen: Tensor
    logp_rejected: Tensor


# --- the preference term ---


class PreferenceInputs(NamedTuple):
    """Inputs of the preference losses. ratio: (K,) log(pi/pi_0) of a response. mean: (K,) log pi per token.

    delta: mean reward of past steps. smoothing: label smoothing. shift: (K,), see `optimal_transport_shift`.
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
    """Conservative DPO: cross-entropy with labels that are correct with probability 1 - e (Mitchell 2023, ericmitchell.ai/cdpo.pdf)."""
    return (1 - smoothing) * dpo(margin, beta) + smoothing * dpo(-margin, beta)


def robust_dpo(margin: Tensor, beta: float, smoothing: float) -> Tensor:
    """Robust DPO, arXiv 2403.00409: unbiased for labels flipped with probability e < 1/2, i.e. its mean is DPO on clean labels."""
    return ((1 - smoothing) * dpo(margin, beta) - smoothing * dpo(-margin, beta)) / (1 - 2 * smoothing)


def ipo(margin: Tensor, tau: float) -> Tensor:
    """Identity preference optimization, arXiv 2310.12036, Eq. 17; log-ratios of whole responses, not per token."""
    return (margin - 1 / (2 * tau)) ** 2


def rso(margin: Tensor, gamma: float) -> Tensor:
    """RSO, the hinge loss on normalised likelihoods, arXiv 2309.06657: max(0, 1 - gamma h)."""
    return torch.relu(1 - gamma * margin)


def sppo(ratio_chosen: Tensor, ratio_rejected: Tensor, eta: float) -> Tensor:
    """Self-play preference optimization, arXiv 2405.00675, Eq. 4.7 with a win probability of 1 for y_c and 0 for y_r."""
    return (ratio_chosen - eta / 2) ** 2 + (ratio_rejected + eta / 2) ** 2


def kto_pair(reward_chosen: Tensor, reward_rejected: Tensor, anchor: float) -> Tensor:
    """Kahneman-Tversky optimization of both responses with weights 1, arXiv 2402.01306.

    anchor: estimate of beta KL(pi, pi_0), without gradient and clamped at 0: the mean reward of past steps, where the paper uses
    responses to other questions.
    """
    z = max(anchor, 0.0)
    return (1 - torch.sigmoid(reward_chosen - z)) + (1 - torch.sigmoid(z - reward_rejected))


def orpo(mean_chosen: Tensor, mean_rejected: Tensor) -> Tensor:
    """The odds ratio term of ORPO, arXiv 2403.07691, Eq. 7: odds = P / (1 - P), P the geometric mean of the token probabilities."""
    return -F.logsigmoid(_log_odds(mean_chosen) - _log_odds(mean_rejected))


def _log_odds(logp: Tensor) -> Tensor:
    # log P - log(1 - P), clamped because P = 1 has infinite odds.
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-6)))


def aot(margin: Tensor, shift: Tensor | float, beta: float) -> Tensor:
    """Alignment via optimal transport, paired form, arXiv 2406.05882: the i-th smallest margin log pi(y_c) - log pi(y_r) is compared
    with the i-th smallest margin of the reference instead of its own pair's. shift: (K,), from `optimal_transport_shift`.
    """
    return dpo(margin + shift, beta)


def optimal_transport_shift(policy: Tensor, reference: Tensor) -> Tensor:
    """(N,) shift of h that compares each policy margin with the reference margin of equal rank. Margins (N,) of a whole step."""
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
    """BCO (arXiv 2404.04656), the quality term of MPO: is each response good on its own? All (K,). delta: the reward shift."""
    good = -F.logsigmoid(reward_chosen - delta)  # L_q+ = -log sigmoid( r(y_c) - delta )
    bad = -F.logsigmoid(-(reward_rejected - delta))  # L_q- = -log sigmoid( -( r(y_r) - delta ) )
    return good + bad  # L_q = L_q+ + L_q-


def generation_loss(logp_chosen: Tensor, length_chosen: Tensor) -> Tensor:
    """SFT, the generation term of MPO: NLL per token of the chosen response. All (K,)."""
    return -logp_chosen / length_chosen  # L_g = -log pi(y_c|x) / |y_c|


def hold_loss(tokens: Tensor, held: HeldTokens, width: float, responses: int) -> Tensor:
    """The hold term of each response, (R,): the distance to the reference, token by token. tokens: (A,) log pi. mixpo's own.

    L_h(y) = sum over the held tokens t of H( log(pi/pi_0)(y_t | x, y_<t) ),  H(z) = z^2 / 2 up to |z| = width, then width (|z| - width / 2)

    A sum, as the reward is: at a token, the pull of the preference term is at most w_p beta and that of the hold term at most w_h width,
    whatever the length of the response.
    """
    ratio = torch.where(held.held, tokens - held.reference, 0.0)
    distance = F.huber_loss(ratio, torch.zeros_like(ratio), reduction="none", delta=width)
    return distance.new_zeros(responses).index_add(0, held.response, distance)


def loss_weights(objective: str, table: LossTable) -> LossWeights:
    """The weights of a named objective: the recipe's for several terms, 1 for a single one."""
    terms = OBJECTIVES[objective]
    return LossWeights(
        preference=(1.0 if terms.single else table.preference) * terms.preference,
        quality=(1.0 if terms.single else table.quality) * terms.quality,
        generation=(1.0 if terms.single else table.generation) * terms.generation,
        loss_type=terms.loss_type,
        smoothing=table.label_smoothing if terms.smoothing else 0.0,
        hold=table.hold if terms.held else 0.0,
        hold_width=table.hold_width,
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
    held: HeldTokens | None = None,
) -> LossTerms:
    """MPO: L = w_p L_p + w_q L_q + w_g L_g of each pair, and w_h L_h(y_c) where tokens are held.

    reference: (R,) summed log-probs under pi_0. chosen, rejected: (K,) indices into the R responses. shift: (K,) for "aot".
    """
    ratio, mean = logps.sums - reference, logps.sums / logps.lengths  # log pi/pi_0 of the whole response, log pi per token
    reward = beta * ratio  # r(y)
    reward_chosen, reward_rejected = reward[chosen], reward[rejected]
    sides = PreferenceInputs(ratio[chosen], ratio[rejected], mean[chosen], mean[rejected], beta, delta, weights.smoothing, shift)
    preference = PREFERENCE_LOSSES[weights.loss_type](sides)
    quality = quality_loss(reward_chosen, reward_rejected, delta)
    generation = generation_loss(logps.sums[chosen], logps.lengths[chosen])
    hold = torch.zeros_like(generation)
    if weights.hold > 0 and held is not None and logps.tokens is not None:
        hold = torch.where(held.pairs, hold_loss(logps.tokens, held, weights.hold_width, len(logps.sums))[chosen], 0.0)
    terms = ((weights.preference, preference), (weights.quality, quality), (weights.generation, generation), (weights.hold, hold))
    # A term of weight 0 is skipped, not multiplied: 0 times infinity is NaN.
    total = sum((weight * term for weight, term in terms if weight > 0), start=reward_chosen.new_zeros(len(chosen)))
    return LossTerms(
        total=total,
        preference=preference,
        quality=quality,
        generation=generation,
        hold=hold,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
        logp_chosen=logps.sums[chosen],
        logp_rejected=logps.sums[rejected],
    )


def initial_loss(weights: LossWeights, beta: float, logps: ResponseLogps, chosen: Tensor, rejected: Tensor) -> Tensor:
    """(K,) losses of the first step, where pi = pi_0, delta = 0 and so all rewards are 0. logps: under pi_0.

    With the paper's weights this is 0.8 ln 2 + 0.2 * 2 ln 2 + the mean of L_g = 0.832 + NLL per token.
    """
    return combine(weights, beta, logps, logps.sums, chosen, rejected, delta=0.0).total
