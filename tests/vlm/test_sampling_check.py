"""The check of sampling: prompts in one batch, prompts alone, and families that fit neither way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from failures import fails
from PIL import Image
from tiny import picture

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.transformers import TransformersEngine
from mixpo.errors import ModelError
from mixpo.recipe import ImageTable
from mixpo.vlm.inputs import batch_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, encode
from mixpo.vlm.sampling_check import why_not_joined


def prompts(vlm: Vlm) -> list[EncodedPrompt]:
    images = [Image.effect_noise((28, 28), 60 + number).convert("RGB") for number in range(2)]
    return [encode(vlm, "<image>\nHow many?", images[:1]), encode(vlm, "<image>\nWhich?", images[1:]), encode(vlm, "Why?", [])]


def patched(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the inputs of every batch that is sampled."""
    monkeypatch.setattr("mixpo.vlm.generate.batch_inputs", lambda *args: change(batch_inputs(*args)))


def test_a_family_that_fits(tiny_vlm: Vlm, tiny_qwen: Vlm) -> None:
    for vlm in (tiny_vlm, tiny_qwen):
        assert why_not_joined(vlm, prompts(vlm)) == ""


def crossed(inputs: dict[str, Any]) -> dict[str, Any]:
    """All images of a batch are the first one, as where indices of features are not moved along."""
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"][:1].expand_as(inputs["pixel_values"])
    return inputs


def test_what_cannot_be_joined_is_sampled_alone(tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        Request(
            key=str(number),
            prompt="<image>\nHow many?",
            images=(picture(tmp_path / f"{number}.png", (28, 28), number),),
            seeds=(0,),
            indices=(0,),
        )
        for number in range(3)
    ]
    how = SamplingParams(temperature=0, max_new_tokens=8)

    def answers(together: int) -> list[tuple[int, ...]]:
        engine = TransformersEngine(tiny_vlm, ImageTable(), together)
        return [sampled.responses[0].token_ids for sampled in engine.sample(requests, how)]

    expected = answers(1)
    patched(monkeypatch, crossed)
    assert "change by" in why_not_joined(tiny_vlm, prompts(tiny_vlm))
    assert answers(3) == expected


def test_a_batch_that_fails_is_no_batch(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    def single_only(inputs: dict[str, Any]) -> dict[str, Any]:
        if len(inputs["input_ids"]) > 1:
            raise IndexError("one prompt at a time")
        return inputs

    patched(monkeypatch, single_only)
    assert why_not_joined(tiny_vlm, prompts(tiny_vlm)) == "a batch fails with IndexError: one prompt at a time"


def test_wrong_even_alone_is_refused(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, lambda inputs: inputs | {"position_ids": inputs["position_ids"] * 0})
    with fails("family-sampling-differs", ModelError) as caught:
        why_not_joined(tiny_vlm, prompts(tiny_vlm))
    assert "internvl: tokens sampled for a prompt with an image have other log-probs" in caught.message


def test_a_forward_pass_that_fails_is_refused(tiny_vlm: Vlm) -> None:
    broken = replace(prompts(tiny_vlm)[0], features={"pixel_values": torch.zeros(1, 3, 14, 28)})
    with fails("family-sampling-fails", ModelError) as caught:
        why_not_joined(tiny_vlm, [broken])
    assert "docs/families.md" in caught.message
