"""Models on the meta device: shapes and dtypes without values, for plans, and for weights that are read once the model is sharded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from mixpo.errors import ModelError
from mixpo.recipe import ModelTable
from mixpo.vlm.adapter import attach
from mixpo.vlm.folder import find_adapter
from mixpo.vlm.load import DTYPES, Vlm, check_size, check_vocabulary, load, pick_device, read_model
from mixpo.vlm.tokenizer_only import load_tokenizer_only
from mixpo.vlm.transformers_fixes import apply_fixes, loading_errors, quiet

_SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"
"""Variable with which `transformers` does not read weights ahead."""


@dataclass(frozen=True, kw_only=True)
class UnreadWeights:
    """The weights of a model that is on the meta device. source: their folder; folder: as for `mixpo.vlm.load.load`."""

    table: ModelTable
    recipe_folder: Path
    source: Path
    folder: Path | None

    def read(self, model: nn.Module, put: Callable[[str, Tensor], None]) -> None:
        """Read the weights one at a time and give each with its name to `put`, which keeps what it needs of it.

        model: on the meta device, where its weights stay; its buffers are filled. Raises ModelError for weights of another model.
        """
        family = type(model)
        # `from_pretrained` makes its model by calling the class.
        into: Any = type(family.__name__, (family,), {"__new__": lambda cls, *_, **__: model, "__module__": family.__module__})
        with loading_errors(self.source, "model"), quiet(), _one_at_a_time(put):
            read_model(into, self.source, self.table)

    def whole(self) -> Any:
        """The whole model, loaded as usual. Raises as `mixpo.vlm.load.load`."""
        return load(self.table, self.recipe_folder, self.folder).model


def load_shapes(table: ModelTable, recipe_folder: Path, folder: Path | None = None) -> Vlm:
    """Like `load_tokenizer_only`, with a model on the meta device: it has shapes and dtypes, but no values. Raises ModelError."""
    from transformers import AutoModelForImageTextToText

    vlm, loader = load_tokenizer_only(table, recipe_folder, folder), AutoModelForImageTextToText
    with loading_errors(vlm.folder or recipe_folder, "model"), quiet(), torch.device("meta"):
        made: Any = loader.from_config(vlm.model.config, trust_remote_code=table.trust_remote_code, dtype=DTYPES[table.dtype])  # type: ignore[no-untyped-call]
    apply_fixes(made)
    return replace(
        vlm, model=made.eval(), device=torch.device("meta"), trust_remote_code=table.trust_remote_code, quantization=table.quantization
    )


def load_unread(table: ModelTable, recipe_folder: Path, folder: Path | None = None) -> Vlm:
    """Like `mixpo.vlm.load.load`, with the weights of the model (not of its adapter) unread. Raises ModelError, also for quantized ones."""
    if table.quantization:
        raise ModelError(
            "model.quantization: weights in 4 bits cannot be sharded; launch with plain data parallel, or remove the key",
            code="quantization-not-sharded",
            key="model.quantization",
        )
    vlm = load_shapes(table, recipe_folder, folder)
    assert vlm.folder is not None
    with loading_errors(vlm.folder, "model"):
        check_size(vlm.model, vlm.folder)
        check_vocabulary(vlm.model, vlm.processor.tokenizer, vlm.folder)
        if folder is None and (adapter := find_adapter(table, recipe_folder)) is not None:
            attach(vlm.model, adapter)
    vlm.device = pick_device(table.device)
    vlm.unread = UnreadWeights(table=table, recipe_folder=recipe_folder, source=vlm.folder, folder=folder)
    return vlm


@contextmanager
def _one_at_a_time(put: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Context in which `transformers` reads and converts one weight after another and a model gets each on the meta device."""
    from transformers import core_model_loading

    loading: Any = core_model_loading
    plain, before = loading.set_param_for_module, os.environ.get(_SEQUENTIAL)

    def set_parameter(model: Any, name: str, value: Any, *rest: Any) -> None:
        plain(model, name, value, *rest)
        module, _, leaf = name.rpartition(".")
        weights = model.get_submodule(module)._parameters
        if weights.get(leaf) is not None and not weights[leaf].is_meta:
            put(name, weights[leaf].detach())
            weights[leaf] = nn.Parameter(weights[leaf].detach().to("meta"), weights[leaf].requires_grad)
            weights[leaf]._is_hf_initialized = True

    loading.set_param_for_module, os.environ[_SEQUENTIAL] = set_parameter, "1"
    try:
        yield
    finally:
        loading.set_param_for_module = plain
        os.environ.pop(_SEQUENTIAL)
        if before is not None:
            os.environ[_SEQUENTIAL] = before


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context in which a model on the meta device runs on floats without values and on integers and masks with them."""
    with _ShapesOnly():  # type: ignore[no-untyped-call]
        yield


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves the other tensors of an operation to the meta device where one is there.

    Integers stay on the CPU as long as they can: their values (sizes of grids, places of image tokens) decide shapes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta" and _whole_numbers(func, args, kwargs):
            kwargs["device"] = torch.device("cpu")
        values, form = tree_flatten((args, kwargs))
        if any(isinstance(value, Tensor) and value.is_meta for value in values):
            ops = torch.ops.aten
            if func is ops._grouped_mm.default:  # its meta kernel takes bfloat16 only
                return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
            if func in (ops.index.Tensor, ops.index_put.default, ops.index_put_.default):
                args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
                values, form = tree_flatten((args, kwargs))
            values = [
                torch.empty_like(value, device="meta") if isinstance(value, Tensor) and value.ndim and not value.is_meta else value
                for value in values
            ]
        moved, named = tree_unflatten(values, form)
        return func(*moved, **named)


def _whole_numbers(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation makes integers, or a mask, of values that are known."""
    source = args[0] if args and isinstance(args[0], Tensor) else None
    if source is not None and source.is_meta:
        return False
    dtype = kwargs.get("dtype") or (source.dtype if source is not None else None)
    if dtype is None:
        return func.overloadpacket is torch.ops.aten.arange and all(isinstance(value, int) for value in args)
    return not dtype.is_floating_point


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as the indices of its places; one without values as that of all places. Other indices as they are."""
    if index is None or index.dtype != torch.bool:
        return (index,)
    known = torch.ones(index.shape, dtype=torch.bool) if index.is_meta else index
    return known.nonzero().unbind(1)
