"""FSDP2: a model that is sharded over the ranks, and weights that each rank reads its shards of. Functions marked *collective* must be
called by all ranks in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mixpo.errors import TrainError
from mixpo.train.logps import Scorer
from mixpo.train.model import plain_name, use_master_weights, weight_dtypes
from mixpo.vlm.adapter import plain_layers
from mixpo.vlm.load import refuse_weight
from mixpo.vlm.shapes import UnreadWeights


def sharded_launch() -> bool:
    """Whether this launch shards the model with FSDP2, as far as its environment says; see `strategy_of`."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def shard_model(accelerator: Accelerator, scorer: Scorer, unread: UnreadWeights | None) -> tuple[nn.Module, dict[str, torch.dtype]]:
    """*Collective.* Shard the model of `scorer` with FSDP2; returns its copy on the meta device and the dtypes of its weights by name.

    unread: where the model is on the meta device. Each rank then reads its shards only, so that none ever holds more than its share.
    Raises ModelError for weights that are not usable.
    """
    model: Any = scorer.model
    meta_copy = meta_copy_of(model)
    if unread is not None:
        for parameter in model.parameters():
            if not parameter.is_meta:  # of an adapter
                parameter.data = parameter.data.to(accelerator.device)
    _fully_shard(accelerator, scorer)
    if unread is not None:
        _read_shards(accelerator, model, meta_copy, unread)
    dtypes = weight_dtypes(model)
    use_master_weights(model)  # only now, so that no rank holds all weights in float32
    return meta_copy, dtypes


def meta_copy_of(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, to receive gathered weights."""
    memo: dict[int, Any] = {id(value): nn.Parameter(value.to("meta"), value.requires_grad) for value in model.parameters()}
    return copy.deepcopy(model, memo)


def _read_shards(accelerator: Accelerator, model: Any, meta_copy: nn.Module, unread: UnreadWeights) -> None:
    device = torch.device("cpu") if isinstance(_plugin(accelerator).cpu_offload, CPUOffloadPolicy) else accelerator.device
    with plain_layers(model), plain_layers(meta_copy):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        training = meta_copy.training
        unread.read(meta_copy, lambda name, value: _fill(parameters[name], value, device))
        meta_copy.train(training)
    for module, read in zip(model.modules(), meta_copy.modules(), strict=True):
        module._buffers.update({name: value.to(accelerator.device) for name, value in read._buffers.items() if value is not None})
    named = [(name, parameter) for name, parameter in model.named_parameters() if ".lora_" not in name]  # B may be zeros
    broken, alive = weight_flags(accelerator, [parameter for _, parameter in named])
    for number, (name, parameter) in enumerate(named):
        refuse_weight(plain_name(name), parameter, unread.source, finite=not broken[number], zero=not alive[number])


def _fill(parameter: Any, value: Tensor, device: torch.device) -> None:
    """Put this rank's shard of a value into a sharded parameter, which gets its dtype. A copy, because the shard is a view of the value."""
    whole = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    shard = whole.to_local().to(device, copy=True)
    filled = DTensor.from_local(
        shard, parameter.device_mesh, parameter.placements, run_check=False, shape=value.shape, stride=value.stride()
    )
    torch.utils.swap_tensors(parameter, nn.Parameter(filled, parameter.requires_grad))  # type: ignore[no-untyped-call]


def weight_flags(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> tuple[list[float], list[float]]:
    """*Collective.* For each parameter, how many ranks hold values of it that are not finite, and how many hold some that are not 0."""
    flags = torch.zeros(2, len(parameters), device=accelerator.device)
    for number, parameter in enumerate(parameters):
        held = local_shard(parameter)
        if held.numel():
            low, high = torch.aminmax(held)
            flags[0, number] = ~(low.isfinite() & high.isfinite())
            flags[1, number] = (low != 0) | (high != 0)
    broken, alive = accelerator.reduce(flags, "sum").tolist()
    return broken, alive


def _fully_shard(accelerator: Accelerator, scorer: Scorer) -> None:
    """Shard every layer separately and the rest as one group, with the settings of Accelerate's plugin.

    The rest (embeddings, projector, output head) stays gathered during the whole forward pass, because `token_logps` uses the head's
    weight outside of the head's own forward pass.
    """
    plugin = _plugin(accelerator)
    if plugin.fsdp_version != 2:
        raise TrainError(
            "fsdp_version 1 is not supported; set fsdp_version: 2 in Accelerate's configuration (recipes/accelerate/fsdp2.yaml)",
            code="fsdp-version-not-supported",
        )
    if plugin.activation_checkpointing:
        raise TrainError(
            "fsdp_activation_checkpointing is not used; take it out of Accelerate's configuration and set train.gradient_checkpointing",
            code="fsdp-activation-checkpointing",
        )
    if plugin.cpu_ram_efficient_loading:
        raise TrainError(
            "fsdp_cpu_ram_efficient_loading leaves all ranks but one without weights; set it to false in Accelerate's configuration",
            code="fsdp-efficient-loading",
        )
    options: dict[str, Any] = {"offload_policy": plugin.cpu_offload}
    if scorer.precision != torch.float32:
        # Gathered in bfloat16, reduced and accumulated in float32. Inputs of a layer are what the layer before returns.
        options["mp_policy"] = MixedPrecisionPolicy(scorer.precision, torch.float32, cast_forward_inputs=False)
        scorer.casting = "sharded"
    for layer in _layers(scorer):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(scorer, reshard_after_forward=False, **options)


def _plugin(accelerator: Accelerator) -> Any:
    return accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else FullyShardedDataParallelPlugin()


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Items of the outermost module lists: the layers of the language model and of the vision tower."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def local_shard(parameter: nn.Parameter) -> Tensor:
    """This rank's shard of a parameter; may be empty."""
    held: Any = parameter.detach()
    if isinstance(held, DTensor):
        held = held.to_local()
    shard: Tensor = getattr(parameter, "ds_tensor", held)
    return shard
