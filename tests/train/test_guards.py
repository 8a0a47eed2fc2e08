"""Checks before the first update: what a mismatch of policy and reference is put down to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from failures import fails

from mixpo.errors import TrainError
from mixpo.train.guards import BatchLogps, check_reference


def session(template: str, online: object = None) -> Any:
    accelerator = SimpleNamespace(device="cpu", reduce=lambda value, how: value)
    vlm = SimpleNamespace(processor=SimpleNamespace(chat_template=template))
    return SimpleNamespace(precision=torch.float32, online=online, accelerator=accelerator, job=SimpleNamespace(vlm=vlm))


def seen(policy: float) -> BatchLogps:
    index = torch.tensor([0])
    return BatchLogps(("q",), torch.tensor([policy]), torch.tensor([-5.0]), torch.tensor([4]), index, index)


@pytest.mark.parametrize(
    ("template", "online", "cause"),
    [
        ("{{ messages }}", None, "its records are of another model, template or image setting"),
        ("{{ strftime_now('%d %b %Y') }}{{ messages }}", None, "the chat template writes today's date into the prompt (strftime_now)"),
        ("{{ strftime_now('%d %b %Y') }}", object(), "the copy of the base model differs from it"),
    ],
)
def test_a_mismatch_names_its_cause(template: str, online: object, cause: str) -> None:
    with fails("reference-mismatch", TrainError) as failure:
        check_reference(session(template, online), [seen(-5.0), seen(-6.0)])
    assert cause in failure.message


def test_equal_log_probs_pass() -> None:
    check_reference(session("{{ strftime_now('%d %b %Y') }}"), [seen(-5.0)])
