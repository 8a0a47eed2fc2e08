"""bfloat16 copies of float32 weights, with which a forward pass computes.

Parameters stay in float32 for optimizer, checkpoints and DDP. Autocast would cast the operands of some operations; a copy in the place of
its parameter makes the model compute as if it had been loaded in bfloat16: residual stream, norms and the kernels of experts too.
Gradients pass through the cast and accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_Place = tuple[dict[str, Any], str, Tensor]
"""Parameters of a module, a name among them, and the tensor to put there."""


@contextmanager
def compute_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context in which `model` computes with copies in `dtype`; nothing changes for float32.

    What the family itself computes in float32, such as the router of some experts, keeps its type.
    """
    with _placed([] if dtype == torch.float32 else _copies(model, dtype)):
        yield


def same_weights(module: nn.Module) -> AbstractContextManager[None]:
    """Context with the copies that are in place now, for recomputing activations after `compute_weights` has ended."""
    held = [place for place in _places(module) if not isinstance(place[2], nn.Parameter)]
    return _placed(held)


def stays_float32(model: Any, name: str) -> bool:
    """Whether the family computes this weight in float32 even when it is loaded in bfloat16."""
    return any(word in name for word in getattr(model, "_keep_in_fp32_modules_strict", None) or ())


def _copies(model: nn.Module, dtype: torch.dtype) -> list[_Place]:
    kept = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if stays_float32(model, name)}
    copies: dict[int, Tensor] = {}  # one for weights that are tied
    places = []
    for parameters, name, value in _places(model):
        if value.dtype == torch.float32 and id(value) not in kept:
            if id(value) not in copies:
                copies[id(value)] = value.to(dtype)
            places.append((parameters, name, copies[id(value)]))
    return places


def _places(module: nn.Module) -> Iterator[_Place]:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                yield part._parameters, name, value


@contextmanager
def _placed(places: list[_Place]) -> Iterator[None]:
    before = [(parameters, name, parameters[name]) for parameters, name, _ in places]
    try:
        for parameters, name, value in places:
            parameters[name] = value
        yield
    finally:
        for parameters, name, value in before:
            parameters[name] = value
