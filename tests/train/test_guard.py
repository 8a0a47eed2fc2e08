"""The guard of a training: a model that degenerates stops it, and what was saved before is good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import small_run
from failures import fails
from small_run import open_small, said

from mixpo.engines.base import Request, SamplingParams
from mixpo.errors import RecipeError, TrainError
from mixpo.pipeline import run_stage
from mixpo.recipe import load
from mixpo.records import Sampled
from mixpo.stages import train as train_stage
from mixpo.stages.job import Context
from mixpo.train.metrics import PolicyMetrics, StepMetrics
from mixpo.types import Finish, Response

pytestmark = pytest.mark.usefixtures("unchecked_saves")

SETTINGS = ("train.baselines=[]", "evaluate.max_new_tokens=8", "sample.max_new_tokens=32")
GOOD = PolicyMetrics(accuracy=0.5, tokens=30.0, loops=0.01, cut=0.0, unparsable=0.04)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run up to the reference stage."""
    folder = tmp_path_factory.mktemp("guard")
    small_run.make(folder, tiny_folder)
    run_stage(open_small(folder / "recipe.toml", folder / "run", *SETTINGS), ("sample", "continue", "verify", "pair", "reference"))
    return folder


def opened(prepared: Path, root: Path, *settings: str) -> Context:
    if not root.exists():
        shutil.copytree(prepared / "run", root, symlinks=True)
    return open_small(prepared / "recipe.toml", root, *SETTINGS, *settings)


def answering(monkeypatch: pytest.MonkeyPatch, *figures: PolicyMetrics) -> list[PolicyMetrics]:
    """The guard gives these figures, one after another; returns what it has still to give."""
    left = list(figures)
    guard: Callable[[], PolicyMetrics] = lambda: left.pop(0)  # noqa: E731
    monkeypatch.setattr(train_stage, "guard_of", lambda *_: guard)
    return left


def weights(context: Context) -> bytes:
    return (context.run.models / "mpo" / "model.safetensors").read_bytes()


def checkpoints(context: Context) -> list[str]:
    return sorted(path.name for path in context.run.root.glob("round-1/train/mpo/work-*/checkpoints/*") if path.is_dir())


@pytest.mark.slow
def test_the_real_guard_logs_and_changes_no_weight(prepared: Path, tmp_path: Path) -> None:
    """A random model says nothing that can be parsed: with the usual limits it is refused by name before the first step."""
    with fails("guard-base-model", TrainError, key="train.guard") as refused:
        run_stage(opened(prepared, tmp_path / "a", "train.guard.count=4"), ("train",))
    assert "the base model itself gives 100.0% of responses without a final answer (train.guard.max_unparsable = 0.05)" in str(
        refused.message
    )
    assert "100.0% of the responses are truncated" in refused.message
    plain = opened(prepared, tmp_path / "b")
    guarded = opened(prepared, tmp_path / "a", "train.guard={every=2, count=4, max_unparsable=1.0, max_loops=1.0, max_truncated=1.0}")
    for context in (plain, guarded):
        run_stage(context, ("train",))
    assert weights(plain) == weights(guarded)
    rows = list(guarded.run.stage("round-1/train/mpo").read_all(StepMetrics))
    assert [(row.step, row.guard_unparsable) for row in rows if row.guard_loops is not None] == [(2, 1.0), (4, 1.0), (5, 1.0)]
    assert all(row.guard_cut is None for row in plain.run.stage("round-1/train/mpo").read_all(StepMetrics))
    run_stage(guarded, ("report",))
    assert "Degeneration guard" in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (PolicyMetrics(accuracy=0.1, tokens=9.0, loops=0.0, cut=0.0, unparsable=0.2), "20.0% of responses without a final answer"),
        (PolicyMetrics(accuracy=0.1, tokens=9.0, loops=0.03, cut=0.0), "3.0% of responses with repetition (train.guard.max_loops = 0.02)"),
    ],
)
@pytest.mark.slow
def test_a_degenerating_model_stops_and_the_last_good_checkpoint_stays(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: PolicyMetrics, named: str
) -> None:
    left = answering(monkeypatch, GOOD, GOOD, GOOD, bad)  # base model, step 2, step 3, step 4 before its checkpoint
    context = opened(prepared, tmp_path / "run", "train.guard.every=3", "train.save_every=2")
    with fails("model-degenerates", TrainError, key="train.guard") as stopped:
        run_stage(context, ("train",))
    assert left == []
    assert "step 4: the model degenerates" in stopped.message
    assert named in stopped.message
    assert "the checkpoint of step 2, which passed this check, is kept" in stopped.message
    assert "lower train.learning_rate, raise train.loss.generation" in stopped.message
    assert checkpoints(context) == ["step-000002"]
    assert not list(context.run.models.glob("*"))
    (metrics,) = context.run.root.glob("round-1/train/mpo/work-*/*.jsonl")
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert (last["step"], last["guard_unparsable"], last["guard_loops"]) == (4, bad.unparsable, bad.loops)
    # With other limits the training goes on from the good checkpoint, and ends where one without a guard ends.
    answering(monkeypatch, *[bad] * 3)
    again = opened(prepared, tmp_path / "run", "train.guard={every=3, max_unparsable=0.5, max_loops=0.5}", "train.save_every=2")
    run_stage(again, ("train",))
    assert any("resuming after step 2 of 5" in line for line in said(again))
    assert [row.step for row in again.run.stage("round-1/train/mpo").read_all(StepMetrics)] == [1, 2, 3, 4, 5]


class StubEngine:
    """Gives every question the same response."""

    def __init__(self, text: str, finish: Finish) -> None:
        self.text, self.finish = text, finish

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        for request in requests:
            yield Sampled(question=request.key, responses=(Response(question=request.key, index=0, text=self.text, finish=self.finish),))

    def close(self) -> None:
        pass


NORMAL = StubEngine("The digits add up to seven. Final answer: 7", "stop")


@pytest.mark.parametrize(
    ("broken", "share", "key"),
    [
        (StubEngine("Final answer: 7 " + "and the sum of them is " * 6 + "and the s", "length"), "with repetition", "max_loops = 0.02"),
        pytest.param(
            StubEngine("Final answer: 7. But wait, now I think of a bird, a boat and a", "length"), "that are truncated",
            "max_truncated = 0.1", marks=pytest.mark.slow,
        ),
        pytest.param(StubEngine("I see two digits.", "stop"), "without a final answer", "max_unparsable = 0.05", marks=pytest.mark.slow),
        pytest.param(StubEngine("", "error"), "without a final answer", "max_unparsable = 0.05", marks=pytest.mark.slow),
    ],
    ids=["loops", "never stops", "no answer", "fails"],
)  # fmt: skip
def test_degenerate_responses_stop_a_training(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: StubEngine, share: str, key: str
) -> None:
    """Graded as in an evaluation: fine for the base model and after the first step, then broken, before there is a checkpoint."""
    engines = [NORMAL, NORMAL, broken, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL]
    monkeypatch.setattr(train_stage, "create", lambda *_, **__: engines.pop(0))
    settings = ("train.guard={every=1, count=4}", "train.save_every=3")
    with fails("model-degenerates", TrainError, key="train.guard") as stopped:
        run_stage(opened(prepared, tmp_path / "run", *settings), ("train",))
    assert f"100.0% of responses {share} (train.guard.{key})" in stopped.message
    assert "step 2: " in stopped.message
    assert "there is no checkpoint of a good model yet" in stopped.message
    assert "lower train.learning_rate" in stopped.message
    context = opened(prepared, tmp_path / "run", *settings)
    assert checkpoints(context) == []
    run_stage(context, ("train",))  # the same command starts again, and checks the base model again
    assert [row.step for row in context.run.stage("round-1/train/mpo").read_all(StepMetrics)] == [1, 2, 3, 4, 5]
    assert engines == []


def test_a_guard_without_questions_is_refused(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_stage, "_first", lambda *_: [])
    with fails("no-questions-to-check", TrainError, key="train.guard"):
        run_stage(opened(prepared, tmp_path / "run", "train.guard={}"), ("train",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train.guard]\nset = "tets"\n[[evaluate.sets]]\nname = "test"\nsource = {kind = "digits"}\n', "no 'tets', did you mean 'test'"),
        ('[train.guard]\nset = "test"\n', "no 'test'"),
        ('[train.guard]\n[evaluate.judge]\nmodel = "j"\n[[evaluate.sets]]\nname = "v"\n'
         'source = {kind = "benchmark", name = "mmvet", path = "x"}\n', "train.guard: the set 'v' needs a judge"),
    ],
)  # fmt: skip
def test_what_cannot_guard_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[source]\nkind = "digits"\n' + text)
    with pytest.raises(RecipeError, match=message):
        load(path)


def test_without_a_set_the_training_questions_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[source]\nkind = "digits"\n[train.guard]\nmax_unparsable = 0.1\n')
    guard = load(path).train.guard
    assert guard is not None
    assert (guard.max_unparsable, guard.max_loops, guard.set) == (0.1, 0.02, "")


def test_divergence_from_the_reference_starts_at_zero_and_is_drawn(prepared: Path, tmp_path: Path) -> None:
    """By hand of the first step, where policy and reference are equal; later steps move away from it."""
    context = opened(prepared, tmp_path / "run", "train.learning_rate=1e-2")
    run_stage(context, ("train", "report"))
    divergence = [row.kl for row in context.run.stage("round-1/train/mpo").read_all(StepMetrics)]
    assert divergence[0] == pytest.approx(0.0, abs=1e-4)
    assert all(value is not None and abs(value) > 1e-3 for value in divergence[1:])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Divergence from the reference, nats per token" in page
    assert "warning threshold: 0.1" in page
    assert "log-prob of the reference: 0" in page
