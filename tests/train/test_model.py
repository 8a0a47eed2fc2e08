"""Parts, dropout, parameter groups and learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
from failures import fails
from torch import nn
from train.architectures import FAMILIES
from train.architectures import vlm as family_vlm

from mixpo.errors import TrainError
from mixpo.recipe import TrainTable
from mixpo.train.model import build_optimizer, freeze, learning_rate, refuse_dropout, restore_dtypes, use_master_weights, weight_dtypes
from mixpo.vlm.load import Vlm


def test_freeze_says_how_much_is_trained(tiny_vlm: Vlm) -> None:
    model = copy.deepcopy(tiny_vlm.model)
    sizes = {size.part: size for size in freeze(model, ["vision"])}
    by_hand = sum(p.numel() for p in model.model.vision_tower.parameters())
    assert (sizes["vision"].total, sizes["vision"].trained) == (by_hand, 0)
    assert sizes["projector"].trained == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert sum(size.total for size in sizes.values()) == sum(p.numel() for p in model.parameters())
    assert str(sizes["vision"]) == f"vision {by_hand:,} parameters (frozen)"
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
    assert all(p.requires_grad for p in model.model.language_model.parameters())
    with pytest.raises(TrainError, match="nothing to train"):
        freeze(model, ["vision", "projector", "llm"])
    with pytest.raises(TrainError, match="no parameters that mixpo knows as its vision"):
        freeze(family_vlm(FAMILIES["text"]).model, ["vision"])


def test_dropout_is_refused_by_name(tiny_vlm: Vlm) -> None:
    model = copy.deepcopy(tiny_vlm.model)
    refuse_dropout(model)
    model.model.language_model.layers[1].self_attn.attention_dropout = 0.1
    with pytest.raises(TrainError, match=r"model\.language_model\.layers\.1\.self_attn\.attention_dropout = 0\.1"):
        refuse_dropout(model)
    with pytest.raises(TrainError, match=r"1\.p = 0\.2"):
        refuse_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2)))


def test_vectors_are_not_decayed(tiny_vlm: Vlm) -> None:
    model = copy.deepcopy(tiny_vlm.model)
    freeze(model, ["projector"])
    optimizer = build_optimizer(model, TrainTable(weight_decay=0.05))
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert ids == {id(p) for p in model.parameters() if p.requires_grad}


def test_learning_rates_by_hand() -> None:
    table = TrainTable(learning_rate=1.0, warmup=0.2, schedule="linear")
    assert [learning_rate(table, step, 10) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    cosine = TrainTable(learning_rate=1.0, warmup=0.0, schedule="cosine")
    assert [learning_rate(cosine, step, 4) for step in range(4)] == pytest.approx([1, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5])
    constant = TrainTable(learning_rate=0.25, warmup=0.0, schedule="constant")
    assert {learning_rate(constant, step, 7) for step in range(7)} == {0.25}
    assert learning_rate(TrainTable(learning_rate=1.0), 0, 1) == 1.0


def test_master_weights_and_back(tiny_vlm: Vlm) -> None:
    model = copy.deepcopy(tiny_vlm.model).bfloat16()
    before, dtypes = {name: value.clone() for name, value in model.named_parameters()}, weight_dtypes(model)
    freeze(model, ["vision"])
    use_master_weights(model)
    assert all(value.dtype == (torch.float32 if value.requires_grad else torch.bfloat16) for value in model.parameters())
    restore_dtypes(model, dtypes)
    assert all(torch.equal(value, before[name]) and value.dtype == torch.bfloat16 for name, value in model.named_parameters())
    with fails("float16-not-trainable", TrainError, key="model.dtype"):
        weight_dtypes(model.half())
