"""Watching a training: figures at the right steps, said aloud when they are bad, and not one weight changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_run
import viewer_run
from small_run import open_small, said

from mixpo.engines import Request, SamplingParams, create
from mixpo.errors import RecipeError
from mixpo.pipeline import run_stage
from mixpo.recipe import ModelTable, load
from mixpo.stages import train as train_stage
from mixpo.stages.job import Context
from mixpo.stages.report import load_report
from mixpo.train.guards import warn_too_easy
from mixpo.train.metrics import PolicyMetrics, StepMetrics
from mixpo.types import Question
from mixpo.verify import check, extract
from mixpo.vlm.load import load as load_model

pytestmark = pytest.mark.usefixtures("unchecked_saves")

SETTINGS = ("train.baselines=[]", "evaluate.max_new_tokens=8", "sample.max_new_tokens=32")
BEFORE = ("sample", "continue", "verify", "pair", "reference")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run up to the reference stage."""
    folder = tmp_path_factory.mktemp("watch")
    small_run.make(folder, tiny_folder)
    run_stage(open_small(folder / "recipe.toml", folder / "run", *SETTINGS), BEFORE)
    return folder


def trained(prepared: Path, root: Path, *settings: str) -> Context:
    import shutil

    shutil.copytree(prepared / "run", root, symlinks=True)
    context = open_small(prepared / "recipe.toml", root, *SETTINGS, *settings)
    run_stage(context, ("train",))
    return context


@pytest.mark.slow
def test_watching_changes_no_weight_and_logs_the_right_steps(prepared: Path, tmp_path: Path) -> None:
    plain, looked = trained(prepared, tmp_path / "a"), trained(prepared, tmp_path / "b", "train.watch.every=2", "train.watch.count=4")
    weights = [(context.run.models / "mpo" / "model.safetensors").read_bytes() for context in (plain, looked)]
    assert weights[0] == weights[1]
    rows = [list(context.run.stage("round-1/train/mpo").read_all(StepMetrics)) for context in (plain, looked)]
    assert all(row.watch_accuracy is None for row in rows[0])
    total = rows[1][-1].step
    assert total == 5
    assert [row.step for row in rows[1] if row.watch_tokens is not None] == [2, 4, 5]
    assert sum("in-training evaluation: " in line for line in said(looked)) == 3
    run_stage(looked, ("report",))
    report = load_report(tmp_path / "b")
    assert report is not None
    assert "watch_tokens" in report["training"]["mpo"]["curves"]
    assert "In-training evaluation" in (tmp_path / "b" / "report.html").read_text()


@pytest.mark.slow
def test_the_last_look_is_of_the_model_that_is_saved(prepared: Path, tmp_path: Path) -> None:
    """Asked by hand: the prompt as text, the answer judged by the public functions."""
    context = trained(prepared, tmp_path / "c", "train.watch.every=100", "train.watch.count=4")
    (last,) = [row for row in context.run.stage("round-1/train/mpo").read_all(StepMetrics) if row.watch_tokens is not None]
    vlm = load_model(ModelTable(path=str(context.run.models / "mpo"), device="cpu"), Path())
    engine = create("transformers", vlm=vlm, batch_size=1)
    right, tokens, cut = 0, 0, 0
    for question in [*context.run.stage("evaluate/held-out/source").read_all(Question)][:4]:
        prompt = f'{question.text}\nReason step by step, then write "Final answer: ..".'
        request = Request(key=question.id, prompt=prompt, images=question.images, seeds=(5,), indices=(0,))
        (sampled,) = engine.sample([request], SamplingParams(temperature=0.0, max_new_tokens=8))
        (response,) = sampled.responses
        said = extract(response.text, "final")
        right += said is not None and check(said, question.answer or "").outcome == "correct"
        tokens, cut = tokens + len(response.token_ids), cut + (response.finish == "length")
    assert (last.watch_accuracy, last.watch_tokens, last.watch_cut) == (right / 4, tokens / 4, cut / 4)


def test_a_model_that_goes_in_circles_is_said(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = PolicyMetrics(accuracy=0.5, tokens=30.0, loops=0.5, cut=0.5)
    monkeypatch.setattr(train_stage, "watch_of", lambda *_: lambda: broken)
    context = trained(prepared, tmp_path / "d", "train.watch.every=3", "train.watch.count=2")
    assert any("step 3: 50% of the answers repeat a phrase over and over" in line for line in said(context))


def test_another_watch_keeps_the_model(prepared: Path, tmp_path: Path) -> None:
    from small_run import plan_of, unfinished

    trained(prepared, tmp_path / "e")
    again = open_small(prepared / "recipe.toml", tmp_path / "e", *SETTINGS, "train.watch.every=1")
    assert "round-1/train/mpo" not in unfinished(plan_of(again))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train.watch]\n", r"train\.watch needs an evaluation set: there is no 'set'; add a table"),
        ('[train.watch]\nset = "tets"\n[[evaluate.sets]]\nname = "test"\nsource = {kind = "digits"}\n', "no 'tets', did you mean 'test'"),
        ('[train.watch]\n[evaluate.judge]\nmodel = "j"\n[[evaluate.sets]]\nname = "v"\n'
         'source = {kind = "benchmark", name = "mmvet", path = "x"}\n', "the set 'v' needs a judge"),
    ],
)  # fmt: skip
def test_what_cannot_be_watched_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[source]\nkind = "digits"\n' + text)
    with pytest.raises(RecipeError, match=message):
        load(path)


def test_rows_of_before_are_still_read() -> None:
    """A metrics file of a training that was begun without a watch."""
    fields = [field.name for field in dataclasses.fields(StepMetrics) if field.default is dataclasses.MISSING]
    assert StepMetrics(**json.loads(json.dumps(dict.fromkeys(fields, 1)))).watch_cut is None


def test_pairs_that_are_told_apart_at_once_are_said_once() -> None:
    """Above 0.98, in the first 5 % of the steps: 2 to 10 of 200. In step 1 policy and reference are equal, so that it says nothing."""

    def warned(*found: tuple[int, float]) -> list[str]:
        said: list[str] = []
        session = SimpleNamespace(
            state=SimpleNamespace(warned=False), schedule=SimpleNamespace(total=200), progress=SimpleNamespace(say=said.append)
        )
        for number, accuracy in found:
            warn_too_easy(session, dataclasses.replace(viewer_run.step(number, 0.1), accuracy=accuracy))  # type: ignore[arg-type]
        return said

    assert warned((1, 1.0), (2, 0.98), (11, 1.0), (200, 1.0)) == []
    (line,) = warned((2, 0.99), (3, 1.0))
    assert line.startswith("step 2: 99% of the pairs are told apart already")
    assert len(warned((10, 1.0))) == 1
