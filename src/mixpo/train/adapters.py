"""What is trained: all weights, some parts, or a LoRA adapter. Checked before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mixpo.errors import TrainError
from mixpo.plural import amount
from mixpo.recipe import LoraTable, TrainTable, did_you_mean
from mixpo.train.batch import Batch
from mixpo.train.logps import Scorer
from mixpo.train.losses import ResponseLogps
from mixpo.train.model import PartSize, freeze, weight_dtypes
from mixpo.train.parts import OWNERS, ModelParts, Owner, find_parts, image_flow
from mixpo.vlm import adapter as lora
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt
from mixpo.vlm.quantization import dequantize, is_quantized, quantized_layers, size_of

MERGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest change of a response's mean log-prob per token by merging; allows for rounding of the weights only."""


def prepare_trainable(
    vlm: Vlm, table: TrainTable, seed: int, prompt: EncodedPrompt | None = None
) -> tuple[list[PartSize], dict[str, torch.dtype]]:
    """Prepare the model for training; returns the sizes of its parts and the original dtypes of its weights.

    Without `train.lora`, all weights except frozen parts are trained; an adapter loaded with the model is merged first. With it, the
    loaded adapter (or a new one) is trained. Dtypes stay as they are. prompt: one with an image, which shows what the
    image features flow through (see `find_parts`). Raises TrainError for unsuitable settings.
    """
    model = vlm.model
    if table.lora is None and quantized_layers(model):
        raise TrainError(
            "model.quantization: weights in 4 bits cannot be trained; add [train.lora], or remove the key",
            code="quantized-without-lora",
            key="model.quantization",
        )
    parts = find_parts(model, image_flow(vlm, prompt) if prompt is not None else None)
    dtypes = weight_dtypes(model)
    if table.lora is None:
        for layer in lora.layers(model).values():
            layer.base_layer.weight.data = layer.base_layer.weight.data.float()
        lora.merge(model)
        return freeze(model, table.freeze, parts), dtypes
    present = lora.adapter_of(model)
    if present is None:
        names = target_layers(model, table.lora, parts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lora.insert(model, lora.Adapter(rank=table.lora.rank, alpha=table.lora.alpha, modules=names))
    else:
        _check_recipe(model, present, table.lora, parts)
    model.requires_grad_(False)
    for parameter in lora.parameters(model).values():
        parameter.requires_grad_(True)
    return _sizes(model, parts), dtypes


def can_stay_unread(vlm: Vlm, table: TrainTable, prompt: EncodedPrompt | None) -> bool:
    """Whether a model on the meta device can be prepared as it is: nothing is merged into it, and its image features flow there too."""
    merges = table.lora is None and lora.adapter_of(vlm.model) is not None
    return not merges and (prompt is None or image_flow(vlm, prompt) is not None)


def target_layers(model: nn.Module, table: LoraTable, parts: ModelParts | None = None) -> tuple[str, ...]:
    """Full names of the linear layers to adapt: those of `table.parts`, restricted to `table.modules` if any are given.

    The output head is adapted only if named. parts: by structure alone where not given. Raises TrainError for a part without linear
    layers or that cannot be told from another, and for a name without a match.
    """
    parts = parts or find_parts(model)
    adapted, head = lora.layers(model), model.get_output_embeddings()  # type: ignore[operator]
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear or is_quantized(module)]
    candidates = [name for name in linear if not _is_adapter_part(name)] + list(adapted)
    candidates = [name for name in candidates if parts.among(name, table.parts, "train.lora.parts")]
    for part in table.parts:
        if not any(part in parts.of(name) for name in candidates):
            raise TrainError(
                f"train.lora.parts: {type(model).__name__} has no linear layers that mixpo knows as its {part}; remove it from the list",
                code="lora-part-unknown",
                key="train.lora.parts",
            )
    for wanted in table.modules:
        if not any(_matches(name, wanted) for name in candidates):
            known = sorted({name.rpartition(".")[2] for name in candidates})
            raise TrainError(
                f"train.lora.modules: {wanted!r} matches no linear layer of {', '.join(table.parts)}{did_you_mean(wanted, known)}; "
                f"there are {', '.join(known)}",
                code="lora-module-unknown",
                key="train.lora.modules",
            )
    if not table.modules:
        return tuple(sorted(name for name in candidates if model.get_submodule(name) is not head))
    return tuple(sorted(name for name in candidates if any(_matches(name, wanted) for wanted in table.modules)))


def merge_checked(vlm: Vlm, make_batch: Callable[[], Batch], precision: torch.dtype) -> Callable[[Path], None]:
    """Merge the trained adapter into the weights; returns a function that writes the adapter into the merged model's folder.

    Quantized weights are dequantized first, on the CPU, which then is the device of `vlm`. make_batch: collates real responses in the
    single layout. Raises TrainError if merging changes their log-probs.
    """
    trained, values, before = lora.adapter_of(vlm.model), lora.tensors(vlm.model), _mean_logps(vlm, make_batch(), precision)
    assert trained is not None
    dequantize(vlm.model)
    vlm.device, vlm.quantization = next(vlm.model.parameters()).device, None
    lora.merge(vlm.model)
    gap = float((_mean_logps(vlm, make_batch(), precision) - before).abs().max())
    if not gap <= MERGE_TOLERANCE[precision]:  # true for NaN
        raise TrainError(
            f"the merged weights change log-probs by {gap:.2g} per token, so they do not represent the adapter; nothing was saved, "
            'set model.dtype = "float32" and run the same command again',
            code="merge-changes-logprobs",
        )
    base = str(vlm.folder.absolute()) if vlm.folder else ""
    return lambda folder: lora.write(folder / lora.FOLDER, trained, values, base)


@torch.no_grad()
def _mean_logps(vlm: Vlm, batch: Batch, precision: torch.dtype) -> torch.Tensor:
    """(R,) mean log-prob per token."""
    logps: ResponseLogps = Scorer(vlm.model, "single", precision)(batch)
    return (logps.sums / logps.lengths).cpu()


# --- parts -----------------------------------------------------------------------------------------------------------


def _is_adapter_part(name: str) -> bool:
    return ".lora_" in name or name.endswith(".base_layer")


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _check_recipe(model: nn.Module, present: lora.Adapter, table: LoraTable, parts: ModelParts) -> None:
    """Raise TrainError when the recipe describes another adapter than the loaded one."""
    for key, actual, asked in (("rank", present.rank, table.rank), ("alpha", present.alpha, table.alpha)):
        if actual != asked:
            raise TrainError(
                f"train.lora.{key} is {asked:g}, but model.adapter has {actual:g}; set it to {actual:g} to continue training that adapter",
                code="lora-setting-mismatch",
                key=f"train.lora.{key}",
            )
    wanted = set(target_layers(model, table, parts))
    if odd := sorted(wanted ^ set(present.modules)):
        has = "is not adapted" if odd[0] in wanted else "is adapted"
        raise TrainError(
            f"train.lora.parts and .modules name other layers than model.adapter has ({odd[0]} {has} there, "
            f"{amount(len(odd), 'such layer')}); set them to the layers of that adapter",
            code="lora-layers-mismatch",
            key="train.lora",
        )


def _sizes(model: nn.Module, parts: ModelParts) -> list[PartSize]:
    sizes: dict[Owner, list[int]] = {part: [0, 0] for part in OWNERS}
    for name, parameter in model.named_parameters():
        owner = next(owner for owner in sizes if owner in parts.of(name))
        sizes[owner][parameter.requires_grad] += size_of(parameter)
    return [PartSize(part, frozen, trained, adapter=True) for part, (frozen, trained) in sizes.items() if frozen or part != "other"]
