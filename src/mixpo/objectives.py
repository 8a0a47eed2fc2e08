"""The names of the training objectives and the terms each is made of. Data only: the maths is in `mixpo.train.losses`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which terms of the mixed loss an objective uses: several with the recipe's weights, a single one with weight 1."""

    preference: bool = False
    quality: bool = False
    generation: bool = False
    summary: str = ""

    @property
    def single(self) -> bool:
        """Whether there is one term only."""
        return self.preference + self.quality + self.generation == 1


OBJECTIVES = {
    "mpo": Objective(
        preference=True, quality=True, generation=True, summary="DPO + BCO + SFT with the recipe's weights (arXiv 2411.10442)"
    ),
    "dpo": Objective(preference=True, summary="direct preference optimization alone (arXiv 2305.18290), weight 1"),
    "sft": Objective(generation=True, summary="supervised fine-tuning on the chosen responses, weight 1"),
}
