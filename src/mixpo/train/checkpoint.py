"""Checkpoints: everything that the next step depends on, in a folder that is there whole or not at all.

FOLDER/step-000100/state.json           counters, reward shift, digests
FOLDER/step-000100/model.safetensors    trained parameters
FOLDER/step-000100/reference.safetensors  the reference, if it moves
FOLDER/step-000100/optimizer.pt         optimizer and random generators (read with weights_only)
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixpo.errors import TrainError
from mixpo.run import changed_settings

KEEP = 2
"""Checkpoints kept: the newest, and the one before in case the newest cannot be read."""

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)


@dataclass(kw_only=True)
class TrainState:
    """Where training stands. step: optimizer steps done.

    reward_sum, reward_count: of all rewards so far, chosen and rejected together; their quotient is the reward shift.
    zero_steps: how many steps in a row had a loss of exactly 0. seconds: of work so far. warned: reward accuracy was too high.
    data, settings: what the training is of; a checkpoint of anything else is refused.
    """

    data: str
    settings: dict[str, Any]
    step: int = 0
    reward_sum: float = 0.0
    reward_count: int = 0
    zero_steps: int = 0
    seconds: float = 0.0
    warned: bool = False

    @property
    def delta(self) -> float:
        """Mean of all past rewards; 0 before the first step."""
        return self.reward_sum / self.reward_count if self.reward_count else 0.0


def save_checkpoint(
    folder: Path, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, moved: Mapping[str, Tensor]
) -> Path:
    """Write a checkpoint and remove all but the newest two. moved: a reference that moves, empty for one that does not.

    Raises TrainError when the disk is full; older ones stay usable."""
    target = folder / f"step-{state.step:06d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_trained(model), temporary / "model.safetensors")
        if moved:
            save_file(dict(moved), temporary / "reference.safetensors")
        with (temporary / "optimizer.pt").open("wb") as handle:
            torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, handle)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        _sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except (OSError, RuntimeError, SafetensorError) as error:
        kept = _names(folder)
        goes_on = f"it goes on from step {int(kept[-1].split('-')[1])}" if kept else "it starts again"
        raise TrainError(
            f"{target}: the checkpoint cannot be written ({error}); free some space and run the same command, {goes_on}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for name in _names(folder)[:-KEEP]:
        shutil.rmtree(folder / name)
    return target


def load_checkpoint(
    folder: Path,
    fresh: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
    moved: Mapping[str, Tensor],
) -> TrainState:
    """Continue from the newest readable checkpoint; `fresh` is returned when there is none. moved: as saved, filled in place.

    Raises TrainError when a checkpoint is of other data or settings, naming what changed.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in reversed(_names(folder)):
        try:
            state, tensors, rest = _read(folder / name)
            reference = load_file(folder / name / "reference.safetensors") if moved else {}
        except _UNREADABLE as error:
            say(f"{folder / name}: cannot be read ({type(error).__name__}: {error}); taking the one before")
            continue
        _refuse_other(folder / name, state, fresh)
        _apply(folder / name, model, optimizer, tensors, rest)
        for key, value in moved.items():
            value.copy_(reference[key])
        return state
    return fresh


def _read(path: Path) -> tuple[TrainState, dict[str, Tensor], dict[str, Any]]:
    state = TrainState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    rest = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    return state, load_file(path / "model.safetensors"), {"optimizer": rest["optimizer"], "random": rest["random"]}


def _refuse_other(path: Path, state: TrainState, fresh: TrainState) -> None:
    remedy = f"delete {path.parent} (or use --force train) to start again"
    if state.data != fresh.data:
        raise TrainError(f"{path}: this checkpoint is of other training data ({state.data}, now {fresh.data}); {remedy}")
    changes = changed_settings(state.settings, json.loads(json.dumps(fresh.settings)))
    if changes:
        raise TrainError(f"{path}: this checkpoint was made with other settings ({'; '.join(changes)}); {remedy}")


def _apply(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained.keys() != tensors.keys() or any(trained[name].shape != value.shape for name, value in tensors.items()):
        raise TrainError(f"{path}: this checkpoint is of another model; delete {path.parent} (or use --force train) to start again")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    optimizer.load_state_dict(rest["optimizer"])
    torch.set_rng_state(rest["random"]["cpu"])
    if torch.cuda.is_available() and "cuda" in rest["random"]:
        torch.cuda.set_rng_state(rest["random"]["cuda"])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*") if path.is_dir())


def _sync(folder: Path) -> None:
    """Flush the files and the folder to disk, so that a rename never makes a half-written checkpoint visible after a crash."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
