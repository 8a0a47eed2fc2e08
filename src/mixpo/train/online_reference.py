"""Online reference: its log-probs are computed in the training step, by swapping in a copy of the initial trained weights.

Only trained weights are copied: the initial adapter (a new one adds nothing, so the reference is then the base model), or else the
weights of the parts that are not frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.objectives import OBJECTIVES
from mixpo.recipe import LossTable
from mixpo.train.batch import Batch
from mixpo.train.losses import ResponseLogps


class OnlineReference:
    """The reference of one training. values: copies of all trained weights, by name."""

    def __init__(self, model: nn.Module, objective: str, table: LossTable) -> None:
        """Copies the current weights; create it before a checkpoint is loaded."""
        self.model = model
        self.values = {name: parameter.detach().to(torch.float32, copy=True) for name, parameter in _trained(model).items()}
        self.moving_reference = OBJECTIVES[objective].moving_reference
        self.table = table

    @property
    def moving_values(self) -> dict[str, Tensor]:
        """The values, if the reference moves and so belongs in checkpoints; else empty."""
        return self.values if self.moving_reference else {}

    def fill(self, scorer: Any, batch: Batch) -> Batch:
        """The batch with the reference log-probs of its responses. scorer: unwrapped, so that no collective is involved."""
        with torch.no_grad(), self._as_reference():
            logps: ResponseLogps = scorer(batch)
        held = batch.held._replace(reference=logps.tokens) if batch.held is not None and logps.tokens is not None else None
        return replace(batch, reference=logps.sums, held=held)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1), TR-DPO (arXiv 2404.09656): pi_0 <- alpha pi + (1 - alpha) pi_0 for every weight."""
        if not self.moving_reference or step % self.table.reference_every:
            return
        for name, parameter in _trained(self.model).items():
            if self.table.reference_alpha == 1:
                self.values[name].copy_(parameter)
            else:
                self.values[name].lerp_(parameter, self.table.reference_alpha)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """The model with the reference's weights and without dropout."""
        trained = _trained(self.model)
        own = {name: parameter.data for name, parameter in trained.items()}
        noisy = [module for module in self.model.modules() if isinstance(module, nn.Dropout) and module.training]
        try:
            for name, parameter in trained.items():
                parameter.data = self.values[name]
            for module in noisy:
                module.eval()
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = own[name]
            for module in noisy:
                module.train()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
