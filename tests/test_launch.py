"""The command line under `torchrun` and `accelerate launch`: one run, one output, one message, one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import forked
import pytest
import small_run

from mixpo.cli import main
from mixpo.distributed import Ranks, ranks_from_env
from mixpo.errors import RunError
from mixpo.pipeline import build_plan, open_run
from mixpo.stages.job import Plan

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"],
}


def start(launcher: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "mixpo", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(launcher: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = start(launcher, arguments)
    try:
        out, error = process.communicate(timeout=800)
    finally:
        process.kill()
    return process.returncode, out, error


def ranks(*arguments: str) -> tuple[int, str, str]:
    """The same of two ranks without a launcher, where what it does itself is not what is tested."""
    return forked.ranks(forked.mixpo, *arguments)


def plan_of(root: Path) -> Plan:
    return build_plan(open_run(root))


def forget(run: Path, *stages: str) -> None:
    """Remove the records of some stages of a finished run."""
    for path in (path for stage in stages for path in (run / "round-1").glob(f"{stage}/**/*.parquet")):
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_make_what_one_makes(own_run: Path, finished_run: Path, launcher: str) -> None:
    run = own_run / "run"
    command, stages = {"torchrun": ("run", ("reference", "train")), "accelerate": ("train", ("train",))}[launcher]
    forget(run, *stages)
    status, out, error = launch(launcher, command, str(own_run / "recipe.toml"), "--dir", str(run))
    assert status == 0, error[-3000:]
    assert out.count("models/mpo (mpo)") == 1
    assert error.count("mpo: first loss") == 1, "not the main rank alone has spoken"
    plan, expected = plan_of(run), plan_of(finished_run / "run")
    for name in ("round-1/reference", "round-1/train/mpo"):
        assert plan.planned[name].finished()
        for number in range(len(plan.shards(name))):
            for one, other in zip(plan.rows(name, number), expected.rows(name, number), strict=True):
                numbers = [
                    row.logps if name.endswith("reference") else (row.loss, row.grad_norm, row.delta, row.tokens) for row in (one, other)
                ]
                assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_two_ranks_sample_what_one_samples(own_run: Path, tmp_path: Path) -> None:
    settings = ['sample.engine="transformers"', "sample.n=2", "sample.max_new_tokens=6"]
    arguments = ["sample", str(own_run / "recipe.toml"), *(part for setting in settings for part in ("--set", setting))]
    status, _, error = ranks(*arguments, "--dir", str(tmp_path / "two"))
    assert status == 0, error[-3000:]
    assert main([*arguments, "--dir", str(tmp_path / "one")]) == 0
    plans = [plan_of(tmp_path / name) for name in ("two", "one")]
    job = plans[0].planned["round-1/sample"].job
    assert (job.ranks, len(job.sizes)) == ("each", 3)
    assert {planned.job.ranks for planned in plans[0].planned.values() if planned.job.kind == "answer"} == {"each"}
    for number in range(3):
        two, one = (list(plan.rows("round-1/sample", number)) for plan in plans)
        assert two == one
        assert all(row.responses for row in two)


@pytest.mark.slow
def test_watching_on_two_ranks_changes_no_weight_and_is_logged_once(own_run: Path) -> None:
    """Both ranks answer, so that they stay in step; the main one alone speaks and writes for the tracker."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = own_run / "run"
    arguments = ["train", str(own_run / "recipe.toml"), "--dir", str(run), "--set", "train.baselines=[]"]
    watch = ["train.watch.every=2", "train.watch.count=4", "evaluate.max_new_tokens=8", 'train.trackers=["tensorboard"]']
    weights = []
    for settings in ([], watch):
        forget(run, "train")
        status, _, error = ranks(*arguments, *(part for setting in settings for part in ("--set", setting)))
        assert status == 0, error[-3000:]
        assert error.count("mpo: first loss") == 1
        assert error.count(": in-training evaluation: ") == (3 if settings else 0)
        weights.append((run / "models" / "mpo" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    steps: list[int] = []
    for path in (run / "logs").rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(path)).Reload()
        steps += [event.step for event in events.Scalars("watch_accuracy")] if "watch_accuracy" in events.Tags()["scalars"] else []
    assert steps == [2, 4, 5]


@pytest.mark.slow
def test_an_error_on_the_second_rank_ends_both(own_run: Path) -> None:
    run = own_run / "run"
    forget(run, "reference")
    # The second rank, and no other, reads the second of three shards.
    (shard,) = run.glob("round-1/pair/00001-*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF  # of the same size: found when it is read
    shard.write_bytes(content)
    status, _, error = launch("torchrun", "reference", str(own_run / "recipe.toml"), "--dir", str(run))
    assert status == 1
    assert error.count("mixpo: ") == 1
    assert f"mixpo: {shard}: " in error
    assert "Traceback" not in error.partition(f"mixpo: {shard}: ")[0]


@pytest.mark.slow
def test_an_error_on_all_ranks_is_said_once(own_run: Path) -> None:
    status, _, error = ranks("train", str(own_run / "recipe.toml"), "--set", "train.bta=1")
    assert status == 2
    assert error.count("unknown key") == 1


@pytest.mark.slow
def test_killing_one_rank_ends_the_launch_and_the_next_one_goes_on(own_run: Path) -> None:
    run = own_run / "run"
    forget(run, "train")
    arguments = ["train", str(own_run / "recipe.toml"), "--dir", str(run), "--set", "train.epochs=10", "--set", "train.baselines=[]"]
    process = start("torchrun", arguments)
    try:
        end = time.monotonic() + 400
        while not (found := list(run.glob("round-1/train/mpo/work-*/checkpoints/step-*/state.json"))) and time.monotonic() < end:
            time.sleep(0.05)
        assert found, "no checkpoint was written"
        os.kill(second_rank(process.pid), signal.SIGKILL)
        assert process.wait(timeout=300) != 0
    finally:
        process.kill()
    status, _, error = ranks(*arguments)
    assert status == 0, error[-3000:]
    assert "mpo: resuming after step" in error


def second_rank(launcher: int) -> int:
    """The process of rank 1, a child of the launcher."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"\0RANK=1\0" in b"\0" + (path / "environ").read_bytes():
                return int(path.name)
        except (OSError, ValueError):
            continue
    raise AssertionError("there is no second rank")


def test_ranks_from_the_environment() -> None:
    assert ranks_from_env({}) == Ranks(0, 1, 0)
    assert ranks_from_env({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Ranks(3, 8, 1)
    assert Ranks(1, 3).shard([0, 1, 2, 3, 4]) == [1, 4]
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"}):
        with pytest.raises(RunError, match="use torchrun"):
            ranks_from_env(wrong)


def test_alone_nobody_is_waited_for(tmp_path: Path, tiny_folder: Path) -> None:
    context = small_run.open_small(small_run.make(tmp_path, tiny_folder), tmp_path / "run")
    context.ranks.broadcast(["anything"])
    context.ranks.barrier()
    context.ranks.close()
    assert context.ranks.is_first_failure()
