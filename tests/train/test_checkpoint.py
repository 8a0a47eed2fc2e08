"""Going on after any end: bit for bit the same losses, and no checkpoint that is half there."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from failures import fails
from slow_rows import slow_except
from train.cases import fresh, job, timeless, train_until

from mixpo.errors import MissingExtra, ModelError, TrainError
from mixpo.progress import Silent
from mixpo.train import loop
from mixpo.train.loop import train
from mixpo.train.metrics import StepMetrics, read_metrics
from mixpo.types import Group
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

SETTINGS = {"epochs": 3, "batch_size": 4, "save_every": 2}
"""9 steps; checkpoints after 2, 4, 6, 8 and 9."""


def numbers(rows: list[StepMetrics] | tuple[StepMetrics, ...]) -> list[StepMetrics]:
    """Rows without what depends on the clock and the machine."""
    return [timeless(row) for row in rows]


@pytest.mark.parametrize("stop", slow_except([1, 2, 5, 8], 5))
def test_resume_is_bit_equal(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    first, second = fresh(tiny_vlm), fresh(tiny_vlm)
    whole = train(job(first, data, tmp_path / "whole", **SETTINGS), Silent())
    train_until(stop, monkeypatch, job(fresh(tiny_vlm), data, tmp_path / "cut", **SETTINGS))
    said = Silent()
    resumed = train(job(second, data, tmp_path / "cut", **SETTINGS), said)
    assert numbers(resumed.steps) == numbers(whole.steps)
    assert any(f"resuming after step {stop // 2 * 2} of 9" in line for line in said.lines) == (stop >= 2)
    for name, value in first.model.named_parameters():
        assert torch.equal(value, dict(second.model.named_parameters())[name]), name


def test_an_8_bit_optimizer_resumes_bit_equal(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments are in 8 bits, and its loss falls as that of AdamW."""
    pytest.importorskip("bitsandbytes")
    table: dict[str, Any] = {**SETTINGS, "optimizer": "adamw_8bit"}
    first, second = fresh(tiny_vlm), fresh(tiny_vlm)
    whole = train(job(first, data, tmp_path / "whole", **table), Silent())
    train_until(5, monkeypatch, job(fresh(tiny_vlm), data, tmp_path / "cut", **table))
    resumed = train(job(second, data, tmp_path / "cut", **table), Silent())
    assert numbers(resumed.steps) == numbers(whole.steps)
    for name, value in first.model.named_parameters():
        assert torch.equal(value, dict(second.model.named_parameters())[name]), name
    plain = train(job(fresh(tiny_vlm), data, tmp_path / "plain", **SETTINGS), Silent())
    assert whole.steps[0].loss == plain.steps[0].loss
    assert whole.steps[-1].loss == pytest.approx(plain.steps[-1].loss, rel=0.05)
    saved = torch.load(tmp_path / "whole" / "work" / "checkpoints" / "step-000009" / "optimizer.pt", weights_only=True)["optimizer"]
    moments = [value.dtype for values in saved["state"].values() for name, value in _flat(values) if name in ("state1", "state2")]
    assert {torch.uint8, torch.float32} == set(moments)


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield from _flat(value) if isinstance(value, dict) else ((name, value),)


def test_an_8_bit_optimizer_needs_its_library(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.train.session.find_spec", lambda name: None)
    with fails("missing-extra", MissingExtra, key="bitsandbytes"):
        train(job(tiny_vlm, data, tmp_path, optimizer="adamw_8bit"), Silent())


def test_settings_of_speed_may_change(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(4, monkeypatch, job(fresh(tiny_vlm), data, tmp_path, **SETTINGS))
    result = train(job(fresh(tiny_vlm), data, tmp_path, **{**SETTINGS, "tokens_per_batch": 90, "save_every": 3, "log_every": 2}), Silent())
    assert [row.step for row in result.steps] == [1, 2, 3, 4, 6, 8, 9]


@pytest.mark.slow
def test_other_data_and_settings_are_refused(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(4, monkeypatch, job(fresh(tiny_vlm), data, tmp_path, **SETTINGS))
    with pytest.raises(TrainError, match=r"step-000004: this checkpoint is of other training data.*delete .*checkpoints"):
        train(job(fresh(tiny_vlm), data[:-1], tmp_path, **SETTINGS), Silent())
    with pytest.raises(TrainError, match=r"other settings \(train\.learning_rate: 0\.001 -> 0\.01\)"):
        train(job(fresh(tiny_vlm), data, tmp_path, **{**SETTINGS, "learning_rate": 0.01}), Silent())
    with pytest.raises(TrainError, match=r"other settings \(objective: mpo -> sft\)"):
        train(job(fresh(tiny_vlm), data, tmp_path, "sft", **SETTINGS), Silent())
    with pytest.raises(TrainError, match=r"other settings \(model: "):
        train(job(replace(fresh(tiny_vlm), digest="other"), data, tmp_path, **SETTINGS), Silent())


def test_two_are_kept_and_the_older_one_serves_when_the_newer_is_torn(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    whole = train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    folder = tmp_path / "work" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000008", "step-000009"]
    newest = folder / "step-000009" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    (folder / ".step-000010.1.tmp").mkdir()
    said = Silent()
    again = train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), said)
    assert any("step-000009: cannot be read" in line for line in said.lines)
    assert any("resuming after step 8 of 9" in line for line in said.lines)
    assert numbers(again.steps) == numbers(whole.steps)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000008", "step-000009"]


def test_a_finished_training_only_saves_again(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    monkeypatch.setattr(loop, "_forward_backward", lambda *_: pytest.fail("a step was done twice"))
    again = fresh(tiny_vlm)
    assert train(job(again, data, tmp_path, **SETTINGS), Silent()).steps == whole.steps


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_full_disk_keeps_the_last_good_checkpoint(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, [0]

    def save(value: object, handle: BinaryIO) -> None:
        calls[0] += 1
        if calls[0] == 3:
            handle.write(b"half of it")
            full_disk()
        real(value, handle)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(TrainError, match=r"step-000006: the checkpoint cannot be written .*No space left.*resumes from step 4"):
            train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    folder = tmp_path / "work" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "other", **SETTINGS), Silent())
    assert numbers(train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent()).steps) == numbers(whole.steps)


def test_full_disk_at_the_export_loses_nothing(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.vlm.load._write_processor", full_disk)
        with pytest.raises(ModelError, match="No space left"):
            train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(loop, "_forward_backward", lambda *_: pytest.fail("a step was done twice"))
    train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    assert (tmp_path / "model" / "config.json").exists()


def test_torn_metrics_line(tmp_path: Path, tiny_vlm: Vlm, data: list[Group]) -> None:
    result = train(job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), Silent())
    path = tmp_path / "work" / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as handle:
        handle.write('{"step": 10, "lo')
    assert read_metrics(path) == list(result.steps)
    path.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(TrainError, match=r"metrics\.jsonl:1: not a line of training metrics"):
        read_metrics(path)


KILLED = """
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from train.cases import groups, job, scored
from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.loop import train
from mixpo.vlm.load import load

model, images, work = map(Path, sys.argv[1:])
vlm = load(ModelTable(path=str(model), device="cpu"), Path())
train(job(vlm, scored(vlm, groups(vlm, images)), work, epochs=12, batch_size=4, save_every=1), Silent())
"""


@pytest.mark.slow
def test_killed_with_sigkill(tiny_vlm: Vlm, tiny_folder: Path, data: list[Group], tmp_path: Path) -> None:
    """A process is killed at a moment of its own; the rest is done here, to the same end as an uninterrupted training."""
    path = [str(Path(__file__).parents[1]), *sys.path]
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {path!r}\n{KILLED}",
        str(tiny_folder),
        str(Path(data[0].question.images[0].path).parent),
    ]
    process = subprocess.Popen([*command, str(tmp_path / "cut")], stderr=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "work" / "metrics.jsonl"
    end = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 7):
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = max(int(path.name.split("-")[1]) for path in (tmp_path / "cut" / "work" / "checkpoints").glob("step-*"))
    assert 5 <= done < 36
    said = Silent()
    settings = {"epochs": 12, "batch_size": 4, "save_every": 1000}
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **settings), said)
    assert any(f"resuming after step {done} of 36" in line for line in said.lines)
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **settings), Silent())
    assert numbers(resumed.steps) == numbers(whole.steps)
    assert [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()] == list(range(1, 37))
