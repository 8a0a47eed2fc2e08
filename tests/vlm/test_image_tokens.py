"""As many image tokens as image features: by the configuration where it tells, else by the model itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from failures import fails
from train import zoo
from train.architectures import IMAGE, vlm
from train.slow import Data

from mixpo.errors import ModelError
from mixpo.vlm.image_tokens import check_image_tokens, count_features
from mixpo.vlm.inputs import batch_inputs, positions_of
from mixpo.vlm.load import Vlm


@pytest.fixture(scope="module")
def hunyuan() -> tuple[Vlm, Data]:
    """A model that adds a token for each row and two borders to the merged grid, and has four position axes."""
    family = zoo.family("hunyuan_vl")
    return vlm(family), Data(family)


def test_the_model_counts_where_the_grid_does_not(hunyuan: tuple[Vlm, Data]) -> None:
    one, data = hunyuan
    for prompt in data.prompts.values():
        check_image_tokens(one, prompt.ids, prompt.features, int(bool(prompt.features)))
    prompt = data.prompts["q0"]
    count, grid = int((prompt.ids == IMAGE).sum()), prompt.features["image_grid_thw"]
    assert count_features(one.model, prompt.features) == count != int(grid.prod()) // 4
    fresh = replace(one, cache={})
    with fails("image-token-count-mismatch", ModelError) as wrong:
        check_image_tokens(fresh, torch.cat([prompt.ids, prompt.ids]), prompt.features, 1)
    assert f"{2 * count} image tokens where the model computes {count} features" in wrong.message


def test_without_weights_the_processor_tells(hunyuan: tuple[Vlm, Data]) -> None:
    one, data = hunyuan
    prompt = data.prompts["q0"]

    def light(merge: int) -> Vlm:
        processor = SimpleNamespace(tokenizer=None, image_processor=SimpleNamespace(merge_size=merge))
        return replace(one, model=SimpleNamespace(config=one.model.config), processor=processor, cache={})

    check_image_tokens(light(2), prompt.ids, prompt.features, 1)
    merged_otherwise = torch.full((8,), IMAGE)  # a processor that merges 8 patches to 8 tokens, where the model merges them to 2
    with fails("image-token-count-mismatch", ModelError):
        check_image_tokens(light(1), merged_otherwise, prompt.features, 1)


def test_position_axes_are_the_models(hunyuan: tuple[Vlm, Data]) -> None:
    one, data = hunyuan
    for prompt in data.prompts.values():
        assert positions_of(one, prompt).shape == (4, len(prompt))
    together: Any = batch_inputs(one, list(data.prompts.values()), "left")
    assert together["position_ids"].shape[0] == 4
