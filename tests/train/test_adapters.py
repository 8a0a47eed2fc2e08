"""Training an adapter: exact in every layout and family, saved merged and beside, gone on with, refused when it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slow_rows import slow_except
from train.architectures import FAMILIES, TYPICAL
from train.architectures import vlm as family_vlm
from train.cases import fresh, groups, job, timeless, train_until
from train.slow import Data, gradients, same_gradients, slow
from transformers import AutoModelForImageTextToText

from mixpo.errors import RecipeError, TrainError
from mixpo.progress import Silent
from mixpo.recipe import ImageTable, LoraTable, ModelTable, TrainTable, parse
from mixpo.recipe.train import Part
from mixpo.train.adapters import prepare_trainable, target_layers
from mixpo.train.collate import collate
from mixpo.train.layout_check import choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.model import checkpoint_activations
from mixpo.train.parts import find_parts
from mixpo.train.reference import ReferenceScorer
from mixpo.types import Group
from mixpo.vlm import adapter as lora
from mixpo.vlm.load import Vlm, load

peft = pytest.importorskip("peft")

LORA = {"rank": 3, "alpha": 6.0, "parts": ["llm", "projector"]}


def rescored(vlm: Vlm, found: list[Group], **table: Any) -> list[Group]:
    """With reference log-probs as the stage finds them for this training."""
    reference = ReferenceScorer(vlm, ImageTable(), TrainTable.model_validate(table))
    return [replace(group, reference=logps.sums) for group, logps in zip(found, reference.score(found), strict=True)]


def disturb(model: torch.nn.Module) -> None:
    """Make A and B something that is far from a new adapter."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora.parameters(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))


# --- exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_except(FAMILIES, *TYPICAL))
def test_packed_is_one_at_a_time_in_every_family(name: str) -> None:
    """Log-probs and gradients of A and B of all parts and the head, also recomputed; and the merged model is the same."""
    family = FAMILIES[name]
    one, data = family_vlm(family), Data(family)
    parts: tuple[Part, ...] = ("vision", "projector", "llm") if family.picture and _has_projector(one.model) else ("llm",)
    found = target_layers(one.model, LoraTable(parts=parts))
    head = next(name for name, module in one.model.named_modules() if module is one.model.get_output_embeddings())
    assert head not in found
    lora.insert(one.model, lora.Adapter(rank=2, alpha=2, modules=(*found, head)))
    disturb(one.model)
    expected = slow(one.model, data)
    (expected * data.factors).sum().backward()
    wanted = gradients(one.model)
    assert set(wanted) <= set(lora.parameters(one.model))
    for recompute in (False, True):
        if recompute:
            checkpoint_activations(one.model.train(), on=True)
        sums = Scorer(one.model, "tree")(collate(one, data.chunks, data.get, "tree")).sums
        (sums * data.factors).sum().backward()
        assert torch.allclose(sums, expected, rtol=1e-5, atol=1e-5)
        same_gradients(gradients(one.model), wanted)
    checkpoint_activations(one.model.eval(), on=False)
    assert choose_layout(one, data.chunks[:3], data.get, torch.float32)[0] == "tree"
    lora.merge(one.model)
    with torch.no_grad():
        assert torch.allclose(slow(one.model, data), expected, rtol=1e-4, atol=1e-3)


def _has_projector(model: torch.nn.Module) -> bool:
    parts = find_parts(model)
    return any(type(module) is torch.nn.Linear and parts.of(name) == {"projector"} for name, module in model.named_modules())


def test_adapted_head_in_tiles(tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary makes the head work tile by tile: the adapter's gradients stay."""
    from mixpo.train import token_logps
    from mixpo.train.batch import make_chunk
    from mixpo.train.prompt_cache import PromptCache

    vlm = fresh(tiny_vlm)
    lora.insert(vlm.model, lora.Adapter(rank=2, alpha=2, modules=("lm_head",)))
    disturb(vlm.model)
    batch = collate(vlm, [make_chunk(g, g.pairs) for g in groups(vlm, tmp_path)], PromptCache(vlm, ImageTable()).get, "tree")
    found = []
    for whole in (token_logps.FULL_LOGITS_BYTES, 1):
        monkeypatch.setattr(token_logps.token_logps, "__defaults__", (whole, 5 * 4 * 400))
        Scorer(vlm.model, "tree")(batch).sums.sum().backward()
        found.append(gradients(vlm.model))
    assert set(found[0]) == set(lora.parameters(vlm.model))
    same_gradients(found[1], found[0])


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"tokens_per_batch": 60}, {"gradient_checkpointing": True}, {"layout": "plain"}])
def test_however_a_step_is_computed(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"lora": LORA, "batch_size": 6, "epochs": 2}
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "a", **{**settings, "tokens_per_batch": 100_000}), Silent())
    if other.pop("layout", ""):
        monkeypatch.setattr("mixpo.train.session.choose_layout", lambda *_, **__: ("plain", "slow"))
    parts = train(job(fresh(tiny_vlm), data, tmp_path / "b", **{**settings, **other}), Silent())
    for one, two in zip(whole.steps, parts.steps, strict=True):
        assert (two.loss, two.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=1e-4)


# --- a whole training ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_adapter_is_trained_and_both_are_saved(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    vlm, said = fresh(tiny_vlm), Silent()
    a_job = job(vlm, data, tmp_path, epochs=4, lora=LORA, learning_rate=1e-2)
    result = train(a_job, said)
    assert result.steps[-1].loss < 0.9 * result.steps[0].loss
    assert result.steps[0].loss != result.steps[-1].loss
    saved = load_file(tmp_path / "work" / "checkpoints" / "step-000012" / "model.safetensors")
    values = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(values) == 2 * (2 * 7 + 2)
    assert all(torch.equal(saved[f"{name[17:-7]}.default.weight"], value) for name, value in values.items())
    assert any("llm 49,200 parameters (frozen) with an adapter of " in line for line in said.lines)
    sizes = {part.part: part.trained for part in result.parts}
    assert sizes["vision"] == 0
    assert sizes["llm"] + sizes["projector"] == sum(value.numel() for value in values.values())
    merged = load(ModelTable(path=str(result.folder), device="cpu"), Path())
    adapted = load(ModelTable(path=str(tiny_vlm.folder), device="cpu", adapter=str(result.folder / "adapter")), Path())
    base = AutoModelForImageTextToText.from_pretrained(str(tiny_vlm.folder), local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(base, result.folder / "adapter").eval()
    inputs = collate(vlm, _first(data), loop_prompts(vlm), "plain").inputs
    with torch.no_grad():
        expected = merged.model(**inputs).logits
        assert torch.allclose(adapted.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert torch.allclose(theirs(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        assert (tiny_vlm.model(**inputs).logits - expected).abs().max() > 0.1
    assert lora.layers(vlm.model) == {}


def _first(data: list[Group]) -> list[Any]:
    from mixpo.train.batch import make_chunk

    return [make_chunk(data[0], data[0].pairs)]


def loop_prompts(vlm: Vlm) -> Any:
    from mixpo.train.prompt_cache import PromptCache

    return PromptCache(vlm, ImageTable()).get


def test_a_wrong_merge_is_found_and_nothing_is_saved(
    tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lora.merge

    def forget_one(model: Any) -> None:
        disturb(model)
        real(model)

    monkeypatch.setattr(lora, "merge", forget_one)
    monkeypatch.setattr("mixpo.train.adapters.lora.merge", lambda model: forget_one(model) if lora.layers(model) else None)
    with pytest.raises(TrainError, match=r"the merged weights change log-probs by .* nothing was saved"):
        train(job(fresh(tiny_vlm), data, tmp_path, lora=LORA), Silent())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dropout", slow_except([0.0, 0.3], 0.3))
def test_resume_is_bit_equal(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    settings = {"epochs": 2, "batch_size": 4, "save_every": 2, "lora": {**LORA, "dropout": dropout}}
    torch.manual_seed(5)
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **settings), Silent())
    torch.manual_seed(5)
    train_until(3, monkeypatch, job(fresh(tiny_vlm), data, tmp_path / "cut", **settings))
    torch.manual_seed(99)
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **settings), Silent())
    assert [row.loss for row in resumed.steps] == [row.loss for row in whole.steps]
    assert [row.grad_norm for row in resumed.steps] == [row.grad_norm for row in whole.steps]
    one, two = (load_file(tmp_path / name / "model" / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(two[name], value) for name, value in one.items())


def test_dropout_begins_with_the_second_step(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2}
    without = train(job(fresh(tiny_vlm), data, tmp_path / "a", lora=LORA, **settings), Silent())
    noisy = train(job(fresh(tiny_vlm), data, tmp_path / "b", lora={**LORA, "dropout": 0.5}, **settings), Silent())
    assert timeless(noisy.steps[0]) == timeless(without.steps[0])
    assert noisy.steps[1].loss != pytest.approx(without.steps[1].loss, rel=1e-6)


def test_other_seeds_are_other_adapters(tiny_vlm: Vlm) -> None:
    found = []
    for seed in (1, 1, 2):
        vlm, before = fresh(tiny_vlm), torch.get_rng_state()
        prepare_trainable(vlm, TrainTable.model_validate({"lora": LORA}), seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(torch.cat([value.flatten() for value in lora.tensors(vlm.model).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
def test_bfloat16_weights_stay_as_they_are(tiny_vlm: Vlm, tmp_path: Path) -> None:
    """Half the memory for the frozen weights; the adapter is in float32; reference and policy start equal."""
    half = load(ModelTable(path=str(tiny_vlm.folder), dtype="bfloat16", device="cpu"), Path())
    data = rescored(half, groups(half, tmp_path / "images"), lora=LORA)
    seen: list[set[torch.dtype]] = []
    vlm = fresh(half)
    vlm.model.lm_head.register_forward_pre_hook(
        lambda *_: seen.append({p.dtype for n, p in vlm.model.named_parameters() if "lora" not in n})
    )
    result = train(job(vlm, data, tmp_path, lora=LORA, epochs=2, learning_rate=1e-2), Silent())
    assert all(types == {torch.bfloat16} for types in seen)
    values = load_file(result.folder / "adapter" / "adapter_model.safetensors").values()
    assert {value.dtype for value in values} == {torch.float32}
    assert {value.dtype for value in load_file(result.folder / "model.safetensors").values()} == {torch.bfloat16}
    # The stage computes as the training does, with an adapter or without.
    assert data == rescored(half, groups(half, tmp_path / "images"))
    assert max(abs(result.steps[0].reward_chosen), abs(result.steps[0].reward_rejected)) < 1e-3


# --- starting from an adapter ----------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tiny_vlm: Vlm, tmp_path: Path) -> Vlm:
    """The tiny model with an adapter that matters, loaded as a recipe would."""
    vlm = fresh(tiny_vlm)
    names = target_layers(vlm.model, LoraTable.model_validate(LORA))
    adapter = lora.Adapter(rank=3, alpha=6, modules=names)
    lora.insert(vlm.model, adapter)
    disturb(vlm.model)
    lora.write(tmp_path / "start", adapter, lora.tensors(vlm.model), "")
    return load(ModelTable(path=str(tiny_vlm.folder), device="cpu", adapter=str(tmp_path / "start")), Path())


@pytest.mark.parametrize(
    ("table", "reference"),
    slow_except(
        product(({"lora": LORA}, {"lora": {**LORA, "dropout": 0.2}}, {}), ("stage", "online")), ({"lora": LORA}, "stage"), ({}, "online")
    ),
)
def test_the_reference_is_the_policy_at_step_0(tiny_vlm: Vlm, adapted: Vlm, tmp_path: Path, table: dict[str, Any], reference: str) -> None:
    """Not the model without its adapter. Training goes on with the adapter, or with all weights and the adapter in them."""
    found = groups(adapted, tmp_path / "images")
    data = rescored(adapted, found, **table) if reference == "stage" else found
    without, withal = rescored(tiny_vlm, found), rescored(adapted, found)
    assert without[0].reference != pytest.approx(withal[0].reference, rel=1e-2)
    result = train(job(adapted, data, tmp_path, batch_size=12, epochs=2, reference=reference, **table), Silent())
    first = result.steps[0]
    assert (first.reward_chosen, first.reward_rejected) == pytest.approx((0, 0), abs=1e-4)
    mean = sum(group.reference[chosen] for group in withal for chosen, _ in group.pairs if group.reference) / 12
    assert first.logp_chosen == pytest.approx(mean, rel=1e-5)
    assert (result.folder / "adapter").exists() == bool(table)
    again = load(ModelTable(path=str(result.folder), device="cpu"), Path())
    assert lora.layers(again.model) == {}


def test_sampling_uses_the_adapter(tiny_vlm: Vlm, adapted: Vlm) -> None:
    from mixpo.engines.base import Request, SamplingParams
    from mixpo.engines.transformers import TransformersEngine

    written = []
    merged = fresh(adapted)
    lora.merge(merged.model)
    for vlm in (tiny_vlm, adapted, merged):
        engine = TransformersEngine(vlm, ImageTable(), batch_size=4)
        request = Request(key="q", prompt="What is the sum?", images=(), seeds=(1, 2), indices=(0, 1))
        (sampled,) = engine.sample([request], SamplingParams(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=12))
        written.append([response.token_ids for response in sampled.responses])
    assert written[1] == written[2]
    assert written[0] != written[1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({**LORA, "rank": 4}, r"train\.lora\.rank is 4, but model\.adapter has 3; set it to 3"),
        ({**LORA, "alpha": 3.0}, r"train\.lora\.alpha is 3, but model\.adapter has 6"),
        ({**LORA, "parts": ["llm"]}, r"name other layers than model\.adapter has \(\S*projector\S* is adapted there"),
        ({**LORA, "parts": ["vision", "llm", "projector"]}, r"vision_tower\S* is not adapted there, 12 such layers"),
    ],
)
def test_the_recipe_must_say_what_the_adapter_is(adapted: Vlm, table: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        prepare_trainable(adapted, TrainTable.model_validate({"lora": table}), 0)


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_targets(tiny_vlm: Vlm) -> None:
    model = tiny_vlm.model
    found = target_layers(model, LoraTable(parts=("llm",), modules=("q_proj", "layers.1.mlp.up_proj", "lm_head")))
    layers = "model.language_model.layers"
    assert found == ("lm_head", f"{layers}.0.self_attn.q_proj", f"{layers}.1.mlp.up_proj", f"{layers}.1.self_attn.q_proj")
    assert len(target_layers(model, LoraTable(parts=("vision",)))) == 12
    assert all("projector" in name for name in target_layers(model, LoraTable(parts=("projector",))))
    with pytest.raises(TrainError, match=r"modules: 'q_prj' matches no linear layer of llm, did you mean 'q_proj'\?; there are down_proj"):
        target_layers(model, LoraTable(modules=("q_prj",)))
    with pytest.raises(TrainError, match="'embed_tokens' matches no linear layer"):
        target_layers(model, LoraTable(modules=("embed_tokens",)))
    text = family_vlm(FAMILIES["text"]).model
    with pytest.raises(TrainError, match=r"parts: Qwen3ForCausalLM has no linear layers .* as its vision; remove it from the list"):
        target_layers(text, LoraTable(parts=("vision", "llm")))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"lora": {"parts": ["lmm"]}}, "r.toml: train.lora: parts: must be 'vision', 'projector' or 'llm' (got 'lmm')"),
        ({"lora": {"parts": []}}, "lora: parts is empty, so there is nothing to train"),
        ({"lora": {"rnk": 3}}, "train.lora: unknown key 'rnk', did you mean 'rank'?"),
        ({"lora": {}, "freeze": ["vision"]}, "freeze has no meaning with train.lora"),
        ({"cache_vision": True}, "cache_vision needs frozen vision"),
        ({"cache_vision": True, "freeze": ["vision"]}, "cache_vision needs frozen vision"),
        ({"cache_vision": True, "lora": {"parts": ["llm", "vision"]}}, "cache_vision needs frozen vision"),
        ({"objective": "tr_dpo"}, 'moves its reference, which no stage can know; set train.reference = "online"'),
        ({"baselines": ["tr_dpo+sft"], "reference": "online", "lora": {}}, "a mean of adapters is not the adapter of the mean"),
    ],
)
def test_recipes_that_contradict_themselves(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"source": {"kind": "digits"}, "train": table}, "r.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_that_do_not() -> None:
    for table in (
        {"cache_vision": True, "lora": {}},
        {"cache_vision": True, "freeze": ["projector", "vision"]},
        {"objective": "tr_dpo", "reference": "online", "lora": {}, "loss": {"reference_alpha": 1}},
    ):
        recipe = parse({"source": {"kind": "digits"}, "train": table}, "r.toml")
        assert parse(json.loads(json.dumps(recipe.model_dump(mode="json"))), "again") == recipe
