"""The model as the optimizer sees it: parts to freeze, dtypes, parameter groups, learning rate; Liger kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mixpo.errors import MissingExtra, TrainError
from mixpo.recipe import Part, TrainTable
from mixpo.train.attention_patch import checkpoint_contexts
from mixpo.train.parts import OWNERS, ModelParts, Owner, find_parts


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameter counts of a part. adapter: `trained` counts adapter weights, which are not part of `total`."""

    part: Owner
    total: int
    trained: int
    adapter: bool = False

    def __str__(self) -> str:
        if self.adapter and self.trained:
            return f"{self.part} {self.total:,} parameters (frozen) with an adapter of {self.trained:,} (trained)"
        state = "trained" if self.trained == self.total else "frozen" if self.trained == 0 else f"{self.trained:,} trained"
        return f"{self.part} {self.total:,} parameters ({state})"


def freeze(model: nn.Module, parts: Sequence[Part], model_parts: ModelParts | None = None) -> list[PartSize]:
    """Freeze `parts`, and what neither images nor text flow through; train the rest. Returns the sizes of all parts.

    model_parts: by structure alone where not given. Raises TrainError when a part has no parameters in this model or cannot be told
    from another, or when everything is frozen.
    """
    model_parts = model_parts or find_parts(model)
    frozen = [*parts, "other"]
    sizes: dict[Owner, int] = dict.fromkeys(OWNERS, 0)
    for name, parameter in model.named_parameters():
        is_frozen = model_parts.among(name, frozen, "train.freeze")
        parameter.requires_grad_(not is_frozen)
        owners = model_parts.of(name)
        sizes[next(owner for owner in sizes if owner in owners and (owner in frozen) == is_frozen)] += parameter.numel()
    for part in parts:
        if sizes[part] == 0:
            raise TrainError(
                f"train.freeze: {type(model).__name__} has no parameters that mixpo knows as its {part}; remove it from the list",
                code="freeze-unknown-part",
                key="train.freeze",
            )
    if all(part in frozen or size == 0 for part, size in sizes.items()):
        raise TrainError(
            "train.freeze: every part is frozen, so there is nothing to train; remove one", code="freeze-everything", key="train.freeze"
        )
    return [PartSize(part, size, 0 if part in frozen else size) for part, size in sizes.items() if size or part != "other"]


def refuse_dropout(model: nn.Module) -> None:
    """Raise TrainError for a model with dropout.

    Reference and policy must be equal at step 0, and responses of one question share computations.
    """
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            is_rate = "drop" in attribute or (attribute == "p" and "Dropout" in type(module).__name__)
            if is_rate and isinstance(value, float) and value > 0:
                raise TrainError(
                    f"dropout is on in this model ({name}.{attribute} = {value:g}), which makes rewards random; set it to 0 in config.json",
                    code="dropout-enabled",
                )


def use_master_weights(model: nn.Module) -> None:
    """Convert trained weights to float32, because updates of 1e-6 vanish in bfloat16. `compute_weights` computes with copies.

    Of a sharded model, only this rank's share is converted.
    """
    for parameter in [value for value in model.parameters() if value.requires_grad and value.dtype != torch.float32]:
        if isinstance(parameter, DTensor):  # its `data` would keep the local tensor
            torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().float()))  # type: ignore[no-untyped-call]
        else:
            parameter.data = parameter.data.float()


def weight_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of each weight by its name without an adapter. Raises TrainError for float16, whose gradients overflow."""
    dtypes = {plain_name(name): parameter.dtype for name, parameter in model.named_parameters() if ".lora_" not in name}
    if torch.float16 in dtypes.values():
        raise TrainError(
            'model.dtype = "float16" cannot be trained; set it to "bfloat16" or "float32"', code="float16-not-trainable", key="model.dtype"
        )
    return dtypes


def plain_name(name: str) -> str:
    """The name of a weight as it is without an adapter."""
    return name.replace(".base_layer.", ".")


def restore_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Undo `use_master_weights`. Adapters stay in float32."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(plain_name(name), parameter.dtype))


def compute_dtype(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """The dtype of the computation: that of the weights on disk."""
    return torch.bfloat16 if torch.bfloat16 in dtypes.values() else torch.float32


def checkpoint_activations(model: Any, on: bool) -> None:
    """Switch activation checkpointing on or off. Raises TrainError for a model that does not support it."""
    word = "enable" if on else "disable"
    # The second name is that of older transformers releases.
    names = (f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}")
    switch = next(getattr(model, name) for name in names if hasattr(model, name))
    try:
        switch({"use_reentrant": False, "context_fn": checkpoint_contexts(model)}) if on else switch()
    except ValueError as error:
        raise TrainError(
            f"train.gradient_checkpointing: {error}; leave it off for this model",
            code="gradient-checkpointing-not-supported",
            key="train.gradient_checkpointing",
        ) from None


LIGER_SWITCHES = {
    "rms_norm": True, "swiglu": True, "geglu": True, "rope": True,
    "layer_norm": False, "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip
"""Options of Liger's patch functions; each family supports some. Its losses are not used: see `mixpo.train.token_logps`."""


def use_liger(model: Any, device: torch.device) -> None:
    """Patch norms, rotary embeddings and gated layers of `model`; rotary embeddings for all models of its class in this process.

    Raises TrainError without a GPU or for an unsupported family, MissingExtra when Liger is not installed.
    """
    if device.type != "cuda":
        raise TrainError("train.liger: its kernels need a GPU; leave it off, or train on one", code="liger-needs-gpu", key="train.liger")
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError:
        raise MissingExtra("train.liger", "liger") from None
    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise TrainError(
            f"train.liger: no kernels for models of type {kind}; leave it off for this model", code="liger-not-supported", key="train.liger"
        )
    monkey_patch._apply_liger_kernel_to_instance(model, **LIGER_SWITCHES)


def build_optimizer(model: nn.Module, table: TrainTable) -> torch.optim.Optimizer:
    """AdamW without weight decay for biases, norms and other vectors. Raises MissingExtra without the library of `table.optimizer`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": table.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"lr": table.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
    if table.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **options)
    try:
        import bitsandbytes
    except ImportError:
        raise MissingExtra('train.optimizer = "adamw_8bit"', "bitsandbytes") from None
    library: Any = bitsandbytes
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(
        [group for group in groups if group["params"]], min_8bit_size=MIN_8BIT_SIZE, **options
    )
    return optimizer


MIN_8BIT_SIZE = 4096
"""Parameters with fewer numbers have moments in float32, with "adamw_8bit" too."""
BLOCK_8BIT = 256
"""Numbers that share a scale in 8 bits."""


def optimizer_bytes(parameter: Tensor, table: TrainTable) -> int:
    """Bytes of both moments of a trained parameter."""
    if table.optimizer == "adamw" or parameter.numel() < MIN_8BIT_SIZE:
        return 8 * parameter.numel()
    return 2 * (parameter.numel() + 4 * math.ceil(parameter.numel() / BLOCK_8BIT))


def learning_rate(table: TrainTable, step: int, total: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`; stateless, so checkpoints hold no scheduler."""
    warmup = math.ceil(table.warmup * total)
    if step < warmup:
        return table.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return table.learning_rate * shapes[table.schedule]
