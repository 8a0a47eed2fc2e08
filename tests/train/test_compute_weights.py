"""Computing in bfloat16 beside float32 weights: what is multiplied in which type, and how close gradients stay to float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from train import zoo
from train.architectures import FAMILIES, vlm
from train.slow import Data, gradients

from mixpo.train.collate import collate
from mixpo.train.compute_weights import compute_weights, same_weights
from mixpo.train.logps import Scorer, cast_inputs
from mixpo.train.model import checkpoint_activations
from mixpo.vlm.load import Vlm

PRODUCTS = ("mm.", "mm_", "convolution", "scaled_dot_product", "linear.")
"""In the names of operations that multiply matrices."""


class Recorder(TorchDispatchMode):
    """Names and dtypes of all products of matrices. Outer products, such as positions times frequencies, are none."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[str, frozenset[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [value for value in args if isinstance(value, Tensor) and value.is_floating_point()]
        name = str(func)
        outer = "mm" in name and len(inputs) == 2 and inputs[0].shape[-1] == 1
        if any(word in name for word in PRODUCTS) and not outer:
            # The log-sum-exp of attention is in float32 whatever the rest.
            matrices = [value for value in inputs if value.ndim > 1 and not ("backward" in name and value.dtype == torch.float32)]
            self.products.append((name, frozenset(value.dtype for value in matrices)))
        return func(*args, **(kwargs or {}))


class AutocastScorer(Scorer):
    """What `Scorer` was before: float32 weights under autocast."""

    casting = "autocast"


@pytest.fixture(scope="module", params=["internvl", "qwen3_moe", "zoo:qwen3_vl_moe"])
def made(request: pytest.FixtureRequest) -> tuple[Vlm, Data]:
    name = request.param
    family = zoo.family(name.removeprefix("zoo:")) if name.startswith("zoo:") else FAMILIES[name]
    return exact_in_bfloat16(vlm(family)), Data(family)


def exact_in_bfloat16(one: Vlm) -> Vlm:
    """With weights in float32 that bfloat16 has, as those of a model on disk."""
    for parameter in one.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return one


def gradients_of(one: Vlm, data: Data, scorer: Scorer) -> dict[str, Tensor]:
    sums = scorer(collate(one, data.chunks, data.get, scorer.layout)).sums
    (sums * data.factors).sum().backward()
    return gradients(one.model)


def test_every_product_is_in_bfloat16(made: tuple[Vlm, Data]) -> None:
    one, data = made
    streams: set[torch.dtype] = set()
    layers = next(module for module in one.model.base_model.modules() if isinstance(module, nn.ModuleList))
    handles = [layer.register_forward_hook(lambda *call: streams.add(_first(call[-1]).dtype)) for layer in layers]
    with Recorder() as recorder:
        gradients_of(one, data, Scorer(one.model, "tree", torch.bfloat16))
    for handle in handles:
        handle.remove()
    assert streams == {torch.bfloat16}
    wrong = {product for product in recorder.products if product[1] - {torch.bfloat16}}
    assert not wrong
    assert len(recorder.products) > 50
    grouped = any("grouped_mm" in name for name, _ in recorder.products)
    assert grouped == any("experts" in name for name, _ in one.model.named_parameters())
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("name", ["internvl", "qwen3_moe"])
def test_gradients_are_nearly_as_close_to_float32_as_under_autocast(name: str) -> None:
    """What differs is the rounding of the residual stream, which autocast leaves in float32; a mean over three models, with its luck."""
    ours = autocast = 0.0
    for seed in range(3):
        one, data = exact_in_bfloat16(vlm(FAMILIES[name], seed)), Data(FAMILIES[name])
        exact, *rough = (
            gradients_of(one, data, scorer)
            for scorer in (
                Scorer(one.model, "tree"),
                Scorer(one.model, "tree", torch.bfloat16),
                AutocastScorer(one.model, "tree", torch.bfloat16),
            )
        )
        norm = sum(float(value.norm() ** 2) for value in exact.values()) ** 0.5
        errors = [sum(float((found[key] - exact[key]).norm() ** 2) for key in exact) ** 0.5 / norm for found in rough]
        ours, autocast = ours + errors[0] / 3, autocast + errors[1] / 3
    assert ours < 1.5 * autocast < 0.2


def test_a_step_is_that_of_a_model_in_bfloat16(made: tuple[Vlm, Data]) -> None:
    """Bit for bit: policy and reference are equal at the start, though one has float32 weights and one does not."""
    one, data = made
    half = replace(one, model=copy.deepcopy(one.model), cache={})
    for parameter in half.model.parameters():
        parameter.data = parameter.data.bfloat16()  # not the buffers, which no checkpoint holds
    with torch.no_grad():
        sums = [Scorer(each.model, "tree", torch.bfloat16)(collate(each, data.chunks, data.get, "tree")).sums for each in (one, half)]
    assert torch.equal(*sums)


def test_recomputed_activations_use_the_same_weights(made: tuple[Vlm, Data]) -> None:
    one, data = made
    expected = gradients_of(one, data, Scorer(one.model, "tree", torch.bfloat16))
    again = replace(one, model=copy.deepcopy(one.model), cache={})
    checkpoint_activations(again.model.train(), on=True)
    found = gradients_of(again, data, Scorer(again.model, "tree", torch.bfloat16))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_are_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    before = dict(model.named_parameters())

    @contextmanager
    def broken() -> Iterator[None]:
        with compute_weights(model, torch.bfloat16):
            assert model[0].weight is model[1].weight
            assert model[0].weight.dtype == torch.bfloat16
            yield

    with pytest.raises(RuntimeError, match="stop"), broken():
        raise RuntimeError("stop")
    assert all(value is before[name] for name, value in model.named_parameters())
    with compute_weights(model, torch.float32):
        assert all(value is before[name] for name, value in model.named_parameters())


def test_what_a_family_keeps_in_float32_stays() -> None:
    model = nn.ModuleDict({"gate": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    model._keep_in_fp32_modules_strict = {"gate.weight"}  # type: ignore[assignment]
    with compute_weights(model, torch.bfloat16):
        again = same_weights(model)
        dtypes = {name: value.dtype for name, value in model.named_parameters()}
    assert dtypes.pop("gate.weight") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    with again:
        assert model["other"].weight.dtype == torch.bfloat16
    assert model["other"].weight.dtype == torch.float32


def test_model_inputs_follow() -> None:
    found = cast_inputs({"pixels": torch.zeros(2), "ids": torch.zeros(2, dtype=torch.long)}, torch.bfloat16)
    assert (found["pixels"].dtype, found["ids"].dtype) == (torch.bfloat16, torch.long)
