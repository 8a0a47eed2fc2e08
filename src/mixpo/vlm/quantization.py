"""Base weights in 4 bits for QLoRA (arXiv 2305.14314): NF4 with double quantization, by bitsandbytes as `transformers` loads it.

The linear layers of the text model are quantized. Vision tower, projector, embeddings, output head and norms stay in `model.dtype`: they
are a small share of the weights, and errors in them cost more. A quantized layer computes with its dequantized weights in `model.dtype`.
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.errors import MissingExtra, ModelError
from mixpo.vlm.families import configs_of

BLOCK, OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a scale of their own."""
TABLES = 4 * (16 + 1)
"""Further bytes of each layer: the 16 values of NF4, and the mean of its scales."""

_VISION = re.compile(r"vision|visual|image", re.IGNORECASE)


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """The layers to quantize, by name: all linear ones of the text model. Raises ModelError where vision is a part of that."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    whole = decoder is None or decoder is model or decoder is model.base_model
    if whole and any(_VISION.search(key) for key in vars(model.config)):
        raise ModelError(
            f"model.quantization: the text model of {model.config.model_type} is not a module of its own, so mixpo cannot tell what to "
            "quantize; remove the key",
            code="quantization-not-supported",
            key="model.quantization",
        )
    inside, head = set((decoder or model).modules()), model.get_output_embeddings()
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module in inside and module is not head
    }


def loading_options(shapes: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained`. shapes: the model on the meta device. Raises MissingExtra, or ModelError (see `linear_layers`)."""
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingExtra("model.quantization", "bitsandbytes")
    chosen, config = linear_layers(shapes), BitsAndBytesConfig
    made: Any = config(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[name for name, module in shapes.named_modules() if isinstance(module, nn.Linear) and name not in chosen],
    )
    return {"quantization_config": made, "device_map": device}


def prepare(model: nn.Module) -> None:
    """Make quantized layers compute the same in evaluation as in training: on some CPUs bitsandbytes would repack their weights."""
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The quantized layers by name; with an adapter, those inside of the adapted ones."""
    return {name: module for name, module in model.named_modules() if is_quantized(module)}


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer with weights in 4 bits."""
    return isinstance(module, nn.Linear) and getattr(module.weight, "quant_state", None) is not None


def size_of(parameter: Tensor) -> int:
    """How many weights a parameter holds: two in each byte of a quantized one."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def values_of(parameter: Tensor) -> Tensor:
    """The weights of a parameter: dequantized, in the dtype in which they were loaded, or as they are."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    from bitsandbytes import functional

    values: Tensor = functional.dequantize_4bit(parameter.data, state)
    return values


def quantized_bytes(weights: int) -> int:
    """Bytes of a layer with so many weights: 4 bits each, 8 bits for the scale of a block, and the scales of scales."""
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / OUTER_BLOCK) + TABLES


def dequantize(model: Any) -> None:
    """Make a quantized model an ordinary one with the same weights, in place and on the CPU; other models stay as they are.

    The layer of an adapter gets its dequantized weights too, so that the adapter can be merged into them.
    """
    layers = quantized_layers(model)
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(values_of(layer.weight).cpu(), requires_grad=False)
        plain.bias = layer.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain.train(layer.training))
    if layers:
        model.to("cpu")
        for attribute in ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method"):
            vars(model).pop(attribute, None)
        for config in configs_of(model):
            for attribute in ("quantization_config", "_is_quantized"):
                vars(config).pop(attribute, None)


def described(model: nn.Module) -> str:
    """What is quantized, for the log and `mixpo check`; "" for a model that is not."""
    layers = quantized_layers(model)
    if not layers:
        return ""
    inside = sum(size_of(layer.weight) for layer in layers.values())
    whole = sum(size_of(value) for name, value in model.named_parameters() if ".lora_" not in name)
    kept = str(next(value.dtype for value in model.parameters() if value.is_floating_point())).removeprefix("torch.")
    return (
        f"{len(layers)} linear layers of the text model are in 4 bits (NF4, double quantization): {inside:,} of {whole:,} parameters; "
        f"vision, projector, embeddings and output head are in {kept}"
    )
