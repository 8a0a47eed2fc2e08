"""Memory of a training on one rank, by part, from the shapes of a model on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mixpo.recipe import TrainTable
from mixpo.train.adapters import prepare_trainable
from mixpo.train.attention_patch import attention_replaced, tree_attention_enabled
from mixpo.train.compute_weights import compute_weights
from mixpo.train.logps import cast_inputs
from mixpo.train.model import compute_dtype, optimizer_bytes
from mixpo.train.token_logps import FULL_LOGITS_BYTES
from mixpo.train.tree_attention import AttentionOptions, AttentionPlan
from mixpo.vlm.inputs import positions_like
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt
from mixpo.vlm.quantization import linear_layers, quantized_bytes
from mixpo.vlm.shapes import shapes_only

HEAD_COPIES = 3
"""Tensors of the size of the float32 logits that the output head holds at once: logits, log-probs and their gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on one rank while a micro-batch is computed. Parts in SHARDED are divided by the number of ranks with FSDP2.

    weights: in the dtype of the computation; quantized ones in 4 bits, with the largest layer dequantized. masters: float32 weights next to
    them. activations, vision: what the forward passes of the text model and of the vision tower with its projector keep for the backward
    pass. head: at most, for logits.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    vision: int
    head: int

    SHARDED: ClassVar = ("weights", "masters", "gradients", "optimizer")

    @property
    def sharded(self) -> int:
        """Weights, gradients and optimizer."""
        return sum(getattr(self, name) for name in self.SHARDED)

    @property
    def total(self) -> int:
        """All parts."""
        return self.sharded + self.activations + self.vision + self.head


def plan_memory(vlm: Vlm, table: TrainTable, prompts: int, prompt: EncodedPrompt | None) -> MemoryPlan:
    """The memory of training `vlm`, whose model is on the meta device, with rows of `table.tokens_per_batch` tokens.

    prompts: such prompts of a row. prompt: one with images, for the size of their features. Raises one of `MODEL_ERRORS` where the family
    cannot run on the meta device.
    """
    model = vlm.model.train()
    quantized = [layer.weight.numel() for layer in linear_layers(model).values()] if vlm.quantization else []
    _, dtypes = prepare_trainable(vlm, table, seed=0)
    model.to("meta")  # the adapter too
    precision = compute_dtype(dtypes)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    element = torch.empty((), dtype=precision).element_size()
    logits = table.tokens_per_batch * int(model.get_output_embeddings().weight.shape[0]) * 4
    return MemoryPlan(
        weights=(sum(parameter.numel() for parameter in model.parameters()) - sum(quantized) + max(quantized, default=0)) * element
        + sum(map(quantized_bytes, quantized)),
        masters=0 if precision == torch.float32 else 4 * trained,
        gradients=4 * trained,
        optimizer=sum(optimizer_bytes(parameter, table) for parameter in model.parameters() if parameter.requires_grad),
        activations=_text_bytes(vlm, table, precision),
        vision=0 if prompt is None else prompts * _vision_bytes(vlm, table, precision, prompt),
        head=HEAD_COPIES * min(logits, FULL_LOGITS_BYTES),
    )


def _text_bytes(vlm: Vlm, table: TrainTable, precision: torch.dtype) -> int:
    ids = torch.zeros((1, table.tokens_per_batch), dtype=torch.long, device="meta")
    plan = cast(AttentionPlan, _FusedAttention(table.tokens_per_batch))
    with compute_weights(vlm.model, precision), tree_attention_enabled(vlm.model), _saved(vlm.model) as saved:
        vlm.model.base_model(input_ids=ids, position_ids=positions_like(vlm, ids), attention_plan=plan, use_cache=False)
    return saved.bytes(table.gradient_checkpointing)


def _vision_bytes(vlm: Vlm, table: TrainTable, precision: torch.dtype, prompt: EncodedPrompt) -> int:
    """Of the images of one prompt. Integers, such as the size of a grid, stay on the CPU: their values decide shapes."""
    features = {name: value.to("meta") if value.is_floating_point() else value for name, value in prompt.features.items()}
    with compute_weights(vlm.model, precision), attention_replaced(vlm.model, _fused_attention), _saved(vlm.model) as saved, shapes_only():
        vlm.model.base_model.get_image_features(**cast_inputs(features, precision), return_dict=True)
    return saved.bytes(table.gradient_checkpointing)


# --- attention as fused kernels do it --------------------------------------------------------------------------------------


class _Fused(torch.autograd.Function):
    """Keeps what FlashAttention keeps: its inputs, its output and one number for each query. (..., T, H, D) -> (..., T, H, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("only memory is planned")


class _FusedAttention:
    """Stands for an `AttentionPlan`."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return self._tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        return cast(Tensor, _Fused.apply(query, key, value))


def _fused_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> tuple[Tensor, None]:
    return cast(Tensor, _Fused.apply(*(part.transpose(1, 2).contiguous() for part in (query, key, value)))), None


# --- what a forward pass keeps ---------------------------------------------------------------------------------------------


class _Saved:
    """Storages that autograd keeps, each counted once, and those of parameters not at all. layers: bytes of each recomputable layer."""

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, Any] = {value.untyped_storage()._cdata: value for value in model.parameters()}
        self._all = 0
        self._layers: list[int] = []
        self._inputs = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._kept:
            self._kept[storage._cdata] = tensor
            self._all += storage.nbytes()
        return tensor

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self._layers.append(-self._all)
        self._inputs += sum(value.untyped_storage().nbytes() for value in inputs if isinstance(value, Tensor))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._layers[-1] += self._all

    def bytes(self, checkpointed: bool) -> int:
        """checkpointed: only the inputs of layers are kept, and one layer is recomputed at a time."""
        if not checkpointed or not self._layers:
            return self._all
        return self._all - sum(self._layers) + self._inputs + max(self._layers)


@contextmanager
def _saved(model: nn.Module) -> Iterator[_Saved]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    saved = _Saved(model)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = [layer.register_forward_pre_hook(saved.enter) for layer in layers]
    handles += [layer.register_forward_hook(saved.leave) for layer in layers]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            yield saved
    finally:
        for handle in handles:
            handle.remove()
