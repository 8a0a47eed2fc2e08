"""Going on after any end: bit for bit the same losses, and no checkpoint that is half there."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, BinaryIO

import forked
import pytest
import torch
from failures import fails
from slow_rows import slow_except
from train import killed_program
from train.cases import fresh, job, timeless, train_until

from mixpo.errors import MissingExtra, ModelError, TrainError
from mixpo.progress import Silent
from mixpo.train import loop
from mixpo.train.checkpoint import write_tensors
from mixpo.train.loop import train
from mixpo.train.metrics import StepMetrics, read_metrics
from mixpo.train.session import Session
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


def hold_writes(monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]) -> list[str]:
    """Replace the writing of tensors; returns the order of steps computed and writes begun and ended."""
    order: list[str] = []
    computed = loop._forward_backward

    def compute(session: Session, *rest: Any) -> Any:
        sums = computed(session, *rest)
        order.append(f"step {session.state.step + 1}")
        return sums

    def held(folder: Path, *values: Any) -> None:
        order.append(f"begin {folder.name}")
        write(folder, *values)
        order.append(f"end {folder.name}")

    monkeypatch.setattr(loop, "_forward_backward", compute)
    monkeypatch.setattr("mixpo.train.parallel.write_tensors", held)
    return order


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_training_runs_while_a_checkpoint_is_written(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is of its step although two more are computed while it is written; only the next checkpoint waits for it."""
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **SETTINGS), Silent())
    with monkeypatch.context() as patch:

        def slowly(folder: Path, *values: Any) -> None:
            if "000002" in folder.name:
                until(lambda: "step 4" in order)
                time.sleep(0.05)
            write_tensors(folder, *values)

        order = hold_writes(patch, slowly)
        computed = loop._forward_backward

        def compute(session: Session, *rest: Any) -> Any:
            if session.state.step == 3:  # on a busy machine the thread starts late
                until(lambda: "begin .step-000002.tmp" in order)
            return computed(session, *rest)

        patch.setattr(loop, "_forward_backward", compute)
        train_until(4, patch, job(fresh(tiny_vlm), data, tmp_path / "cut", **SETTINGS))
    assert order.index("begin .step-000002.tmp") < order.index("step 4") < order.index("end .step-000002.tmp")
    assert order.index("end .step-000002.tmp") < order.index("begin .step-000004.tmp")
    folder = tmp_path / "cut" / "work" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    shutil.rmtree(folder / "step-000004")
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **SETTINGS), said := Silent())
    assert any("resuming after step 2 of 9" in line for line in said.lines)
    assert numbers(resumed.steps) == numbers(whole.steps)


def test_an_error_of_the_writer_stops_the_next_step(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_late(*values: Any) -> None:
        until(lambda: "step 5" in order)
        full_disk(*values)

    order = hold_writes(monkeypatch, fail_late)
    compute = loop._forward_backward

    def joined(session: Session, *rest: Any) -> Any:
        sums = compute(session, *rest)
        if session.state.step == 4:
            thread = session.checkpoints._thread
            assert thread is not None
            thread.join()
        return sums

    monkeypatch.setattr(loop, "_forward_backward", joined)
    with fails("checkpoint-not-writable", TrainError, path=tmp_path / "work" / "checkpoints" / "step-000004"):
        train(job(fresh(tiny_vlm), data, tmp_path, **{**SETTINGS, "save_every": 4}), Silent())
    assert order[-1] == "step 5"
    assert not list((tmp_path / "work" / "checkpoints").iterdir())


def test_no_model_is_saved_when_the_last_checkpoint_fails(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_writes(monkeypatch, full_disk)
    with fails("checkpoint-not-writable", TrainError):
        train(job(fresh(tiny_vlm), data, tmp_path, **{**SETTINGS, "save_every": 100}), Silent())
    assert not (tmp_path / "model").exists()


def test_an_error_of_the_writer_does_not_hide_that_of_training(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: Any) -> None:
        until(lambda: "step 3" in order)
        full_disk()

    order = hold_writes(monkeypatch, fail)
    said = Silent()
    train_until(2, monkeypatch, job(fresh(tiny_vlm), data, tmp_path, **SETTINGS), said)
    assert any("step-000002: the checkpoint cannot be written" in line for line in said.lines)


@pytest.mark.slow
def test_killed_in_the_writing_thread(tiny_vlm: Vlm, tiny_folder: Path, data: list[Group], tmp_path: Path) -> None:
    """The third checkpoint is half written: training resumes from the second."""
    process = started(killed_program.dies, tiny_folder, data, tmp_path / "cut")
    process.join(600)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "cut.out").read_text()
    folder = tmp_path / "cut" / "work" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [".step-000003.tmp", "step-000001", "step-000002"]
    said = Silent()
    settings = {"epochs": 12, "batch_size": 4, "save_every": 1000}
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **settings), said)
    assert any("resuming after step 2 of 36" in line for line in said.lines)
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **settings), Silent())
    assert numbers(resumed.steps) == numbers(whole.steps)


def test_full_disk_at_the_export_loses_nothing(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.vlm.save._write_processor", full_disk)
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


def started(target: Callable[..., None], tiny_folder: Path, data: list[Group], work: Path) -> ForkServerProcess:
    """A training of `killed_program`."""
    return forked.start(target, tiny_folder, Path(data[0].question.images[0].path).parent, work, out=work.with_suffix(".out"))


@pytest.mark.slow
def test_killed_with_sigkill(tiny_vlm: Vlm, tiny_folder: Path, data: list[Group], tmp_path: Path) -> None:
    """A process is killed at a moment of its own; the rest is done here, to the same end as an uninterrupted training."""
    process = started(killed_program.waits, tiny_folder, data, tmp_path / "cut")
    metrics = tmp_path / "cut" / "work" / "metrics.jsonl"
    end = time.monotonic() + 600
    while process.is_alive() and time.monotonic() < end and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 7):
        time.sleep(0.003)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "cut.out").read_text()
    done = max(int(path.name.split("-")[1]) for path in (tmp_path / "cut" / "work" / "checkpoints").glob("step-*"))
    assert 5 <= done < 36
    said = Silent()
    settings = {"epochs": 12, "batch_size": 4, "save_every": 1000}
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **settings), said)
    assert any(f"resuming after step {done} of 36" in line for line in said.lines)
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **settings), Silent())
    assert numbers(resumed.steps) == numbers(whole.steps)
    assert [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()] == list(range(1, 37))
