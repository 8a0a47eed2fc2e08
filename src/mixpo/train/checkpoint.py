"""Checkpoints: the complete training state in one folder, written atomically.

FOLDER/step-000100/state.json           counters, reward shift, digests; size and digest of the other files
FOLDER/step-000100/model.safetensors    trained parameters
FOLDER/step-000100/reference.safetensors  a moving reference
FOLDER/step-000100/optimizer.pt         optimizer (read with weights_only)
FOLDER/step-000100/deepspeed/           instead of the last two, the files of DeepSpeed

Weights and optimizer are saved unsharded, so that training can resume on another number of ranks (except with DeepSpeed).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixpo import sealed
from mixpo.errors import TrainError
from mixpo.integrity import damages, records_of
from mixpo.run import changed_settings

DEEPSPEED = "deepspeed"
"""Folder of DeepSpeed's files (its `tag`)."""

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)


@dataclass(kw_only=True)
class TrainState:
    """Counters of a training. step: optimizer steps done.

    reward_sum, reward_count: over all rewards so far, chosen and rejected; their quotient is the reward shift.
    replay_rows, replay_skipped: SFT rows trained on so far, and those that could not be used.
    zero_steps: consecutive steps with a loss of exactly 0. seconds: of training. warned: the accuracy warning was logged.
    data, settings: digest of the data, and the settings that decide the result; other checkpoints are refused.
    """

    data: str
    settings: dict[str, Any]
    step: int = 0
    reward_sum: float = 0.0
    reward_count: int = 0
    replay_rows: int = 0
    replay_skipped: int = 0
    zero_steps: int = 0
    seconds: float = 0.0
    warned: bool = False

    @property
    def delta(self) -> float:
        """Mean of all past rewards; 0 before the first step."""
        return self.reward_sum / self.reward_count if self.reward_count else 0.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint. tensors: trained weights. training_state: of the optimizer. moving_values: a moving reference.

    All three are empty for one of DeepSpeed, which only its own engine can read.
    """

    path: Path
    state: TrainState
    tensors: Mapping[str, Tensor]
    training_state: Mapping[str, Any]
    moving_values: Mapping[str, Tensor]

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed wrote it."""
        return (self.path / DEEPSPEED).is_dir()


class ModelWriter(Protocol):
    """What writes the weights and the optimizer: `mixpo.train.parallel.Parallel`. `wait` and `save` are collective."""

    @property
    def main(self) -> bool: ...

    def wait(self) -> None: ...

    def save(self, folder: Path) -> None: ...


def save_checkpoint(folder: Path, state: TrainState, keep: int, parallel: ModelWriter, moving_values: Mapping[str, Tensor]) -> None:
    """*Collective.* Write a checkpoint and remove all but the newest `keep`. moving_values: a moving reference, or empty.

    Raises TrainError when it cannot be written; older checkpoints stay usable.
    """
    target = folder / f"step-{state.step:06d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        if parallel.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        parallel.wait()
        parallel.save(temporary)
        parallel.wait()
        if parallel.main:
            if moving_values:
                save_file(dict(moving_values), temporary / "reference.safetensors")
            record = {**asdict(state), "files": records_of(temporary, [temporary])}
            (temporary / "state.json").write_text(sealed.dumps(record, indent=2), encoding="utf-8")
            _sync(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
    except (OSError, RuntimeError, SafetensorError) as error:
        kept = newest_step(folder)
        resumed = f"it resumes from step {kept}" if kept else "it starts again"
        raise TrainError(
            f"{target}: the checkpoint cannot be written ({error}); free some space and run the same command, {resumed}",
            code="checkpoint-not-writable",
            path=target,
        ) from error
    finally:
        if parallel.main:
            shutil.rmtree(temporary, ignore_errors=True)
    if parallel.main:
        for name in _names(folder)[:-keep]:
            shutil.rmtree(folder / name)
    parallel.wait()


def write_tensors(folder: Path, weights: Mapping[str, Tensor], training_state: Mapping[str, Any]) -> None:
    """Write weights and optimizer state."""
    save_file(dict(weights), folder / "model.safetensors")
    with (folder / "optimizer.pt").open("wb") as handle:
        torch.save(dict(training_state), handle)


def find_checkpoint(folder: Path, expected: TrainState, say: Callable[[str], None], moving_reference: bool) -> Checkpoint | None:
    """The newest readable checkpoint, or None. moving_reference: whether it must hold a reference.

    Raises TrainError when it is of other data or settings, naming the changes.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in reversed(_names(folder)):
        try:
            checkpoint = _read(folder / name, moving_reference)
        except _UNREADABLE as error:
            say(f"{folder / name}: cannot be read ({type(error).__name__}: {error}); taking the one before")
            continue
        _refuse_other(checkpoint.path, checkpoint.state, expected)
        return checkpoint
    return None


def _read(path: Path, moving_reference: bool) -> Checkpoint:
    record = sealed.load(path / "state.json")
    for name, damage in damages(path, record.pop("files")).items():
        raise ValueError(f"{name} {damage}")
    state = TrainState(**record)
    if (path / DEEPSPEED).is_dir():
        return Checkpoint(path=path, state=state, tensors={}, training_state={}, moving_values={})
    # Memory-mapped: ranks of one machine share the pages.
    training_state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
    tensors = load_file(path / "model.safetensors")
    moving_values = load_file(path / "reference.safetensors") if moving_reference else {}
    parts = {"optimizer": training_state["optimizer"]}
    return Checkpoint(path=path, state=state, tensors=tensors, training_state=parts, moving_values=moving_values)


def _refuse_other(path: Path, state: TrainState, expected: TrainState) -> None:
    remedy = f"delete {path.parent} (or use --force train) to start again"
    if state.data != expected.data:
        raise TrainError(
            f"{path}: this checkpoint is of other training data ({state.data}, now {expected.data}); {remedy}",
            code="checkpoint-other-data",
            path=path,
        )
    changes = changed_settings(state.settings, json.loads(json.dumps(expected.settings)))
    if changes:
        raise TrainError(
            f"{path}: this checkpoint was made with other settings ({'; '.join(changes)}); {remedy}",
            code="checkpoint-other-settings",
            path=path,
        )


def check_same_model(checkpoint: Checkpoint, trained: Mapping[str, Tensor]) -> None:
    """Raise TrainError for a checkpoint whose weights have other names or shapes than the trained parameters."""
    path, tensors = checkpoint.path, checkpoint.tensors
    if trained.keys() != tensors.keys() or any(trained[name].shape != value.shape for name, value in tensors.items()):
        raise TrainError(
            f"{path}: this checkpoint is of another model; delete {path.parent} (or use --force train) to start again",
            code="checkpoint-other-model",
            path=path,
        )


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    names = _names(folder)
    return int(names[-1].split("-")[1]) if names else 0


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*") if path.is_dir())


def _sync(folder: Path) -> None:
    """Flush files and folder to disk before the rename, so that a crash cannot leave a partial checkpoint."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
