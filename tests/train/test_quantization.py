"""QLoRA: an adapter on 4-bit weights is one on their dequantized values, whatever computes it and whatever is saved of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from failures import fails
from slow_rows import slow_except
from torch import Tensor
from train.architectures import FAMILIES
from train.architectures import vlm as family_vlm
from train.cases import fresh, groups, job, scored, timeless, train_until
from train.slow import Data, gradients, same_gradients, slow
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from mixpo.errors import MissingExtra, ModelError, TrainError
from mixpo.progress import Silent
from mixpo.recipe import LoraTable, ModelTable, TrainTable
from mixpo.train.adapters import prepare_trainable, target_layers
from mixpo.train.batch import make_chunk
from mixpo.train.collate import collate
from mixpo.train.layout_check import choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.memory_plan import plan_memory
from mixpo.train.prompt_cache import PromptCache
from mixpo.types import Group
from mixpo.vlm import adapter as lora
from mixpo.vlm.load import Vlm, check_weights, load
from mixpo.vlm.quantization import dequantize, described, linear_layers, loading_options, prepare, quantized_layers, values_of
from mixpo.vlm.shapes import load_shapes, load_unread

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

LORA = {"rank": 3, "alpha": 6.0}
SETTINGS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "lora": LORA}
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of the paper, appendix E."""


def table_of(folder: object, **more: Any) -> ModelTable:
    return ModelTable(path=str(folder), device="cpu", quantization="nf4", **more)


@pytest.fixture(scope="module")
def quantized(tiny_folder: Path) -> Vlm:
    """Shared: leave its weights alone."""
    return load(table_of(tiny_folder), Path())


@pytest.fixture(scope="module")
def scored_groups(quantized: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Group, ...]:
    return tuple(scored(quantized, groups(quantized, tmp_path_factory.mktemp("images"))))


@pytest.fixture(scope="module")
def trained(quantized: Vlm, scored_groups: tuple[Group, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Silent, Vlm]:
    folder, said, vlm = tmp_path_factory.mktemp("trained"), Silent(), fresh(quantized)
    before = bytes_of(vlm)
    result = train(job(vlm, list(scored_groups), folder, **SETTINGS), said)
    weights = {name: values_of(layer.weight) for name, layer in quantized_layers(quantized.model).items()}
    assert before == bytes_of(quantized), "the copy shares its weights"
    return (result, weights), said, vlm


def bytes_of(vlm: Vlm) -> dict[str, bytes]:
    return {name: layer.weight.data.numpy().tobytes() for name, layer in quantized_layers(vlm.model).items()}


def disturb(model: torch.nn.Module) -> None:
    """Make A and B something that is far from a new adapter."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora.parameters(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))


def nearest_nf4(weight: Tensor) -> Tensor:
    """Each weight as the nearest of the 16 values times the largest magnitude of its block of 64."""
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[((blocks / scale)[..., None] - values).abs().argmin(-1)]
    return (nearest * scale).flatten()[: weight.numel()].view_as(weight)


# --- what is quantized -------------------------------------------------------------------------------------------------------


def test_the_text_model_is_quantized_and_nothing_else(quantized: Vlm, tiny_vlm: Vlm) -> None:
    plain, ours = dict(tiny_vlm.model.named_parameters()), dict(quantized.model.named_parameters())
    assert plain.keys() == ours.keys()
    layers = {f"{name}.weight" for name in quantized_layers(quantized.model)}
    assert layers == {name for name in plain if ".language_model.layers." in name and name.endswith("_proj.weight")}
    for name, value in plain.items():
        if name not in layers:
            assert torch.equal(value, ours[name]), name
            continue
        value = value.detach()
        found, expected = values_of(ours[name]), nearest_nf4(value)
        assert float((found - expected).norm() / expected.norm()) < 0.01, name  # scales are in 8 bits
        assert 0.02 < float((found - value).norm() / value.norm()) < 0.15, name
    text = "14 linear layers of the text model are in 4 bits (NF4, double quantization): 32,256 of 78,256 parameters; "
    assert described(quantized.model) == text + "vision, projector, embeddings and output head are in float32"
    assert described(tiny_vlm.model) == ""


@pytest.mark.parametrize("name", slow_except(FAMILIES, "qwen2_5_vl"))
def test_packed_on_4_bits_is_one_at_a_time_on_dequantized_weights(name: str, tmp_path: Path) -> None:
    """Log-probs and gradients of A and B in packed rows, against an ordinary model with the same weights, one response at a time."""
    family = FAMILIES[name]
    one, data = family_vlm(family), Data(family)
    try:
        chosen = linear_layers(one.model)
    except ModelError as error:
        pytest.skip(str(error))
    one.model.save_pretrained(tmp_path)
    options = loading_options(one.model, torch.float32, torch.device("cpu"))
    model = type(one.model).from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True, **options).eval()
    prepare(model)
    assert quantized_layers(model).keys() == chosen.keys()
    vlm = replace(one, model=model, cache={})
    found = target_layers(model, LoraTable())
    assert set(found) >= set(chosen)
    lora.insert(model, lora.Adapter(rank=2, alpha=2, modules=found))
    disturb(model)
    assert choose_layout(vlm, data.chunks[:3], data.get, torch.float32, gradients=True)[0] == "tree"
    sums = Scorer(model, "tree")(collate(vlm, data.chunks, data.get, "tree")).sums
    (sums * data.factors).sum().backward()
    ours = gradients(model)
    dequantize(model)
    assert quantized_layers(model) == {}
    expected = slow(model, data)
    (expected * data.factors).sum().backward()
    assert torch.allclose(sums, expected, rtol=1e-5, atol=1e-5)
    same_gradients(ours, gradients(model))


# --- a whole training --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_4_bit_weights_stay(trained: tuple[Any, Silent, Vlm], quantized: Vlm) -> None:
    (result, weights), said, vlm = trained
    assert result.steps[-1].loss < 0.9 * result.steps[0].loss
    assert (result.steps[0].reward_chosen, result.steps[0].reward_rejected) == pytest.approx((0, 0), abs=1e-4)
    assert any("14 linear layers of the text model are in 4 bits" in line for line in said.lines)
    assert any("llm 49,200 parameters (frozen) with an adapter of 4,032 (trained)" in line for line in said.lines)
    delta = {name: layer.weight - weights[name] for name, layer in vlm.model.named_modules() if name in weights}
    assert delta.keys() == weights.keys()
    for name, change in delta.items():  # merged: what was added to the same 4-bit weights has rank 3
        assert int((torch.linalg.svdvals(change) > 1e-4).sum()) == LORA["rank"], name


def test_what_is_saved_is_what_was_trained(
    trained: tuple[Any, Silent, Vlm], quantized: Vlm, scored_groups: tuple[Group, ...], tiny_folder: Path
) -> None:
    """The merged folder, the adapter on 4-bit weights here, and the same with `peft` alone."""
    (result, _), _, _ = trained
    merged = load(ModelTable(path=str(result.folder), device="cpu"), Path())
    assert quantized_layers(merged.model) == {}
    assert not hasattr(merged.model.config, "quantization_config")
    ours = load(table_of(tiny_folder), Path(), result.folder)
    assert len(quantized_layers(ours.model)) == 14
    assert ours.template_digest == merged.template_digest
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )  # fmt: skip
    base: Any = AutoModelForImageTextToText.from_pretrained(
        str(tiny_folder), quantization_config=config, device_map="cpu", dtype=torch.float32, local_files_only=True
    )
    theirs = peft.PeftModel.from_pretrained(base, result.folder / "adapter").eval()
    group = scored_groups[0]
    inputs = collate(
        quantized, [make_chunk(group, group.pairs)], PromptCache(quantized, job(quantized, [], Path()).images).get, "plain"
    ).inputs
    with torch.no_grad():
        expected = merged.model(**inputs).logits
        assert torch.allclose(ours.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert torch.allclose(theirs(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert (quantized.model(**inputs).logits - expected).abs().max() > 0.1


def test_the_next_round_continues_the_adapter(trained: tuple[Any, Silent, Vlm], tiny_folder: Path, tmp_path: Path) -> None:
    """Its reference is the model with it, from the stage and online alike."""
    (result, _), _, _ = trained
    start = load(table_of(tiny_folder), Path(), result.folder)
    data = scored(start, groups(start, tmp_path / "images", count=3))
    rows = {}
    for reference in ("stage", "online"):
        again = train(job(fresh(start), data, tmp_path / reference, reference=reference, **SETTINGS), Silent())
        rows[reference] = [row.loss for row in again.steps]
        assert (again.steps[0].reward_chosen, again.steps[0].reward_rejected) == pytest.approx((0, 0), abs=1e-4)
    assert rows["online"] == pytest.approx(rows["stage"], rel=1e-5)
    with fails("lora-setting-mismatch", TrainError, key="train.lora.rank"):
        prepare_trainable(fresh(start), TrainTable.model_validate({"lora": {**LORA, "rank": 4}}), 0)


def test_resume_is_bit_equal(
    trained: tuple[Any, Silent, Vlm], quantized: Vlm, scored_groups: tuple[Group, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole, _), _, first = trained
    settings = {**SETTINGS, "save_every": 2}
    train_until(3, monkeypatch, job(fresh(quantized), list(scored_groups), tmp_path, **settings))
    second = fresh(quantized)
    resumed = train(job(second, list(scored_groups), tmp_path, **settings), Silent())
    assert [*map(timeless, resumed.steps)] == [*map(timeless, whole.steps)]
    assert all(torch.equal(value, first.model.get_parameter(name)) for name, value in second.model.named_parameters())


def test_a_checkpoint_of_other_weights_is_refused(
    quantized: Vlm, tiny_vlm: Vlm, scored_groups: tuple[Group, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 bits and without, files and digest of the model are the same."""
    settings = {**SETTINGS, "save_every": 1}
    train_until(1, monkeypatch, job(fresh(quantized), list(scored_groups), tmp_path, **settings))
    with pytest.raises(TrainError, match=r"other settings \(.*quantization"):
        train(job(fresh(tiny_vlm), list(scored_groups), tmp_path, **settings), Silent())


@pytest.mark.slow
def test_bfloat16_with_recomputation_and_an_8_bit_optimizer(tiny_folder: Path, tmp_path: Path) -> None:
    """As on a small GPU: the adapter on all parts but vision, packed, in bfloat16."""
    vlm = load(table_of(tiny_folder, dtype="bfloat16"), Path())
    data = scored(vlm, groups(vlm, tmp_path))
    more = {"gradient_checkpointing": True, "optimizer": "adamw_8bit", "lora": {**LORA, "parts": ["projector", "llm"]}}
    result = train(job(vlm, data, tmp_path, **{**SETTINGS, **more}), Silent())
    assert result.steps[-1].loss < 0.9 * result.steps[0].loss
    merged = load(ModelTable(path=str(result.folder), device="cpu", dtype="bfloat16"), Path())
    assert {value.dtype for value in merged.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_planned_memory_is_what_is_held(tiny_folder: Path, dtype: str) -> None:
    """Weights and their scales, with the largest layer dequantized, and the adapter in float32."""
    table = TrainTable.model_validate({"lora": LORA})
    plan = plan_memory(load_shapes(table_of(tiny_folder, dtype=dtype), Path()), table, prompts=1, prompt=None)
    model = load(table_of(tiny_folder, dtype=dtype), Path()).model
    vlm = replace(load(table_of(tiny_folder, dtype=dtype), Path()), model=model)
    states = [layer.weight.quant_state for layer in quantized_layers(model).values()]
    scales = sum(part.nbytes for one in states for part in (one.absmax, one.code, one.state2.absmax, one.offset))
    largest = max(layer.weight.quant_state.shape.numel() for layer in quantized_layers(model).values())
    prepare_trainable(vlm, table, 0)
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    frozen = sum(value.nbytes for value in model.parameters() if not value.requires_grad)
    element = 4 if dtype == "float32" else 2
    copies = trained // 4 * element if dtype == "bfloat16" else 0
    assert plan.weights + plan.masters == pytest.approx(frozen + scales + trained + copies + largest * element, rel=0.02)
    assert plan.gradients == trained


# --- refusals ----------------------------------------------------------------------------------------------------------------


def test_what_is_refused(quantized: Vlm, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fails("quantized-without-lora", TrainError, key="model.quantization"):
        prepare_trainable(fresh(quantized), TrainTable(), 0)
    with fails("quantization-not-sharded", ModelError, key="model.quantization"):
        load_unread(table_of(tiny_folder), Path())
    monkeypatch.setattr("mixpo.vlm.quantization.find_spec", lambda name: None)
    with fails("missing-extra", MissingExtra, key="bitsandbytes"):
        load(table_of(tiny_folder), Path())


def test_deepspeed_is_refused(quantized: Vlm, scored_groups: tuple[Group, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.train.session.strategy_of", lambda accelerator: "deepspeed")
    with fails("needs-whole-model", TrainError, key="model.quantization"):
        train(job(fresh(quantized), list(scored_groups), tmp_path, **SETTINGS), Silent())


def test_a_text_model_that_is_no_module_of_its_own(tiny_vlm: Vlm) -> None:
    model = fresh(tiny_vlm).model
    model.get_decoder = lambda: model.base_model
    with fails("quantization-not-supported", ModelError, key="model.quantization"):
        linear_layers(model)


@pytest.mark.parametrize(
    ("value", "code"), [(float("nan"), "weights-not-finite"), (float("inf"), "weights-not-finite"), (0.0, "weights-all-zero")]
)
def test_broken_weights(tiny_folder: Path, value: float, code: str) -> None:
    model = load(table_of(tiny_folder), Path()).model
    layer = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    broken = (
        torch.full((64, 48), value)
        if value == 0
        else torch.randn(64, 48).index_put_((torch.tensor(5), torch.tensor(5)), torch.tensor(value))
    )
    layer.weight = type(layer.weight)(broken, requires_grad=False, quant_type="nf4").to("cpu")
    with fails(code, ModelError):
        check_weights(model, "here")
