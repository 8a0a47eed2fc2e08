"""The loss of Mixed Preference Optimization (arXiv 2411.10442) and its relatives as pure functions. Knows no model and keeps no state.

R responses, K pairs. y_c chosen, y_r rejected, pi the policy, pi_0 the reference, r(y) = beta log(pi(y|x) / pi_0(y|x)) a reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mixpo.objectives import OBJECTIVES, Form
from mixpo.recipe import LossTable
from mixpo.train.forms import FORMS, Sides


class ResponseLogps(NamedTuple):
    """sums: (R,) log pi(y|x) summed over the response's tokens. lengths: (R,) number of these tokens."""

    sums: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """w_p, w_q and w_g as they are applied; a term with weight 0 takes no part in the gradient.

    form: of the preference term. smoothing: the share of pairs that it takes to be the wrong way round, where it uses one.
    """

    preference: float
    quality: float
    generation: float
    form: Form = "dpo"
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


def quality_loss(reward_chosen: Tensor, reward_rejected: Tensor, delta: float) -> Tensor:
    """BCO: is each response good by itself? All (K,). delta: the reward shift, running mean of the rewards of past steps."""
    good = -F.logsigmoid(reward_chosen - delta)  # L_q+ = -log sigmoid( r(y_c) - delta )
    bad = -F.logsigmoid(-(reward_rejected - delta))  # L_q- = -log sigmoid( -( r(y_r) - delta ) )
    return good + bad  # L_q = L_q+ + L_q-


def generation_loss(logp_chosen: Tensor, length_chosen: Tensor) -> Tensor:
    """SFT: how is the chosen one written? Each response counts the same, however long. All (K,)."""
    return -logp_chosen / length_chosen  # L_g = -log pi(y_c|x) / |y_c|


def weights_of(objective: str, table: LossTable) -> Weights:
    """The weights of a named objective: the recipe's for its terms, 1 for a single term."""
    terms = OBJECTIVES[objective]
    return Weights(
        preference=(1.0 if terms.single else table.preference) * terms.preference,
        quality=(1.0 if terms.single else table.quality) * terms.quality,
        generation=(1.0 if terms.single else table.generation) * terms.generation,
        form=terms.form,
        smoothing=table.label_smoothing if terms.smoothing else 0.0,
    )


def combine(
    weights: Weights,
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
    sides = Sides(ratio[chosen], ratio[rejected], mean[chosen], mean[rejected], beta, delta, weights.smoothing, shift)
    preference = FORMS[weights.form](sides)
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


def expected_start(weights: Weights, beta: float, logps: ResponseLogps, chosen: Tensor, rejected: Tensor) -> Tensor:
    """(K,) losses while pi = pi_0 and delta = 0, so that all rewards are 0. logps: under pi_0.

    With the paper's weights this is 0.8 ln 2 + 0.2 * 2 ln 2 + the mean of L_g = 0.832 + NLL per token.
    """
    return combine(weights, beta, logps, logps.sums, chosen, rejected, delta=0.0).total
