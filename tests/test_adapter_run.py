"""Whole runs with adapters: what they make, what the next round starts from, and what another adapter makes stale."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_run
import torch
from safetensors.torch import load_file, save_file
from small_run import kinds, open_small, plan_of, unfinished

from mixpo.pipeline import run_recipe
from mixpo.recipe import ModelTable
from mixpo.vlm import adapter as lora
from mixpo.vlm.load import Vlm, load

pytest.importorskip("peft")

ADAPTED = (
    "train.baselines=[]",
    "train.objective=tr_dpo+sft",
    "train.reference=online",
    "train.lora.rank=2",
    "train.loss.reference_alpha=1",
)


def make_adapter(vlm: Vlm, folder: Path, scale: float = 0.2) -> Path:
    """An adapter of rank 2 for the tiny model's attention."""
    fresh = load(ModelTable(path=str(vlm.folder), device="cpu"), Path())
    names = tuple(name for name, _ in fresh.model.named_modules() if "language_model" in name and name.endswith(("q_proj", "v_proj")))
    adapter = lora.Adapter(rank=2, alpha=4, modules=names)
    lora.insert(fresh.model, adapter)
    rng = torch.Generator().manual_seed(1)
    values = {name: scale * torch.randn(value.shape, generator=rng) for name, value in lora.tensors(fresh.model).items()}
    lora.write(folder, adapter, values, str(vlm.folder))
    return folder


@pytest.mark.slow
def test_two_rounds(tmp_path: Path, tiny_folder: Path, tiny_vlm: Vlm) -> None:
    """Starts from an adapter and goes on with it; the second round starts from the merged model of the first, with a new adapter."""
    start = make_adapter(tiny_vlm, tmp_path / "start")
    settings = (*ADAPTED, "train.rounds=2", f"model.adapter={start}", "train.lora.alpha=4", 'train.lora.modules=["q_proj", "v_proj"]')
    context = open_small(small_run.make(tmp_path, tiny_folder), tmp_path / "run", *settings)
    plan = run_recipe(context)
    assert all(row.logps == () for row in plan.rows("round-1/reference", 0))
    assert any(row.responses for row in plan.rows("round-1/reference", 0))
    (first,), (second,) = ([*(tmp_path / "run" / f"round-{number}" / "train").glob("*/model-*")] for number in (1, 2))
    begun, values, later = (load_file(folder / "adapter_model.safetensors") for folder in (start, first / "adapter", second / "adapter"))
    assert begun.keys() == values.keys() == later.keys()
    # The first round went on with the adapter, the second began with B = 0.
    b = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"
    assert (values[b] - begun[b]).norm() < 0.5 * begun[b].norm()
    assert later[b].norm() < 0.2 * begun[b].norm()
    assert not torch.equal(values[b], begun[b])
    one = load(ModelTable(path=str(tiny_folder), device="cpu", adapter=str(first / "adapter")), Path())
    lora.merge(one.model)
    two = load(ModelTable(path=str(first), device="cpu"), Path())
    assert all(torch.allclose(value, two.model.state_dict()[name], atol=1e-6) for name, value in one.model.state_dict().items())


def test_another_adapter_is_another_model(finished_run: Path, tmp_path: Path, tiny_vlm: Vlm) -> None:
    def names(*overrides: str) -> set[str]:
        return kinds(unfinished(plan_of(open_small(finished_run / "recipe.toml", finished_run / "run", *overrides))))

    def key(*overrides: str) -> tuple[str, ...]:
        return plan_of(open_small(finished_run / "recipe.toml", finished_run / "run", *overrides)).shards("round-1/reference")

    start = make_adapter(tiny_vlm, tmp_path / "start")
    assert names(f"model.adapter={start}") == {"sample", "continue", "verify", "pair", "reference", "train", "answer", "evaluate", "report"}
    before = key(f"model.adapter={start}")
    assert key(f"model.adapter={start}", "train.lora.rank=2") == before
    moved = make_adapter(tiny_vlm, tmp_path / "moved")
    assert key(f"model.adapter={moved}") == before
    values = load_file(start / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in values.items()}, start / "adapter_model.safetensors")
    assert key(f"model.adapter={start}") != before


def test_an_adapter_changes_no_reference_log_prob(finished_run: Path) -> None:
    """What computes them is the model in its own dtype, whether an adapter or the weights are trained."""

    def key(*overrides: str) -> tuple[str, ...]:
        return plan_of(open_small(finished_run / "recipe.toml", finished_run / "run", *overrides)).shards("round-1/reference")

    assert key("model.dtype=bfloat16") == key("model.dtype=bfloat16", "train.lora.rank=2") != key()
