"""DDP, FSDP2 and DeepSpeed ZeRO behind one interface; the launch (Accelerate's configuration) selects one.

All that differs is here: wrapping, gradients, the update, checkpoints, the full model for export. Functions marked *collective* must be
called by all ranks in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mixpo.errors import TrainError
from mixpo.train.checkpoint import DEEPSPEED, Checkpoint, check_same_model, write_tensors
from mixpo.train.logps import Scorer
from mixpo.train.model import plain_name, restore_dtypes, use_master_weights
from mixpo.train.sharding import meta_copy_of, sharded_launch

Strategy = Literal["ddp", "fsdp2", "deepspeed"]

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Timeout of collectives; other ranks may be writing a large checkpoint. A rank that dies ends the launch at once."""


def open_accelerator(device: torch.device, **options: Any) -> Accelerator:
    """The Accelerator of the launch. options: passed on to it."""
    return Accelerator(
        # With `cpu`, Accelerate always uses plain data parallelism.
        cpu=device.type == "cpu" and not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        mixed_precision="no",  # `Scorer` casts, equally for reference and policy
        kwargs_handlers=[
            # Some parameters take no part in any forward pass, such as InternVL's mask token. Views: without a second copy of gradients.
            DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
        **options,
    )


def strategy_of(accelerator: Accelerator) -> Strategy:
    """The strategy that the launch asks for. Raises TrainError for an unsupported one."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return "deepspeed"
    # Without a GPU, Accelerate ignores FSDP.
    if kind == DistributedType.FSDP or (kind == DistributedType.MULTI_CPU and sharded_launch()):
        return "fsdp2"
    if kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        return "ddp"
    raise TrainError(
        f"training under {kind.value} is not supported; launch it with DDP, FSDP2 or DeepSpeed (recipes/accelerate)",
        code="launch-not-supported",
    )


@dataclass
class Parallel:
    """A model and its optimizer on this rank.

    model: unwrapped, with original parameter names. scorer: wrapped. meta_copy: of a sharded model, without weights.
    """

    accelerator: Accelerator
    strategy: Strategy
    model: nn.Module
    scorer: Any
    optimizer: Any
    meta_copy: nn.Module | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    def wait(self) -> None:
        """*Collective.* Barrier."""
        self.accelerator.wait_for_everyone()

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters by name."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    # --- one step ------------------------------------------------------------------------------------------------------

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Context of the forward and backward pass of a micro-batch. *Collective* for the last one, which reduces gradients."""
        if self.strategy == "fsdp2":
            self.scorer.set_requires_gradient_sync(last)
        elif self.strategy == "deepspeed":
            self.scorer.set_gradient_accumulation_boundary(last)
        elif not last:
            waiting: AbstractContextManager[None] = self.accelerator.no_sync(self.scorer)
            return waiting
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, which are averaged over ranks."""
        if self.strategy == "deepspeed":
            # Accelerate would take the optimizer step at once, before the loss is known to be finite.
            self.scorer.backward(loss)
        else:
            self.accelerator.backward(loss)

    def update(self, most: float) -> float:
        """*Collective.* Clip and take the optimizer step; returns the gradient norm before clipping.

        The step is skipped when the norm is not finite, except with DeepSpeed, which reports the norm after the step only.
        """
        if self.strategy == "deepspeed":
            self.scorer.step()
            return float(self.scorer.get_global_grad_norm())
        total: Any = nn.utils.clip_grad_norm_([parameter for _, parameter in self.trained()], most)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # --- saving --------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """*Collective.* Write what cannot be copied first: with DeepSpeed, all of weights and optimizer; otherwise nothing."""
        if self.strategy == "deepspeed":
            self.scorer.save_checkpoint(str(folder), tag=DEEPSPEED)

    def snapshot(self) -> Callable[[Path], None] | None:
        """*Collective.* On the main rank a function that writes weights and optimizer as they are now, from copies; None on the others."""
        if self.strategy == "deepspeed":
            return (lambda _: None) if self.main else None
        weights = _copy_of(dict(self.trained()), self.main)
        state = self.optimizer.state_dict()
        state["state"] = _copy_of(state["state"], self.main)
        return (lambda folder: write_tensors(folder, weights, {"optimizer": state})) if self.main else None

    def restore(self, checkpoint: Checkpoint) -> None:
        """*Collective.* Load the optimizer state; with DeepSpeed also the weights."""
        if self.strategy == "deepspeed":
            self.scorer.load_checkpoint(str(checkpoint.path), tag=DEEPSPEED)
            return
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = checkpoint.training_state["optimizer"]
        for number, values in state["state"].items():
            state["state"][number] = {name: _scatter(value, parameters[number]) for name, value in values.items()}
        self.optimizer.load_state_dict(state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Copy the trained weights of a checkpoint into the model. No communication. Raises TrainError for another model."""
        if not checkpoint.is_deepspeed:
            check_same_model(checkpoint, dict(self.trained()))
            with torch.no_grad():
                for name, parameter in self.trained():
                    parameter.copy_(_scatter(checkpoint.tensors[name], parameter))

    def full_model(self, dtypes: Mapping[str, torch.dtype]) -> nn.Module | None:
        """*Collective.* The unsharded model on the main rank, None on all others. dtypes: of its weights by name; others stay."""
        if self.meta_copy is None:
            restore_dtypes(self.model, dtypes)
            return self.model if self.main else None
        weights = self._gather(self.model.named_parameters(), dtypes)
        if not self.main:
            return None
        for name, tensor in weights.items():
            _set_parameter(self.meta_copy, name, tensor)
        for module in self.meta_copy.modules():
            module._buffers.update({name: value.cpu() for name, value in module._buffers.items() if value is not None})
        return self.meta_copy

    def _gather(self, tensors: Any, dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
        """*Collective.* Full tensors on the CPU of the main rank, gathered one by one; empty on the others."""
        gathered = {}
        for name, value in tensors:
            tensor = full_tensor(value)
            if self.main:
                gathered[name] = tensor.to(dtypes.get(plain_name(name), tensor.dtype))
        return gathered


def wrap_model(
    accelerator: Accelerator,
    scorer: Scorer,
    optimizer_of: Callable[[nn.Module], Any],
    max_norm: float,
    meta_copy: nn.Module | None = None,
) -> Parallel:
    """*Collective.* Wrap `scorer`, whose `model` is on the device, for the launch's strategy, and create its optimizer.

    meta_copy: of a model from `shard_model`.
    """
    strategy = strategy_of(accelerator)
    model: Any = scorer.model
    if strategy == "fsdp2":
        return Parallel(accelerator, strategy, model, scorer, optimizer_of(model), meta_copy)
    use_master_weights(model)
    if strategy == "ddp":
        wrapped = accelerator.prepare_model(scorer)
        return Parallel(accelerator, strategy, model, wrapped, optimizer_of(model))
    meta_copy = meta_copy_of(model)
    plugin = accelerator.state.deepspeed_plugin
    scorer.casting = "autocast"
    # Models that `transformers` loads from here on must not be sharded, under ZeRO-3 either.
    plugin.dschf = None
    plugin.deepspeed_config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": max_norm}
    engine, optimizer = accelerator.prepare(scorer, optimizer_of(model))
    return Parallel(accelerator, strategy, model, engine, optimizer, meta_copy)


def _set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace one parameter everywhere in the model, tied uses included."""
    old = model.get_parameter(name)
    new = nn.Parameter(tensor, old.requires_grad)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[key] = new


def full_tensor(value: Any) -> Any:
    """*Collective* for a sharded tensor. The full tensor on the CPU; other values are returned unchanged."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if hasattr(value, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().cpu().clone()
    return value.detach().cpu().contiguous()


def _copy_of(value: Any, main: bool) -> Any:
    """*Collective* for sharded tensors, gathered one by one. A copy on the CPU of the main rank; without tensors on the others."""
    if isinstance(value, dict):
        return {name: _copy_of(part, main) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    whole = full_tensor(value)
    if not main:
        return None
    return whole.clone() if value.device.type == "cpu" else whole


def _scatter(value: Any, parameter: nn.Parameter) -> Any:
    """This rank's shard of an optimizer tensor. No communication: every rank has read the full tensor."""
    if not isinstance(value, Tensor):
        return value
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value.clone()
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
