"""Parts of a model, by what image features flow through: real families, and models whose names mislead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from failures import fails
from torch import nn
from train import zoo
from train.architectures import FAMILIES, IMAGE, TEXT, VIT, Family, Picture, vlm
from train.slow import Data

from mixpo.errors import TrainError
from mixpo.recipe import LoraTable, TrainTable
from mixpo.train.adapters import prepare_trainable, target_layers
from mixpo.train.model import freeze
from mixpo.train.parts import ModelParts, find_parts, image_flow
from mixpo.vlm.load import Vlm


def parts_of(vlm: Vlm, data: Data) -> ModelParts:
    return find_parts(vlm.model, image_flow(vlm, data.prompts["q0"]))


def by_module(parts: ModelParts, depth: int = 2) -> dict[str, str]:
    """Owners of each module as one word."""
    found: dict[str, set[str]] = {}
    for name, owners in parts.owners.items():
        found.setdefault(".".join(name.split(".")[:depth]), set()).add("|".join(sorted(owners)))
    return {name: "/".join(sorted(owners)) for name, owners in found.items()}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_structure_and_flow_agree(name: str) -> None:
    """Image features flow through vision and projector and nothing else; nothing is undecided, with an image or without."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    parts, flow = parts_of(one, data), image_flow(one, data.prompts["q0"])
    assert all(len(owners) == 1 for owners in parts.owners.values())
    assert (flow is not None) == (FAMILIES[name].picture is not None)
    if flow is not None:
        assert {owner for part in flow.image for owner in parts.of(part)} == {"vision", "projector"}
        assert {owner for part in flow.logits - flow.image for owner in parts.of(part)} == {"llm"}
    assert find_parts(one.model).owners == parts.owners


def test_parts_inside_a_tower() -> None:
    one = vlm(FAMILIES["qwen2_vl"])
    found = by_module(find_parts(one.model), 3)
    assert {name: owner for name, owner in found.items() if "visual" in name} == {
        "model.visual.patch_embed": "vision",
        "model.visual.blocks": "vision",
        "model.visual.merger": "projector",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("video_llava", {"model.image_tower": "vision", "model.video_tower": "vision", "model.multi_modal_projector": "projector"}),
        ("lighton_ocr", {"model.vision_encoder": "vision", "model.vision_projection": "projector"}),
        ("ovis2", {"model.vision_tower": "vision", "model.visual_embeddings_table": "projector"}),
    ],
)
def test_towers_whose_names_mislead(name: str, expected: dict[str, str]) -> None:
    family = zoo.family(name)
    found = by_module(parts_of(vlm(family), Data(family)))
    assert {module: owner for module, owner in found.items() if owner != "llm"} == expected


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_an_audio_tower_is_in_no_part(name: str) -> None:
    """Neither adapted with the LLM nor trained at all, because nothing flows through it."""
    config = zoo.shrunk(tf.CONFIG_MAPPING[name]())
    with torch.device("meta"):
        model = getattr(tf, zoo.NAMES[name])(config)
    assert by_module(find_parts(model)) == {
        "model.audio_tower": "other",
        "model.visual": "projector/vision",
        "model.language_model": "llm",
        "lm_head.weight": "llm",
    }
    assert not any("audio" in layer for layer in target_layers(model, LoraTable(parts=("vision", "projector", "llm"))))
    sizes = {size.part: size for size in freeze(model, [])}
    assert sizes["other"].trained == 0 < sizes["other"].total
    assert not any(parameter.requires_grad for parameter in model.model.audio_tower.parameters())


# --- models that a test writes to break the rule -------------------------------------------------------------------------


class _Hidden(nn.Module):
    """Bridges the features in a module whose name says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bridge = nn.Linear(48, 48)
        self.unused = nn.Linear(48, 48)


def _llava(change: Any) -> Family:
    def build() -> Any:
        config = tf.LlavaConfig(
            text_config={"model_type": "llama", **TEXT}, vision_config={"model_type": "clip_vision_model", **VIT}, image_token_index=IMAGE
        )
        model = tf.LlavaForConditionalGeneration(config)
        change(model)
        return model

    return Family(build, lambda rng, _: Picture([IMAGE] * 4, {"pixel_values": torch.randn(1, 3, 28, 28, generator=rng)}))


def bridged(model: Any) -> None:
    """A Q-Former, so to speak: image features pass through a module outside of tower and projector, a query and an idle generator."""
    model.model.abstractor = _Hidden()
    model.model.queries = nn.Parameter(torch.zeros(48))
    model.model.generation_decoder = nn.Linear(48, 48)
    projector = model.model.multi_modal_projector
    plain = projector.forward
    projector.forward = lambda features: model.model.abstractor.bridge(plain(features)) + model.model.queries


def test_what_image_features_flow_through_is_no_llm() -> None:
    family = _llava(bridged)
    one, data = vlm(family), Data(family)
    assert by_module(parts_of(one, data)) == {
        "model.vision_tower": "vision",
        "model.multi_modal_projector": "projector",
        "model.abstractor": "projector",
        "model.queries": "projector",
        "model.generation_decoder": "other",
        "model.language_model": "llm",
        "lm_head.weight": "llm",
    }
    sizes, _ = prepare_trainable(one, TrainTable.model_validate({"freeze": ["projector"]}), 0, data.prompts["q0"])
    frozen = {name.split(".")[1] for name, parameter in one.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"multi_modal_projector", "abstractor", "queries", "generation_decoder"}
    assert {size.part for size in sizes if size.trained} == {"vision", "llm"}


def test_an_undecided_part_stops_a_recipe_that_depends_on_it() -> None:
    """Without an image nothing shows what the bridge is for."""
    family = _llava(bridged)
    model = vlm(family).model
    assert find_parts(model).of("model.abstractor.bridge.weight") == {"vision", "projector", "llm"}
    with fails("part-uncertain", TrainError, key="train.lora.parts") as lora:
        target_layers(model, LoraTable(parts=("llm",)))
    assert "model.abstractor.bridge" in lora.message
    with fails("part-uncertain", TrainError, key="train.freeze"):
        freeze(model, ["projector"])
    assert all(size.trained == size.total for size in freeze(model, []))


def test_a_tower_inside_the_text_model() -> None:
    """What image features flow through is no LLM, wherever it is registered."""

    def swapped(model: Any) -> None:
        reader = model.model.multi_modal_projector
        del model.model.multi_modal_projector
        model.model.language_model.reader = reader
        object.__setattr__(model.model, "multi_modal_projector", reader)

    family = _llava(swapped)
    one, data = vlm(family), Data(family)
    parts = parts_of(one, data)
    assert parts.of("model.language_model.reader.linear_1.weight") == {"projector"}
    assert parts.of("model.language_model.layers.0.mlp.up_proj.weight") == {"llm"}
