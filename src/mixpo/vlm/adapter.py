"""LoRA adapters (arXiv 2106.09685): insert, read and write in the format of `peft`, merge into the weights.

The model object stays the one of `transformers`; its adapted layers are those of `peft` until `merge` restores plain ones.
An adapted layer computes W x + scale B A x, with A (rank, inputs) and B (outputs, rank), always in float32.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.errors import MissingExtra, ModelError
from mixpo.vlm.folder import ADAPTER_FILES

FOLDER = "adapter"
"""Subfolder of a trained model, with the adapter merged, that holds the adapter alone."""
NAME = "default"
"""Name that `peft` gives to a single adapter."""

_PREFIX = "base_model.model."
_SIDES = (".lora_A.weight", ".lora_B.weight")
_UNSUPPORTED = (
    "modules_to_save", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "layer_replication", "trainable_token_indices",
    "target_parameters", "fan_in_fan_out",
)  # fmt: skip
"""Settings of `peft` for adapters other than plain LoRA on linear layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """modules: full names of the adapted layers. rooted: scaled by alpha / sqrt(rank) instead of alpha / rank."""

    rank: int
    alpha: float
    modules: tuple[str, ...]
    rooted: bool = False


def layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")}


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter of this model, if any."""
    adapted = layers(model)
    if not adapted:
        return None
    layer = next(iter(adapted.values()))
    rank, alpha = int(layer.r[NAME]), float(layer.lora_alpha[NAME])
    return Adapter(rank=rank, alpha=alpha, modules=tuple(sorted(adapted)), rooted=not math.isclose(layer.scaling[NAME], alpha / rank))


def insert(model: nn.Module, adapter: Adapter) -> None:
    """Insert a new adapter and freeze everything else. B is 0, so outputs do not change; A is sampled from torch's generator.

    The adapter of a model on the meta device is on the CPU, with values. Raises MissingExtra without `peft`.
    """
    peft = _peft("train.lora")
    with warnings.catch_warnings(), _on_cpu(model, adapter.modules):
        # One is about merging an adapted head with tied embeddings, which `merge` handles.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(_config(peft, adapter), model, NAME)
    assert set(layers(model)) == set(adapter.modules), "peft adapted other layers than it was told"
    for parameter in parameters(model).values():
        parameter.data = parameter.data.float()


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A and B of every adapted layer, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of A and B on the CPU, by their names in files."""
    values = parameters(model).items()
    return {_PREFIX + name.replace(f".{NAME}.", "."): value.detach().to("cpu", copy=True).contiguous() for name, value in values}


def attach(model: nn.Module, folder: Path) -> None:
    """Insert the adapter in `folder` into a model. Raises ModelError for one of another model or of another kind than plain LoRA."""
    _peft("model.adapter")
    adapter, values = _read(folder)
    modules = dict(model.named_modules())
    for name in adapter.modules:
        a, b = (values[_PREFIX + name + side].shape for side in _SIDES)
        layer = modules.get(name)
        expected = f"({layer.out_features}, {layer.in_features})" if isinstance(layer, nn.Linear) else "no such linear layer"
        if expected != f"({b[0]}, {a[1]})" or a[0] != adapter.rank or b[1] != adapter.rank:
            raise ModelError(
                f"{folder}: the adapter is of another model: it adapts {name} ({b[0]}, {a[1]}) with rank {a[0]}, and this model has "
                f"{expected} there; set model.path to the model that it was trained on",
                code="adapter-mismatch",
                path=folder,
            )
    insert(model, adapter)
    with torch.no_grad():
        for name, parameter in parameters(model).items():
            parameter.copy_(values[_PREFIX + name.replace(f".{NAME}.", ".")])
            parameter.requires_grad_(False)


def merge(model: Any) -> None:
    """Add the adapter to the weights (in float32, rounded once per layer) and restore the plain layers.

    An output head tied to the embeddings is untied first, because embeddings have no adapter.
    """
    for name, layer in layers(model).items():
        plain = layer.base_layer
        if _owners(model, plain.weight) > 1:
            plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=plain.weight.requires_grad)
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
        with torch.no_grad():
            plain.weight.data = (plain.weight.float() + layer.get_delta_weight(NAME).float()).to(plain.weight.dtype)
        _replace(model, name, plain)
    if hasattr(model, "peft_config"):
        del model.peft_config


def write(folder: Path, adapter: Adapter, values: Mapping[str, Tensor], base: str) -> None:
    """Write an adapter for `PeftModel.from_pretrained`. values: from `tensors`. base: folder of its base model."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = _config(_peft("train.lora"), adapter)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    save_file(dict(values), folder / ADAPTER_FILES[1], metadata={"format": "pt"})


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Context in which the model has its plain layers instead of the adapted ones, so that weights have their names in files."""
    adapted = layers(model)
    for name, layer in adapted.items():
        _replace(model, name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in adapted.items():
            _replace(model, name, layer)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the dropout rate of the adapter's inputs; 0 disables it."""
    for layer in layers(model).values():
        layer.lora_dropout[NAME] = nn.Dropout(rate) if rate else nn.Identity()


# --- parts -----------------------------------------------------------------------------------------------------------


@contextmanager
def _on_cpu(model: nn.Module, modules: Iterable[str]) -> Iterator[None]:
    """Context in which layers on the meta device have weights of one number on the CPU, where `peft` then puts A and B."""
    linear: dict[str, Any] = {name: model.get_submodule(name) for name in modules}
    unread = {name: layer.weight for name, layer in linear.items() if layer.weight.is_meta}
    for name, weight in unread.items():
        one = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        linear[name].weight = nn.Parameter(one, requires_grad=weight.requires_grad)
    try:
        yield
    finally:
        for name, weight in unread.items():
            linear[name].weight = weight


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def _config(peft: Any, adapter: Adapter) -> Any:
    return peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, use_rslora=adapter.rooted, target_modules=list(adapter.modules))


def _peft(key: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra(key, "lora") from None
    return peft


def _read(folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """The adapter in a folder and its tensors by the names in the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings, weights = (folder / name for name in ADAPTER_FILES)
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        rank, alpha, rooted = int(config["r"]), float(config["lora_alpha"]), bool(config.get("use_rslora"))
        kind, unsupported = config.get("peft_type"), [name for name in _UNSUPPORTED if config.get(name)]
        unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"{settings}: not the configuration of a LoRA adapter ({type(error).__name__}: {str(error)[:200]}); save it again",
            code="adapter-config-invalid",
            path=settings,
        ) from None
    try:
        values = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{weights}: cannot be read ({error}); copy or save the adapter again", code="adapter-unreadable", path=weights
        ) from None
    if kind != "LORA" or unsupported:
        raise ModelError(
            f"{settings}: only plain LoRA adapters are supported, not {', '.join([str(kind), *unsupported])}; merge it first",
            code="adapter-not-plain-lora",
            path=settings,
        )
    modules = _modules(weights, values)
    return Adapter(rank=rank, alpha=alpha, modules=modules, rooted=rooted), values


def _modules(weights: Path, values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the adapted layers. Raises ModelError unless the file holds finite A and B of each, and nothing else."""
    names = _stems(values, _SIDES[0])
    odd = [name for name, value in values.items() if not name.startswith(_PREFIX) or not name.endswith(_SIDES) or value.ndim != 2]
    if odd or not names or names != _stems(values, _SIDES[1]):
        which = odd[0] if odd else "its layers"
        raise ModelError(
            f"{weights}: not A and B of linear layers (see {which}); only plain LoRA adapters are supported, merge this one first",
            code="adapter-not-plain-lora",
            path=weights,
        )
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{weights}: {name} holds NaN or infinite values; take an earlier adapter", code="weights-not-finite", path=weights
            )
    return tuple(sorted(names))


def _stems(names: Iterable[str], side: str) -> set[str]:
    return {name.removeprefix(_PREFIX).removesuffix(side) for name in names if name.endswith(side)}


def _owners(model: nn.Module, parameter: nn.Parameter) -> int:
    """How many modules hold this very parameter."""
    return sum(held is parameter for module in model.modules() for held in module._parameters.values())
