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
import threading
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

_NOT_WRITABLE = (OSError, RuntimeError, SafetensorError)
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
    """What has the weights and the optimizer: `mixpo.train.parallel.Parallel`. All but `main` is collective."""

    @property
    def main(self) -> bool: ...

    def wait(self) -> None: ...

    def snapshot(self) -> Callable[[Path], None] | None: ...

    def save(self, folder: Path) -> None: ...


class CheckpointWriter:
    """Writes checkpoints in a background thread of the main rank while training runs, and removes all but the newest `keep`.

    A checkpoint is a copy of the state at the time of `save`, and appears under its name when all of it is on disk. An error of the
    thread is raised by the next call of any method, and at the end of the context, which waits for the last checkpoint.
    """

    def __init__(self, folder: Path, keep: int, parallel: ModelWriter, say: Callable[[str], None]) -> None:
        """say: logs an error of the thread when training ends with another one."""
        self.folder = folder
        self.keep = keep
        self._parallel = parallel
        self._say = say
        self._thread: threading.Thread | None = None
        self._error: TrainError | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except TrainError as error:
            if kind is None:
                raise
            self._say(str(error))

    def save(self, state: TrainState, moving_values: Mapping[str, Tensor]) -> None:
        """*Collective.* Copy the training state and write it in the background, once the checkpoint before is written.

        moving_values: a moving reference, or empty. Raises TrainError when a checkpoint cannot be written; older ones stay usable.
        """
        self.wait()
        target = self.folder / f"step-{state.step:06d}"
        temporary = self.folder / f".{target.name}.tmp"
        try:
            if self._parallel.main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self._parallel.wait()
            self._parallel.save(temporary)
            self._parallel.wait()
        except _NOT_WRITABLE as error:
            raise self._failure(target, error) from error
        write = self._parallel.snapshot()
        if write is not None:
            record, moving = asdict(state), {name: value.detach().cpu().clone() for name, value in moving_values.items()}
            self._thread = threading.Thread(target=self._write, args=(target, temporary, record, moving, write), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises TrainError when it cannot be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise TrainError when a checkpoint could not be written; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, target: Path, temporary: Path, record: dict[str, Any], moving: Mapping[str, Tensor], write: Callable[[Path], None]
    ) -> None:
        try:
            write(temporary)
            if moving:
                save_file(dict(moving), temporary / "reference.safetensors")
            record["files"] = records_of(temporary, [temporary])
            (temporary / "state.json").write_text(sealed.dumps(record, indent=2), encoding="utf-8")
            _sync(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            for name in _names(self.folder)[: -self.keep]:
                shutil.rmtree(self.folder / name)
        except Exception as error:  # any: it would end with the thread, unseen
            self._error = self._failure(target, error)
            self._error.__cause__ = error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _failure(self, target: Path, error: Exception) -> TrainError:
        kept = newest_step(self.folder)
        resumed = f"it resumes from step {kept}" if kept else "it starts again"
        return TrainError(
            f"{target}: the checkpoint cannot be written ({error}); free some space and run the same command, {resumed}",
            code="checkpoint-not-writable",
            path=target,
        )


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
