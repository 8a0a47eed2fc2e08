"""`train.compile`: the same log-probs, gradients and trainings with compiled layers, and refusals by name. Graphs are traced, not built."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from failures import fails
from small_run import open_small, plan_of, unfinished
from torch import nn
from train.architectures import FAMILIES, vlm
from train.cases import fresh, groups, job, scored, timeless, train_until
from train.slow import Data

from mixpo.errors import RecipeError, TrainError
from mixpo.pipeline import run_recipe
from mixpo.progress import Silent
from mixpo.recipe import parse
from mixpo.train import compiled
from mixpo.train.collate import collate
from mixpo.train.compiled import CompiledLayers, require_compiler
from mixpo.train.layout_check import check_sample, choose_layout, compile_layers
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.model import checkpoint_activations
from mixpo.types import Group
from mixpo.vlm.load import Vlm


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs with autograd, but without building kernels, which takes minutes; and no build on which they depend."""
    monkeypatch.setattr(compiled, "BACKEND", {"backend": "aot_eager"})
    monkeypatch.setattr("mixpo.train.session.require_compiler", lambda _: None)
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])  # records of every step of tracing, for pytest to keep
    yield
    torch.compiler.reset()


def scores(scorer: Scorer, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) sums, and all gradients of a loss of them."""
    scorer.model.zero_grad()
    sums = scorer(batch).sums
    (sums * torch.linspace(1, 2, len(sums))).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in scorer.model.parameters() if parameter.grad is not None]
    return sums.detach(), torch.cat(gradients)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "recompute"),
    [
        ("text", torch.float32, False),
        ("internvl", torch.bfloat16, True),
        ("qwen3_moe", torch.float32, True),
    ],
)
def test_log_probs_and_gradients_are_as_uncompiled(name: str, precision: torch.dtype, recompute: bool) -> None:
    """With float32 weights computed in bfloat16 and recomputed activations too; nothing of the model stays changed."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    one.model.train()
    scorer, sample = Scorer(one.model, "single", precision), check_sample(chunk.group for chunk in data.chunks)
    layout, _ = choose_layout(one, sample, data.get, precision, gradients=True, scorer=scorer)
    if recompute:
        checkpoint_activations(one.model, on=True)
    layers = compile_layers(one, sample, data.get, scorer, layout, gradients=True)
    assert "of the decoder layers compiled" in layers.news()
    batch = collate(one, data.chunks, data.get, layout)
    sums, gradients = scores(scorer, batch)
    assert not any("forward" in vars(module) for module in one.model.modules())
    scorer.compiled = None
    expected, expected_gradients = scores(scorer, batch)
    rounding = 1e-4 if precision == torch.float32 else 0.02
    torch.testing.assert_close(sums, expected, rtol=rounding, atol=rounding)
    assert (gradients - expected_gradients).norm() < rounding * expected_gradients.norm()


@pytest.mark.slow
def test_a_training_is_the_same_and_resumes(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked_saves: None
) -> None:
    """With an adapter and recomputed activations: as uncompiled, and cut off and resumed. The log counts the graphs."""
    table: dict[str, Any] = {"epochs": 1, "save_every": 1, "lora": {"rank": 2}, "gradient_checkpointing": True}
    plain = train(job(fresh(tiny_vlm), data, tmp_path / "plain", **table), Silent())
    said = Silent()
    train_until(1, monkeypatch, job(fresh(tiny_vlm), data, tmp_path / "cut", compile=True, **table))
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", compile=True, **table), said)
    assert len(resumed.steps) == len(plain.steps) == 3
    for ours, theirs in zip(map(timeless, resumed.steps), map(timeless, plain.steps), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
    assert any("resuming after step 1" in line for line in said.lines)
    assert any("of the decoder layers compiled, " in line for line in said.lines)


@pytest.mark.slow
def test_compiled_layers_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that computes something else: noticed by the check of the layouts, with the choice made without it."""
    one, data = vlm(FAMILIES["text"]), Data(FAMILIES["text"])
    sample = check_sample(chunk.group for chunk in data.chunks)
    scorer = Scorer(one.model, "tree")

    def wrong(graph: Any, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            return tuple(out * 1.5 if torch.is_tensor(out) and out.is_floating_point() else out for out in graph(*inputs))

        return run

    monkeypatch.setattr(compiled, "BACKEND", {"backend": wrong})
    with fails("compile-not-exact", TrainError, key="train.compile") as failure:
        compile_layers(one, sample, data.get, scorer, "tree")
    assert "would change log-probs by" in failure.message


def test_what_cannot_be_compiled_is_refused() -> None:
    one, data = vlm(FAMILIES["text"]), Data(FAMILIES["text"])
    with fails("compile-not-supported", TrainError, key="train.compile"):
        compile_layers(one, data.chunks, data.get, Scorer(one.model, "single"), "single")
    with fails("compile-not-supported", TrainError, key="train.compile"):
        CompiledLayers(nn.Sequential(nn.Linear(2, 2)))


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/nonexistent")
    require_compiler.cache_clear()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), fails("compile-not-available", TrainError, key="train.compile") as failure:
        require_compiler(torch.device("cpu"))
    assert "\n" not in failure.message
    require_compiler.cache_clear()


def test_reaching_the_limit_is_said() -> None:
    """Here after one graph: rows of another number of dimensions need a second one."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    decoder = Decoder()
    layers = CompiledLayers(SimpleNamespace(get_decoder=lambda: decoder))
    assert layers.news() == ""
    rows = torch.ones(4, 2, requires_grad=True)
    with dynamo.patch(recompile_limit=1):
        with layers.enabled():
            compiled_out = decoder.layers[0](rows)
        torch.testing.assert_close(compiled_out, decoder.layers[0](rows))
        assert layers.news() == "train.compile: 1 graph of the decoder layers compiled, 1 in all"
        with layers.enabled():
            decoder.layers[0](torch.ones(4, 4, 2))
    assert "limit of recompilations is reached" in layers.news()
    assert layers.news() == ""


def test_dropout_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"compile draws other random numbers .* set train\.lora\.dropout = 0"):
        parse({"source": {"kind": "digits"}, "train": {"compile": True, "lora": {"dropout": 0.1}}}, "r.toml")


def test_the_compiler_is_tried_before_a_model_is_loaded(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = open_small(own_run / "recipe.toml", own_run / "run", "train.compile=true")
    assert unfinished(plan_of(context)) <= {"report"}, "it decides nothing but speed"

    def missing(_: torch.device) -> None:
        raise TrainError("no compiler", code="compile-not-available")

    monkeypatch.setattr(compiled, "require_compiler", missing)
    monkeypatch.setattr("mixpo.stages.models.Models.fresh", lambda *_, **__: pytest.fail("a model was loaded"))
    for stage in ("train", "reference"):
        with pytest.raises(TrainError, match="no compiler"):
            run_recipe(context, [stage])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_built_kernels_are_exact(monkeypatch: pytest.MonkeyPatch, tiny_vlm: Vlm, tmp_path: Path) -> None:
    """The real backend, in the reference stage."""
    monkeypatch.undo()
    require_compiler(tiny_vlm.device)
    unscored = groups(tiny_vlm, tmp_path)
    for ours, theirs in zip(scored(tiny_vlm, unscored, compile=True), scored(tiny_vlm, unscored), strict=True):
        assert ours.reference == pytest.approx(theirs.reference, rel=1e-5)
