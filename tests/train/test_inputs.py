"""Micro-batches made ahead are those made when needed; errors come at their step; prompts are encoded once, and few ahead."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.cases import fresh, group, groups, job, scored

from mixpo.errors import ImageError
from mixpo.progress import Silent
from mixpo.train import loop
from mixpo.train.batch import make_chunk, micro_batches, step_chunks
from mixpo.train.collate import AHEAD, collate, on_device
from mixpo.train.inputs import StepInputs
from mixpo.train.loop import train
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.session import open_session
from mixpo.types import Group
from mixpo.vlm.load import Vlm


@pytest.fixture(scope="module")
def data(tiny_vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    return scored(tiny_vlm, groups(tiny_vlm, tmp_path_factory.mktemp("images")))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a batch."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for part in value.values() for tensor in tensors(part))
    elif isinstance(value, (tuple, list)):
        yield from (tensor for part in value for tensor in tensors(part))
    elif is_dataclass(value):
        yield from (tensor for field in fields(value) for tensor in tensors(getattr(value, field.name)))


def test_batches_are_those_made_when_needed(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    session = open_session(job(fresh(tiny_vlm), data, tmp_path, batch_size=3, epochs=2, tokens_per_batch=90), Silent())
    session.state.step = 2  # resumed
    prompts, count = PromptCache(tiny_vlm, session.job.images), 0
    with StepInputs(session) as inputs:
        for plan, step in zip(inputs, session.schedule.steps(2), strict=True):
            assert plan.step == step
            assert plan.batches == micro_batches(step_chunks(step, data), prompts.length, 90, session.layout)
            for number, chunks in enumerate(plan.batches):
                ready, expected = inputs.batch(plan, number, chunks), collate(tiny_vlm, chunks, prompts.get, session.layout)
                assert all(torch.equal(*both) or both[0].isnan().any() for both in zip(tensors(ready), tensors(expected), strict=True))
                count += 1
    assert count > session.schedule.total - 2


def test_an_unreadable_image_stops_at_its_step(tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scored(tiny_vlm, [group(tiny_vlm, tmp_path / "images", number, 1, 2) for number in range(8)])
    a_job = job(fresh(tiny_vlm), data, tmp_path, batch_size=1)
    order = [step[0].group for step in a_job.schedule.steps(0)]
    broken, advanced, real = data[order[6]], list[int](), loop._advance

    def advance(session: Any, row: Any) -> None:
        real(session, row)
        advanced.append(row.step)
        Path(broken.question.images[0].path).unlink(missing_ok=True)

    monkeypatch.setattr(loop, "_advance", advance)
    monkeypatch.setattr(PromptCache, "length", lambda self, group: 30)  # as where the reference stage has counted
    monkeypatch.setattr(PromptCache, "_keep", lambda self, key, encoded: None)
    with pytest.raises(ImageError, match=f"question {broken.question.id}: .*no such image"):
        train(a_job, Silent())
    assert advanced == [*range(1, 7)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mixpo-prefetch")]


def test_prompts_are_encoded_once_and_few_ahead(tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [replace(one, prompt_tokens=30) for one in (group(tiny_vlm, tmp_path / "images", number, 1, 2) for number in range(24))]
    data = [replace(one, reference=(-1.0,) * len(one.responses)) for one in data]
    session = open_session(job(fresh(tiny_vlm), data, tmp_path, batch_size=12, tokens_per_batch=60), Silent())
    session.prompts, encoded, real = PromptCache(tiny_vlm, session.job.images, max_bytes=1), Counter[str](), PromptCache._encode

    def counted(self: PromptCache, question: Any, prompt: str) -> Any:
        encoded[question.id] += 1
        return real(self, question, prompt)

    monkeypatch.setattr(PromptCache, "_encode", counted)
    taken = 0
    with StepInputs(session) as inputs:
        for plan in inputs:
            for number, chunks in enumerate(plan.batches):
                inputs.batch(plan, number, chunks)
                taken += len(chunks)
                assert len(encoded) <= taken + AHEAD * max(map(len, plan.batches))
    assert taken == 24
    assert encoded == Counter({one.question.id: 1 for one in data})


@pytest.mark.parametrize("layout", ["tree", "shared", "plain", "single"])
def test_all_tensors_move(tiny_vlm: Vlm, data: list[Group], layout: Any) -> None:
    chunks = [make_chunk(one, one.pairs) for one in data]
    batch = collate(tiny_vlm, chunks, PromptCache(tiny_vlm, job(tiny_vlm, data, Path()).images).get, layout)
    assert on_device(batch, torch.device("cpu")) is batch
    moved = on_device(batch, torch.device("meta"))
    assert len([*tensors(moved)]) == len([*tensors(batch)]) > 10
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
