"""The planned memory of a training, part by part, against what real tensors take."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch
from memory import uncollected
from small_run import open_small
from torch.profiler import ProfilerActivity, profile
from train.architectures import FAMILIES, vlm
from train.slow import Data

from mixpo.commands.memory import training_memory
from mixpo.recipe import TrainTable
from mixpo.train.adapters import prepare_trainable
from mixpo.train.compute_weights import compute_weights
from mixpo.train.logps import cast_inputs
from mixpo.train.memory_plan import plan_memory
from mixpo.train.model import build_optimizer, checkpoint_activations, use_master_weights
from mixpo.train.sharding import meta_copy_of
from mixpo.vlm.inputs import positions_like
from mixpo.vlm.load import Vlm

TOKENS = 640


def planned(one: Vlm, data: Data, table: TrainTable) -> Any:
    shapes = replace(one, model=meta_copy_of(one.model), cache={})
    prompt = next((prompt for prompt in data.prompts.values() if prompt.features), None)
    return plan_memory(shapes, table, prompts=3, prompt=prompt)


def held(work: Callable[[], Any]) -> int:
    """Bytes that are allocated after the work as long as its result lives, by PyTorch's profiler."""
    with uncollected(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        result = work()
        gc.collect()  # what the work itself has left in cycles is not held by its result
    assert result is not None
    return sum(event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.fixture(scope="module", params=["internvl", "qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest) -> tuple[Vlm, Data]:
    return vlm(FAMILIES[request.param]), Data(FAMILIES[request.param])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "extra",
    [{}, {"freeze": ["vision"]}, {"lora": {"rank": 4}}, {"optimizer": "adamw_8bit"}],
    ids=["full", "frozen vision", "lora", "8-bit optimizer"],
)
def test_weights_gradients_and_optimizer(made: tuple[Vlm, Data], dtype: torch.dtype, extra: dict[str, Any]) -> None:
    one, data = made
    if "lora" in extra:
        pytest.importorskip("peft")
    if "optimizer" in extra:
        pytest.importorskip("bitsandbytes")
    table = TrainTable.model_validate({"tokens_per_batch": 64, **extra})
    real = replace(one, model=copy.deepcopy(one.model).to(dtype), cache={})
    plan = planned(real, data, table)
    prepare_trainable(real, table, seed=0)
    use_master_weights(real.model)
    trained = [value for value in real.model.parameters() if value.requires_grad]
    frozen = sum(value.nbytes for value in real.model.parameters() if not value.requires_grad)
    copies = sum(value.numel() * 2 for value in trained) if dtype == torch.bfloat16 else 0
    assert plan.weights + plan.masters == frozen + sum(value.nbytes for value in trained) + copies
    for value in trained:
        value.grad = torch.zeros_like(value)
    assert plan.gradients == sum(value.grad.nbytes for value in trained if value.grad is not None)
    optimizer = build_optimizer(real.model, table)
    optimizer.step()
    tensors = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    state = sum({value.data_ptr(): value.nbytes for value in tensors}.values())  # parameters share the tables of 8-bit numbers
    assert plan.optimizer == pytest.approx(state, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_and_vision(made: tuple[Vlm, Data], dtype: torch.dtype, recompute: bool) -> None:
    one, data = made
    table = TrainTable(tokens_per_batch=TOKENS, gradient_checkpointing=recompute)
    real = replace(one, model=copy.deepcopy(one.model).to(dtype), cache={})
    plan = planned(real, data, table)
    model = real.model.train()
    use_master_weights(model)
    ids = torch.zeros((1, TOKENS), dtype=torch.long)
    features = next(prompt.features for prompt in data.prompts.values() if prompt.features)

    def text() -> Any:
        return model.base_model(input_ids=ids, position_ids=positions_like(real, ids), use_cache=False).last_hidden_state

    def vision() -> Any:
        inputs = {name: value.clone() for name, value in features.items()}  # a batch is in memory too
        return model.base_model.get_image_features(**cast_inputs(inputs, dtype), return_dict=True).pooler_output

    with compute_weights(model, dtype):
        whole = held(text), held(vision)
        if not recompute:
            assert plan.activations == pytest.approx(whole[0], rel=0.1)
            assert plan.vision == pytest.approx(3 * whole[1], rel=0.1)
            return
        checkpoint_activations(model, on=True)
        kept, layers = held(text), len(model.model.language_model.layers)
    # One layer at a time is recomputed beside what is kept.
    assert plan.activations == pytest.approx(kept + (whole[0] - kept) / layers, rel=0.1)


@pytest.mark.parametrize("settings", [(), ("model.dtype=bfloat16", "train.lora.rank=4")], ids=["float32", "lora"])
def test_the_memory_of_a_recipe(tmp_path: Path, tiny_folder: Path, tiny_vlm: Vlm, settings: tuple[str, ...]) -> None:
    """From the folder of a model, of which no weight is read."""
    if settings:
        pytest.importorskip("peft")
    context = open_small(small_run.make(tmp_path, tiny_folder), tmp_path / "run", "train.tokens_per_batch=512", *settings)
    plan = training_memory(context)
    size = sum(value.numel() for value in tiny_vlm.model.parameters())
    if settings:
        assert 2 * size < plan.weights < 2.5 * size
        assert plan.optimizer == 2 * plan.gradients < size
    else:
        assert (plan.weights, plan.gradients, plan.optimizer) == (4 * size, 4 * size, 8 * size)
    assert plan.total == plan.sharded + plan.activations + plan.vision + plan.head
    assert plan.activations > 512 * 4 * 48
    assert (plan.vision > 0) == (not settings)
