"""Image limits by source and domain: the same image tokens in sampling, reference, training and evaluation."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch
from failures import fails
from PIL import Image

from mixpo.engines import transformers as engine_module
from mixpo.errors import ModelError, RecipeError
from mixpo.images import reference
from mixpo.pipeline import run_recipe, run_until
from mixpo.recipe import ImageTable, ModelTable, parse
from mixpo.stages.models import Models
from mixpo.train import prompt_cache as cache_module
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.vision_cache import VisionCache
from mixpo.types import IMAGE_TOKEN, Group, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, encode

LIMITS = """
[image]
tiles = 1
[[image.limits]]
sources = ["chart", "document*"]
tiles = 2
[[image.limits]]
sources = ["photo"]
max_pixels = 784
"""
EXPECTED = {"chart": 12, "general": 4, "photo": 4}
"""Image tokens of a wide image: four for each of two tiles and the overview, or for one tile."""


def asked(folder: Path, domain: str = "", source: str = "") -> Question:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (80, 40), (200, 30, 30)).save(folder / "wide.png")
    return Question(
        id="0123456789abcdef", text=f"{IMAGE_TOKEN}\nHow many?", images=(reference(folder / "wide.png"),), domain=domain, source=source
    )


def image_tokens(vlm: Vlm, prompt: EncodedPrompt) -> int:
    return int((prompt.ids == vlm.model.config.image_token_id).sum())


def test_the_first_table_that_matches_counts() -> None:
    table = ImageTable.model_validate(
        {"tiles": 6, "max_pixels": 1000, "limits": [{"sources": ["doc*"], "tiles": 12}, {"sources": ["*"], "max_pixels": 10}]}
    )
    assert table.of(Question(id="q", text="?", source="docvqa")) == ImageTable(tiles=12, max_pixels=1000)
    assert table.of(Question(id="q", text="?", source="x", domain="document")) == ImageTable(tiles=12, max_pixels=1000)
    assert table.of(Question(id="q", text="?", source="x")) == ImageTable(tiles=6, max_pixels=10)
    assert table.of(Question(id="q", text="?")) is table


def test_wrong_limits_are_refused() -> None:
    base: dict[str, Any] = {"source": {"kind": "digits"}}
    with pytest.raises(RecipeError, match="min_pixels must not exceed max_pixels"):
        parse({**base, "image": {"min_pixels": 100, "limits": [{"sources": ["a"], "max_pixels": 10}]}}, "r.toml")
    served = {"engine": "openai", "server": {"urls": ["http://127.0.0.1:1/v1"]}}
    with pytest.raises(RecipeError, match="a server cuts all images into tiles the same way"):
        parse({**base, "sample": served, "image": {"limits": [{"sources": ["a"], "tiles": 2}]}}, "r.toml")
    parse({**base, "sample": served, "image": {"limits": [{"sources": ["a"], "max_pixels": 100}]}}, "r.toml")


def test_a_model_without_tiles_is_refused_before_any_work(tiny_qwen: Vlm) -> None:
    table = ImageTable.model_validate({"limits": [{"sources": ["a"], "tiles": 2}]})
    models = Models(ModelTable(path=str(tiny_qwen.folder), device="cpu"), Path(), table)
    with fails("tiles-not-supported", ModelError):
        models.words(models.base_model())


def test_a_tile_limit_lasts_for_one_prompt(tiny_vlm: Vlm) -> None:
    wide = Image.new("RGB", (80, 40))
    before = tiny_vlm.processor.image_processor.max_patches
    assert image_tokens(tiny_vlm, encode(tiny_vlm, IMAGE_TOKEN, [wide], tiles=1)) == 4
    assert image_tokens(tiny_vlm, encode(tiny_vlm, IMAGE_TOKEN, [wide])) == 12
    assert tiny_vlm.processor.image_processor.max_patches == before


def test_caches_keep_equal_questions_of_two_sources_apart(tiny_vlm: Vlm, tmp_path: Path) -> None:
    table = ImageTable.model_validate({"limits": [{"sources": ["chart"], "tiles": 2}, {"sources": ["photo"], "tiles": 1}]})
    prompts = PromptCache(tiny_vlm, table)
    groups = [
        Group(question=asked(tmp_path, domain), prompt=f"{IMAGE_TOKEN}\nHow many?", responses=((1,),), pairs=())
        for domain in ("chart", "photo")
    ]
    assert [image_tokens(tiny_vlm, prompts.get(group)) for group in groups * 2] == [12, 4, 12, 4]
    assert prompts.length(groups[0]) - prompts.length(groups[1]) == 8
    vision = VisionCache(tiny_vlm, table, prompts.get, torch.float32)
    assert [len(vision._get(group).pooler_output) for group in groups * 2] == [3, 1, 3, 1]
    assert (vision.hits, vision.misses) == (2, 2)


@pytest.mark.slow
def test_equal_image_tokens_in_all_stages(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.make(tmp_path, tiny_folder)
    domains = [*EXPECTED, *EXPECTED]
    for name, first in (("questions.jsonl", 11), ("held_out.jsonl", 501)):
        rows = small_run.rows(tmp_path, first, len(domains), open_every=100)
        for number, (row, domain) in enumerate(zip(rows, domains, strict=True)):
            Image.new("RGB", (80, 40), (number * 20, first % 256, 100)).save(tmp_path / str(row["image"]))
            row["domain"] = domain
        small_run.write_jsonl(tmp_path / name, rows)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe.read_text() + LIMITS)

    tokens: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    stage = ""

    def counted(vlm: Vlm, prompt: str, images: Any, history: Any = (), *, tiles: int = 0) -> EncodedPrompt:
        encoded = encode(vlm, prompt, images, history, tiles=tiles)
        if images:
            domain = domains[(images[0].getpixel((0, 0))[0] // 20) % len(domains)]
            tokens[stage][domain].add(image_tokens(vlm, encoded))
        return encoded

    monkeypatch.setattr(engine_module, "encode", counted)
    monkeypatch.setattr(cache_module, "encode", counted)
    stage = "sample"
    run_until(small_run.open_small(recipe, tmp_path / "sampled", 'sample.engine="transformers"', "sample.max_new_tokens=2"), "sample")
    scripted = small_run.open_small(recipe, tmp_path / "run", 'evaluate.engine="transformers"', "evaluate.max_new_tokens=2")
    for stage in ("reference", "train"):
        run_until(scripted, stage)
    stage = "evaluate"
    run_recipe(scripted)
    expected = {domain: {count} for domain, count in EXPECTED.items()}
    assert tokens == dict.fromkeys(("sample", "reference", "train", "evaluate"), expected)


def test_another_limit_makes_the_stages_with_pixels_stale(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    context = small_run.open_small(recipe, tmp_path / "run", 'image.limits=[{sources=["a"], max_pixels=100}]')
    other = small_run.open_small(recipe, tmp_path / "run", 'image.limits=[{sources=["b"], max_pixels=100}]')
    one, two = small_run.plan_of(context), small_run.plan_of(other)
    changed = {name for name in one.planned if one.planned[name].job.settings != two.planned[name].job.settings}
    assert small_run.kinds(changed) >= {"sample", "reference", "train", "answer"}
