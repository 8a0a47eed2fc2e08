"""The training objectives and their terms, as data; the losses are in `mixpo.train.losses`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

LossType = Literal["dpo", "cdpo", "robust_dpo", "ipo", "rso", "sppo", "kto_pair", "orpo", "aot"]
"""The preference loss: a key of `mixpo.train.losses.PREFERENCE_LOSSES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which terms of the mixed loss an objective uses: several with the recipe's weights, a single one with weight 1.

    loss_type: of the preference term. smoothing: whether it uses `train.loss.label_smoothing`. moving_reference: whether the
    reference follows the policy (`train.loss.reference_alpha`, `train.loss.reference_every`).
    """

    preference: bool = False
    quality: bool = False
    generation: bool = False
    loss_type: LossType = "dpo"
    smoothing: bool = False
    moving_reference: bool = False
    summary: str = ""

    @property
    def single(self) -> bool:
        """Whether it has one term only."""
        return self.preference + self.quality + self.generation == 1

    @property
    def held(self) -> bool:
        """Whether `train.loss.hold` is added to it."""
        return self.preference or self.quality

    @property
    def beta(self) -> bool:
        """Whether the loss depends on `train.loss.beta`."""
        return self.quality or (self.preference and self.loss_type != "orpo")


_SINGLE = {
    "dpo": Objective(preference=True, summary="direct preference optimization alone (arXiv 2305.18290, Eq. 7)"),
    "cdpo": Objective(
        preference=True, loss_type="cdpo", smoothing=True, summary="DPO that assumes a share `label_smoothing` of flipped pairs"
    ),
    "robust_dpo": Objective(
        preference=True, loss_type="robust_dpo", smoothing=True, summary="the same, with an unbiased loss (arXiv 2403.00409)"
    ),
    "ipo": Objective(preference=True, loss_type="ipo", summary="identity preference optimization, tau = `beta` (arXiv 2310.12036, Eq. 17)"),
    "rso": Objective(preference=True, loss_type="rso", summary="hinge loss on the reward margin, as in RSO (arXiv 2309.06657)"),
    "sppo": Objective(
        preference=True,
        loss_type="sppo",
        summary="self-play preference optimization, hard labels, eta = 1 / `beta` (arXiv 2405.00675, Eq. 4.7)",
    ),
    "kto_pair": Objective(
        preference=True,
        loss_type="kto_pair",
        summary="KTO value function of both sides (arXiv 2402.01306), with the mean reward of past steps as KL term",
    ),
    "aot": Objective(
        preference=True,
        loss_type="aot",
        summary="alignment via optimal transport: margins sorted over the step, paired form (arXiv 2406.05882); one more forward pass",
    ),
    "tr_dpo": Objective(
        preference=True,
        moving_reference=True,
        summary="DPO whose reference follows the policy by `reference_alpha` every `reference_every` steps (arXiv 2404.09656)",
    ),
    "bco": Objective(quality=True, summary="binary classifier optimization with the running reward shift (arXiv 2404.04656)"),
}


def _table() -> dict[str, Objective]:
    table = {
        "mpo": Objective(
            preference=True, quality=True, generation=True, summary="DPO + BCO + SFT with the recipe's weights (arXiv 2411.10442)"
        ),
        "sft": Objective(generation=True, summary="supervised fine-tuning on the chosen responses, weight 1"),
        "orpo": Objective(
            preference=True,
            generation=True,
            loss_type="orpo",
            summary="SFT + odds ratio without a reference (arXiv 2403.07691, Eq. 6); `preference` is its lambda, 0.1 there",
        ),
    }
    for name, objective in _SINGLE.items():
        table[name] = replace(objective, summary=f"{objective.summary}, weight 1")
        table[f"{name}+sft"] = replace(objective, generation=True, summary=f"`{name}` and `sft` with the recipe's weights")
    return table


OBJECTIVES = _table()
