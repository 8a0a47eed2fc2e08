"""A family that does not fit is one sentence when its model is loaded, and in `mixpo check`."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from failures import fails

from mixpo.errors import ModelError
from mixpo.recipe import ImageTable, ModelTable
from mixpo.stages.models import Models
from mixpo.vlm import load as load_module
from mixpo.vlm.load import Vlm
from mixpo.vlm.trial import PICTURED, TEXT, refuse_unfit, trial_problems, trial_prompt


def breaking(monkeypatch: pytest.MonkeyPatch, vlm: Vlm, error: Exception, *, images: bool, text: bool) -> None:
    """The forward pass fails with an image, without one, or both."""
    plain = vlm.model.forward

    def forward(self: Any, **inputs: Any) -> Any:
        if images if "pixel_values" in inputs else text:
            raise error
        return plain(**inputs)

    monkeypatch.setattr(vlm.model, "forward", MethodType(forward, vlm.model))


def test_a_family_that_fits(tiny_vlm: Vlm, tiny_qwen: Vlm) -> None:
    for vlm in (tiny_vlm, tiny_qwen):
        refuse_unfit(vlm)
        assert [*trial_problems(vlm, PICTURED), *trial_problems(vlm, TEXT)] == []
        prompt = trial_prompt(vlm)
        assert prompt is not None
        assert prompt.images == 1


def test_foreign_errors_are_one_sentence(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, tiny_vlm, KeyError("cross_attention_mask"), images=True, text=False)
    with fails("family-not-supported", ModelError, path=tiny_vlm.folder) as refused:
        refuse_unfit(tiny_vlm)
    assert refused.message.startswith("internvl: a prompt with an image fails with KeyError: ")
    assert refused.parts == ("internvl", "with", refused.parts[2])
    assert list(trial_problems(tiny_vlm, PICTURED)) == [refused.message]
    assert list(trial_problems(tiny_vlm, TEXT)) == []


def test_a_family_without_text_prompts_is_refused_by_its_questions(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be trained on images alone."""
    breaking(monkeypatch, tiny_vlm, ValueError("no image"), images=False, text=True)
    refuse_unfit(tiny_vlm)
    (problem,) = trial_problems(tiny_vlm, TEXT)
    assert problem.startswith("internvl: a prompt without an image fails with ValueError: no image")


def test_out_of_memory_is_no_verdict(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, tiny_vlm, torch.OutOfMemoryError("full"), images=True, text=True)
    refuse_unfit(tiny_vlm)


def test_every_stage_loads_through_the_trial(tiny_folder: Path, tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, tiny_vlm, TypeError("unexpected argument"), images=True, text=True)
    monkeypatch.setattr(load_module, "load", lambda *_: tiny_vlm)
    models = Models(ModelTable(path=str(tiny_folder), device="cpu"), Path(), ImageTable())
    with fails("family-not-supported", ModelError):
        models.load(models.base_model())
