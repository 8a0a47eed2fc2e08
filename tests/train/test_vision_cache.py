"""Vision features that are kept: the same numbers in every family that can take them, each image computed once, within a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_rows import slow_except
from train.architectures import FAMILIES, TYPICAL
from train.architectures import vlm as family_vlm
from train.cases import fresh, groups, job, scored
from train.slow import Data
from train.test_logps import SHARED, chunks

from mixpo.progress import Silent
from mixpo.recipe import ImageTable
from mixpo.train.batch import Layout
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.vision_cache import VisionCache, open_vision_cache
from mixpo.types import Group
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

IMAGES = ImageTable()
UNSHARED = {"smolvlm", "idefics3"}
"""Not laid out in padded rows that share images."""


@SHARED
@pytest.mark.parametrize("layout", ["tree", "shared"])
@pytest.mark.parametrize("name", slow_except([name for name, family in FAMILIES.items() if family.picture], *TYPICAL))
def test_every_family(name: str, layout: Layout) -> None:
    """Twice the same log-probs as without, from what was computed for one question at a time."""
    one, data = family_vlm(FAMILIES[name]), Data(FAMILIES[name])
    if layout == "shared" and name in UNSHARED:
        pytest.skip("not laid out like this")
    vision_cache, note = open_vision_cache(one, IMAGES, data.get, layout, torch.float32, data.chunks)
    assert vision_cache is not None, note
    scorer, batch = Scorer(one.model, layout), collate(one, data.chunks, data.get, layout)
    with torch.no_grad():
        expected = scorer(batch).sums
        for _ in range(2):
            filled = vision_cache.fill(batch, data.chunks)
            assert torch.allclose(scorer(filled).sums, expected, rtol=1e-5, atol=1e-5)
    with_images = sum(bool(chunk.group.question.images) for chunk in data.chunks)
    assert (vision_cache.hits, vision_cache.misses) == (with_images, with_images)
    assert not any(name.startswith("pixel") for name in filled.inputs)
    # The other way round: features of other questions are noticed.
    vision_cache._entries = dict(zip(vision_cache._entries, reversed(vision_cache._entries.values()), strict=True))
    try:
        with torch.no_grad():
            assert not torch.allclose(scorer(vision_cache.fill(batch, data.chunks)).sums, expected, atol=1e-3)
    except ValueError:
        pass  # these have another number of tokens


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda batch, _: replace(batch, inputs={**batch.inputs, "pixel_values": torch.zeros(1)}), "fails with ValueError: You cannot"),
        (lambda batch, _: replace(batch, features=None), "would change log-probs by"),
    ],
)
@SHARED
def test_a_model_that_takes_none_goes_without(
    tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, reason: str
) -> None:
    """Said in a sentence, and the training is the same."""
    real = VisionCache.fill
    monkeypatch.setattr(VisionCache, "fill", lambda *args: broken(real(*args), args))
    data, said = scored(tiny_vlm, groups(tiny_vlm, tmp_path / "images")), Silent()
    result = train(job(fresh(tiny_vlm), data, tmp_path, freeze=["vision", "projector"], cache_vision=True), said)
    assert any(f"vision features are not kept: handing them in {reason}" in line for line in said.lines)
    assert len(result.steps) == 3


def test_padded_rows_with_their_own_images_keep_nothing(tiny_vlm: Vlm, tmp_path: Path) -> None:
    prompts = PromptCache(tiny_vlm, IMAGES)
    vision_cache, note = open_vision_cache(tiny_vlm, IMAGES, prompts.get, "plain", torch.float32, chunks(groups(tiny_vlm, tmp_path)))
    assert (vision_cache, "the plain layout computes them in every row" in note) == (None, True)


@SHARED
def test_images_pass_the_tower_once_in_a_training(tiny_vlm: Vlm, tmp_path: Path) -> None:
    """Over three epochs; losses, gradients and weights are those without, to the last bit that batches leave."""
    data = scored(tiny_vlm, groups(tiny_vlm, tmp_path / "images"))
    results, counted, said = [], [], Silent()
    for cached in (False, True):
        vlm, tiles = fresh(tiny_vlm), [0]
        settings: dict[str, Any] = {"epochs": 6, "batch_size": 12, "freeze": ["vision", "projector"], "cache_vision": cached}
        tower = vlm.model.model.vision_tower

        def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tiles: list[int] = tiles) -> None:
            tiles[0] += len([*args, *kwargs.values()][0])

        tower.register_forward_pre_hook(count, with_kwargs=True)
        results.append(train(job(vlm, data, tmp_path / str(cached), **settings), said))
        counted.append(tiles[0])
    for one, two in zip(results[0].steps, results[1].steps, strict=True):
        assert (two.loss, two.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=1e-5)
    assert any("vision features: 20 taken from memory, 4 computed" in line for line in said.lines)
    assert counted[1] < counted[0] - 10


@SHARED
def test_alone_it_is_the_same_to_the_last_bit(tiny_vlm: Vlm, tmp_path: Path) -> None:
    """With one question in a batch nothing is rounded otherwise, kept or not."""
    found = chunks([group for group in groups(tiny_vlm, tmp_path, 3) if group.question.images])
    prompts = PromptCache(tiny_vlm, IMAGES)
    vision_cache, scorer = VisionCache(tiny_vlm, IMAGES, prompts.get, torch.float32), Scorer(tiny_vlm.model, "tree")
    for chunk in found:
        batch = collate(tiny_vlm, [chunk], prompts.get, "tree")
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(scorer(vision_cache.fill(batch, [chunk])).sums, scorer(batch).sums)
    assert (vision_cache.hits, vision_cache.misses) == (len(found), len(found))


def test_memory_is_bounded_and_pixels_are_part_of_the_key(tiny_vlm: Vlm, tmp_path: Path) -> None:
    found: list[Group] = [group for group in groups(tiny_vlm, tmp_path) if group.question.images]
    prompts = PromptCache(tiny_vlm, IMAGES)
    batches = [(collate(tiny_vlm, [chunk], prompts.get, "tree"), [chunk]) for chunk in chunks(found)]
    one_tile = 4 * 48 * 4
    vision_cache = VisionCache(tiny_vlm, IMAGES, prompts.get, torch.float32, max_bytes=5 * one_tile)
    for _ in range(2):
        for batch, chunk in batches:
            vision_cache.fill(batch, chunk)
    assert vision_cache.size == 5 * one_tile
    assert (vision_cache.hits, vision_cache.misses) == (2, 6)
    other = VisionCache(tiny_vlm, ImageTable(max_pixels=100), prompts.get, torch.float32)
    other._entries = dict(vision_cache._entries)
    other.fill(*batches[0])
    assert (other.hits, other.misses) == (0, 1)
    moved = replace(found[0], question=replace(found[0].question, images=found[1].question.images))
    vision_cache.fill(batches[0][0], [batches[0][1][0]._replace(group=moved)])
    assert (vision_cache.hits, vision_cache.misses) == (3, 6)
