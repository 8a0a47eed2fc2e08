"""Adapters in a model: read and written as `peft` does, merged without a trace, refused when they are of something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train.cases import fresh
from transformers import AutoModelForImageTextToText

from mixpo.errors import MissingExtra, ModelError
from mixpo.recipe import ModelTable
from mixpo.vlm import adapter as lora
from mixpo.vlm.folder import digests
from mixpo.vlm.load import Vlm, load
from mixpo.vlm.save import save

peft = pytest.importorskip("peft")

MODULES = (
    "lm_head",
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.1.mlp.down_proj",
    "model.multi_modal_projector.linear_2",
    "model.vision_tower.encoder.layer.1.attention.k_proj",
)


@pytest.fixture
def vlm(tiny_vlm: Vlm) -> Vlm:
    return fresh(tiny_vlm)


def inserted(vlm: Vlm, rank: int = 3, alpha: float = 5.0) -> lora.Adapter:
    """An adapter far from zero in the model."""
    adapter = lora.Adapter(rank=rank, alpha=alpha, modules=MODULES)
    lora.insert(vlm.model, adapter)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora.parameters(vlm.model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return adapter


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    image = model.config.image_token_id
    ids = torch.tensor([[5, 9, *[image] * 4, 60, 61, 62, 7]])
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, pixel_values=torch.randn(1, 3, 28, 28).to(model.dtype)).logits
    return found


@pytest.fixture
def saved(vlm: Vlm, tmp_path: Path) -> Path:
    """The folder of an adapter for the tiny model."""
    adapter = inserted(vlm)
    lora.write(tmp_path / "adapter", adapter, lora.tensors(vlm.model), str(vlm.folder))
    return tmp_path / "adapter"


def test_a_new_adapter_changes_nothing_and_merging_it_leaves_no_trace(vlm: Vlm) -> None:
    before, plain = logits(vlm.model), {name: value.clone() for name, value in vlm.model.state_dict().items()}
    lora.insert(vlm.model, lora.Adapter(rank=2, alpha=4, modules=MODULES))
    assert torch.equal(logits(vlm.model), before)
    assert [p.dtype for p in lora.parameters(vlm.model).values()] == [torch.float32] * 10
    lora.merge(vlm.model)
    assert {name: bool(torch.equal(value, plain[name])) for name, value in vlm.model.state_dict().items()} == dict.fromkeys(plain, True)
    assert lora.layers(vlm.model) == {}
    assert not hasattr(vlm.model, "peft_config")


def test_merged_weights_by_hand(vlm: Vlm) -> None:
    """W + alpha / rank B A, in exactly the layers that were named; logits are the adapter's."""
    plain = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    before = logits(vlm.model)
    inserted(vlm)
    adapted, values = logits(vlm.model), lora.tensors(vlm.model)
    lora.merge(vlm.model)
    for name, value in vlm.model.state_dict().items():
        stem, expected = f"base_model.model.{name.removesuffix('.weight')}", plain[name]
        if f"{stem}.lora_A.weight" in values:
            expected = expected + 5 / 3 * values[f"{stem}.lora_B.weight"] @ values[f"{stem}.lora_A.weight"]
        assert torch.allclose(value, expected, atol=1e-6), name
    assert (adapted - before).abs().max() > 0.1
    assert torch.allclose(logits(vlm.model), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # advice of peft for merging
def test_peft_reads_what_we_write(vlm: Vlm, saved: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(str(vlm.folder), local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(base, saved).eval()
    assert torch.allclose(logits(theirs.base_model.model), logits(vlm.model), atol=1e-5)
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(vlm.folder)


def test_we_read_what_peft_writes(vlm: Vlm, tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(str(vlm.folder), local_files_only=True)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_rslora=True)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(ModelTable(path=str(vlm.folder), device="cpu", adapter=str(tmp_path / "theirs")), Path())
    assert (logits(ours.model) - logits(vlm.model)).abs().max() > 0.1
    assert torch.allclose(logits(ours.model), logits(theirs.base_model.model), atol=1e-5)
    found = lora.adapter_of(ours.model)
    assert found is not None
    assert (found.rank, found.alpha, found.rooted, len(found.modules)) == (4, 12, True, 8)


def test_an_adapter_is_part_of_the_models_identity(vlm: Vlm, saved: Path) -> None:
    assert vlm.folder is not None
    plain, adapted = digests(vlm.folder), digests(vlm.folder, saved)
    assert (adapted.template, adapted.weights == plain.weights) == (plain.template, False)
    values = load_file(saved / "adapter_model.safetensors")
    save_file({name: value * 2 for name, value in values.items()}, saved / "adapter_model.safetensors")
    assert digests(vlm.folder, saved).weights not in (adapted.weights, plain.weights)
    loaded = load(ModelTable(path=str(vlm.folder), device="cpu", adapter=str(saved)), Path())
    assert loaded.digest == digests(vlm.folder, saved).weights
    trained = load(ModelTable(path="elsewhere", device="cpu", adapter=str(saved)), Path(), vlm.folder)
    assert (trained.digest, lora.adapter_of(trained.model)) == (plain.weights, None)


@pytest.mark.parametrize("adapted", [True, False])
def test_tied_head(vlm: Vlm, tmp_path: Path, adapted: bool) -> None:
    """An adapted head that shares the embeddings' weights gets its own, in memory, on disk and in its configuration."""
    model = vlm.model
    model.lm_head.weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    embeddings = model.get_input_embeddings().weight.clone()
    modules = MODULES if adapted else MODULES[1:]
    lora.insert(model, lora.Adapter(rank=2, alpha=4, modules=modules))
    with torch.no_grad():
        for parameter in lora.parameters(model).values():
            parameter.normal_(std=0.3)
    expected = logits(model)
    lora.merge(model)
    assert torch.allclose(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) != adapted
    folder = save(vlm, tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    assert again.config.get_text_config().tie_word_embeddings != adapted
    assert torch.allclose(logits(again), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_weights_keep_a_float32_adapter(tiny_vlm: Vlm, saved: Path) -> None:
    loaded = load(ModelTable(path=str(tiny_vlm.folder), dtype="bfloat16", device="cpu", adapter=str(saved)), Path())
    values = load_file(saved / "adapter_model.safetensors")
    assert all(torch.equal(value, values[name]) for name, value in lora.tensors(loaded.model).items())
    adapted = logits(loaded.model)
    lora.merge(loaded.model)
    assert {value.dtype for value in loaded.model.parameters()} == {torch.bfloat16}
    assert (logits(loaded.model) - adapted).abs().mean() < 0.03 * adapted.abs().mean()


def _edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _reshape(folder: Path) -> None:
    values = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.zeros(len(value), 7) for name, value in values.items()}, folder / "adapter_model.safetensors")


def _add(name: str, value: float) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        values = load_file(folder / "adapter_model.safetensors")
        save_file({**values, name: torch.full((3, 48), value)}, folder / "adapter_model.safetensors")

    return add


def _bin_only(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _torn(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), r"no adapter_config\.json; model\.adapter is a folder"),
        (_bin_only, r"no adapter_model\.safetensors; .*other formats can run code"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json: not the configuration of a LoRA adapter"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), r"adapter_config\.json: not the configuration of a LoRA adapter"),
        (lambda f: _edit(f, peft_type="IA3"), "plain LoRA adapters are supported, not IA3"),
        (lambda f: _edit(f, use_dora=True), "plain LoRA adapters are supported, not LORA, use_dora"),
        (lambda f: _edit(f, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda f: _edit(f, bias="all"), "not LORA, bias"),
        (lambda f: _edit(f, r=8), r"of another model: it adapts lm_head .* with rank 3"),
        (_torn, r"adapter_model\.safetensors: cannot be read"),
        (_reshape, "the adapter is of another model: it adapts lm_head .*set model.path"),
        (_add("base_model.model.lm_head.lora_magnitude_vector.weight", 1), "not A and B of linear layers"),
        (_add("base_model.model.lm_head.lora_A.weight", float("nan")), "lm_head.lora_A.weight holds NaN"),
    ],
)
def test_what_is_no_adapter_for_this_model(tiny_vlm: Vlm, saved: Path, break_it: Callable[[Path], None], message: str) -> None:
    break_it(saved)
    with pytest.raises(ModelError, match=message):
        load(ModelTable(path=str(tiny_vlm.folder), device="cpu", adapter=str(saved)), Path())


def test_an_adapter_of_another_family_and_of_nowhere(tiny_qwen: Vlm, tiny_vlm: Vlm, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"of another model: it adapts \S+ .*this model has no such linear layer there"):
        load(ModelTable(path=str(tiny_qwen.folder), device="cpu", adapter=str(saved)), Path())
    with pytest.raises(ModelError, match=r"no such model folder; model\.adapter is a folder"):
        load(ModelTable(path=str(tiny_vlm.folder), device="cpu", adapter="./nowhere"), tmp_path)


def test_without_the_library(tiny_vlm: Vlm, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"model\.adapter needs the lora extra: pip install 'mixpo\[lora\]'"):
        load(ModelTable(path=str(tiny_vlm.folder), device="cpu", adapter=str(saved)), Path())
