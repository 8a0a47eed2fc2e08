"""The names of the training objectives and the terms each is made of. Data only: the maths is in `mixpo.train.losses`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which terms of the mixed loss an objective uses, with the recipe's weights ("own" = weight 1 for a single term)."""

    preference: bool = False
    quality: bool = False
    generation: bool = False
    summary: str = ""

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs under the reference policy enter the loss."""
        return self.preference or self.quality


OBJECTIVES = {
    "mpo": Objective(preference=True, quality=True, generation=True, summary="DPO + BCO + SFT with the recipe's weights (arXiv 2411.10442)"),
    "dpo": Objective(preference=True, summary="direct preference optimization alone (arXiv 2305.18290), weight 1"),
    "sft": Objective(generation=True, summary="supervised fine-tuning on the chosen responses, weight 1"),
}
