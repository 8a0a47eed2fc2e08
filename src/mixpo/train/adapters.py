"""What is trained: all weights, some parts of them, or an adapter. Decided and checked before the first step."""

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
from mixpo.train.model import PARTS, PartSize, freeze, part_of, use_master_weights, weight_dtypes
from mixpo.vlm import adapter as lora
from mixpo.vlm.load import Vlm

MERGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far merging may move a response's mean log-prob per token: rounding of the weights, nothing else."""

FOLDER = "adapter"
"""Where a trained adapter lies in the folder of its merged model."""


def prepare_trainable(vlm: Vlm, table: TrainTable, seed: int) -> tuple[list[PartSize], dict[str, torch.dtype]]:
    """Make the model ready to train; returns the sizes of its parts and the types its weights had.

    Without `train.lora` all weights but the frozen ones are trained, in float32, with an adapter that the model came with merged
    into them. With it, that adapter is trained on, or else a new one that changes nothing yet; the weights keep their types.
    Raises TrainError for settings that do not suit the model.
    """
    model = vlm.model
    if table.lora is None:
        dtypes = use_master_weights(model)
        lora.merge(model)
        return freeze(model, table.freeze), dtypes
    dtypes = weight_dtypes(model)
    present = lora.adapter_of(model)
    if present is None:
        names = target_layers(model, table.lora)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lora.insert(model, lora.Adapter(rank=table.lora.rank, alpha=table.lora.alpha, modules=names))
    else:
        _check_recipe(model, present, table.lora)
    model.requires_grad_(False)
    for parameter in lora.parameters(model).values():
        parameter.requires_grad_(True)
    return _sizes(model), dtypes


def target_layers(model: nn.Module, table: LoraTable) -> tuple[str, ...]:
    """Full names of the layers to adapt: linear ones of the parts that have one of the names, if any are given.

    The output head is one only if it is named. Raises TrainError for a part without linear layers and a name that matches none.
    """
    adapted, head = lora.layers(model), model.get_output_embeddings()  # type: ignore[operator]
    found = [name for name, module in model.named_modules() if type(module) is nn.Linear and not _is_adapter_part(name)] + list(adapted)
    found = [name for name in found if part_of(name) in table.parts]
    for part in table.parts:
        if not any(part_of(name) == part for name in found):
            raise TrainError(f"train.lora.parts: {type(model).__name__} has no linear layers that mixpo knows as its {part}; leave it out")
    for wanted in table.modules:
        if not any(_matches(name, wanted) for name in found):
            known = sorted({name.rpartition(".")[2] for name in found})
            raise TrainError(
                f"train.lora.modules: {wanted!r} matches no linear layer of {', '.join(table.parts)}{did_you_mean(wanted, known)}; "
                f"there are {', '.join(known)}"
            )
    if not table.modules:
        return tuple(sorted(name for name in found if model.get_submodule(name) is not head))
    return tuple(sorted(name for name in found if any(_matches(name, wanted) for wanted in table.modules)))


def merge_checked(vlm: Vlm, batch: Batch, precision: torch.dtype) -> Callable[[Path], None]:
    """Merge the trained adapter into the weights; returns what writes the adapter itself into the folder of the merged model.

    batch: of some real responses in the plain layout, whose log-probs must stay. Raises TrainError if they do not.
    """
    trained, values, before = lora.adapter_of(vlm.model), lora.tensors(vlm.model), _mean_logps(vlm, batch, precision)
    assert trained is not None
    lora.merge(vlm.model)
    gap = float((_mean_logps(vlm, batch, precision) - before).abs().max())
    if not gap <= MERGE_TOLERANCE[precision]:  # true for NaN
        raise TrainError(
            f"the merged weights change log-probs by {gap:.2g} per token, so they do not stand for the adapter; it was not saved, "
            'set model.dtype = "float32" and run the same command again'
        )
    base = str(vlm.folder.absolute()) if vlm.folder else ""
    return lambda folder: lora.write(folder / FOLDER, trained, values, base)


@torch.no_grad()
def _mean_logps(vlm: Vlm, batch: Batch, precision: torch.dtype) -> torch.Tensor:
    """(R,) per token."""
    logps: ResponseLogps = Scorer(vlm.model, "plain", precision)(batch)
    return logps.sums / logps.lengths


# --- parts -----------------------------------------------------------------------------------------------------------


def _is_adapter_part(name: str) -> bool:
    return ".lora_" in name or name.endswith(".base_layer")


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _check_recipe(model: nn.Module, present: lora.Adapter, table: LoraTable) -> None:
    """The recipe must say what the adapter is that training goes on with."""
    for key, found, asked in (("rank", present.rank, table.rank), ("alpha", present.alpha, table.alpha)):
        if found != asked:
            raise TrainError(
                f"train.lora.{key} is {asked:g}, but the adapter in model.adapter has {found:g}; set it to {found:g} to go on with that one"
            )
    wanted = set(target_layers(model, table))
    if odd := sorted(wanted ^ set(present.modules)):
        has = "is not adapted" if odd[0] in wanted else "is adapted"
        raise TrainError(
            f"train.lora.parts and .modules name other layers than model.adapter has ({odd[0]} {has} there, "
            f"{amount(len(odd), 'such layer')}); set them to the layers of that adapter"
        )


def _sizes(model: nn.Module) -> list[PartSize]:
    found = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        found[part_of(name)][parameter.requires_grad] += parameter.numel()
    return [PartSize(part, frozen, trained, adapter=True) for part, (frozen, trained) in found.items()]
