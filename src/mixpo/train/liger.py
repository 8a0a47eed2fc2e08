"""Liger kernels in place of norms, rotary positions and gated layers. Its losses are not used: see `mixpo.train.token_logps`."""

from __future__ import annotations

from typing import Any

import torch

from mixpo.errors import MissingExtra, TrainError

WANTED = {
    "rms_norm": True, "swiglu": True, "geglu": True, "rope": True,
    "layer_norm": False, "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip
"""Switches of Liger's functions, of which each family has some."""


def use_liger(model: Any, device: torch.device) -> None:
    """Exchange the layers of `model`. Rotary positions are exchanged for all models of its class in this process.

    Raises TrainError without a GPU or for a family that Liger does not know, MissingExtra when it is not installed.
    """
    if device.type != "cuda":
        raise TrainError("train.liger: its kernels need a GPU; leave it off, or train on one")
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError:
        raise MissingExtra("train.liger", "liger") from None
    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise TrainError(f"train.liger: no kernels for models of type {kind}; leave it off for this model")
    monkey_patch._apply_liger_kernel_to_instance(model, **WANTED)
