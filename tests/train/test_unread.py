"""Two ranks that each read their shards of a model train as if each had read it whole, and never hold much more than their share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file
from tiny import build_internvl, build_qwen
from train import unread_program, zoo
from train.architectures import FAMILIES, vlm
from train.cases import groups
from train.slow import Data
from train.test_ranks import KINDS
from train.unread_program import CASES

from mixpo.recipe import ModelTable
from mixpo.train.metrics import read_metrics
from mixpo.train.parts import find_parts, image_flow
from mixpo.vlm.load import load
from mixpo.vlm.shapes import load_unread

OTHERS = ["gemma3", "qwen3_vl_moe", "paligemma", "glm4v", "qwen3_5", "llava_onevision", "deepseek_vl", "cosmos3_edge"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_internvl(folder / "internvl")
    build_qwen(folder / "qwen")
    return folder


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have trained."""
    pytest.importorskip("peft")
    work, images = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("images")
    groups(load(ModelTable(path=str(models / "qwen"), device="cpu"), Path()), images)
    large(models / "qwen", models / "large")
    for name in OTHERS:
        torch.manual_seed(0)
        zoo.family(name).model().save_pretrained(models / "families" / name)
    done = forked.ranks(unread_program.main, models, images, work, environment=KINDS["fsdp2"])
    assert done.status == 0, done.error[-5000:]
    (work / "output.txt").write_text(done.out, encoding="utf-8")
    return work


def large(tiny: Path, folder: Path) -> None:
    """The tiny model with more and wider layers, 150 MB of weights in layers of 9 MB."""
    one = load(ModelTable(path=str(tiny), device="cpu"), Path())
    config = one.model.config
    config.text_config.update({"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 4})
    config.text_config.update({"rope_parameters": {**config.text_config.rope_parameters, "mrope_section": [16, 16, 16]}})
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = ["full_attention"] * 16
    config.vision_config.update({"out_hidden_size": 384})
    model = type(one.model)(config)
    model.generation_config = one.model.generation_config
    model.save_pretrained(folder)
    one.processor.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same_bit_for_bit(two: Path, name: str) -> None:
    whole, shards = (two / name / kind for kind in ("whole", "shards"))
    assert (two / name / "whole.txt").read_text() == (two / name / "shards.txt").read_text()
    rows = [read_metrics(folder / "work" / "metrics.jsonl") for folder in (whole, shards)]
    assert [(row.loss, row.grad_norm, row.delta) for row in rows[0]] == [(row.loss, row.grad_norm, row.delta) for row in rows[1]]
    files = [sorted(path.relative_to(folder) for path in (folder / "model").rglob("*") if path.is_file()) for folder in (whole, shards)]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix != ".safetensors":
            assert (whole / path).read_bytes() == (shards / path).read_bytes(), path
            continue
        saved, expected = load_file(shards / path), load_file(whole / path)
        assert saved.keys() == expected.keys()
        for key, value in saved.items():
            assert torch.equal(value, expected[key]), key


@pytest.mark.slow
def test_a_rank_holds_its_share(two: Path) -> None:
    """The ranks compare; see `peaks` in their program."""
    assert (two / "output.txt").read_text().count("in shards") == 2


@pytest.mark.parametrize("name", ["internvl", "qwen"])
def test_a_model_without_its_weights(models: Path, name: str) -> None:
    table = ModelTable(path=str(models / name), device="cpu")
    unread, whole = load_unread(table, Path()), load(table, Path())
    assert all(value.is_meta for value in unread.model.parameters())
    assert (unread.digest, unread.template_digest, unread.end_ids) == (whole.digest, whole.template_digest, whole.end_ids)
    assert unread.unread.whole().state_dict().keys() == whole.model.state_dict().keys()


@pytest.mark.parametrize("name", [*FAMILIES, "idefics3", "qwen3_vl_moe", "glm4v"])
def test_image_features_flow_the_same_without_values(name: str) -> None:
    family: Any = FAMILIES[name] if name in FAMILIES else zoo.family(name)
    one, data = vlm(family), Data(family)
    flow = image_flow(one, data.prompts["q0"])
    one.model.to("meta")
    one.unread = object()
    assert find_parts(one.model, image_flow(one, data.prompts["q0"])) == find_parts(one.model, flow)
