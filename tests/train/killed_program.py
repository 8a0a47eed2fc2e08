"""Trainings of 36 steps, with a checkpoint after each, in a process of their own that is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from train.cases import groups, job, scored

from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train import loop
from mixpo.train.checkpoint import write_tensors
from mixpo.train.metrics import StepMetrics
from mixpo.train.session import Session
from mixpo.vlm.load import load

LAST = 30
"""The step before which a training waits to be killed, however late that comes."""


def waits(model: Path, images: Path, work: Path) -> None:
    """Go as far as step `LAST`."""
    real = loop._advance

    def advance(session: Session, row: StepMetrics) -> None:
        while row.step == LAST:
            time.sleep(0.1)
        real(session, row)

    loop._advance = advance
    _train(model, images, work)


def dies(model: Path, images: Path, work: Path) -> None:
    """Be killed in the thread that writes the third checkpoint, half of which is there."""
    written = []

    def write(folder: Path, weights: Any, training_state: Any) -> None:
        written.append(folder)
        if len(written) == 3:
            write_tensors(folder, weights, {})
            os.kill(os.getpid(), signal.SIGKILL)
        write_tensors(folder, weights, training_state)

    pytest.MonkeyPatch().setattr("mixpo.train.parallel.write_tensors", write)
    _train(model, images, work)


def _train(model: Path, images: Path, work: Path) -> None:
    vlm = load(ModelTable(path=str(model), device="cpu"), Path())
    loop.train(job(vlm, scored(vlm, groups(vlm, images)), work, epochs=12, batch_size=4, save_every=1), Silent())
