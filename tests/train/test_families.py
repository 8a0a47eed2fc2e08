"""Every family of models, in float32: the packed row against one sequence at a time, parameter by parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from slow_rows import slow_except
from train.architectures import FAMILIES, TYPICAL, vlm
from train.kernels import slow_varlen
from train.slow import Data, gradients, naive, same_gradients, slow
from transformers import InternVLModel

from mixpo.train.batch import Chunk, footprint
from mixpo.train.collate import collate
from mixpo.train.layout_check import choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.losses import LossWeights, combine
from mixpo.train.model import checkpoint_activations
from mixpo.train.tree_attention import QueryKeys, Span, sequences
from mixpo.vlm.families import why_not_varlen
from mixpo.vlm.load import Vlm

NAMES = slow_except(FAMILIES, *TYPICAL)


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest) -> tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]:
    """A family's model, data, and the log-probs and gradients of the slow way."""
    family = FAMILIES[request.param]
    model, data = vlm(family), Data(family)
    expected = slow(model.model, data)
    (expected * data.factors).sum().backward()
    return model, data, expected.detach(), gradients(model.model)


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_is_one_at_a_time(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], recompute: bool) -> None:
    one, data, expected, expected_gradients = made
    if recompute:
        one = replace(one, model=copy.deepcopy(one.model))
        checkpoint_activations(one.model.train(), on=True)
    had = one.model.config.get_text_config()._attn_implementation
    found = Scorer(one.model, "tree")(collate(one, data.chunks, data.get, "tree")).sums
    assert one.model.config.get_text_config()._attn_implementation == had
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_the_varlen_kernel_is_one_at_a_time(
    made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row as a GPU gets it, through a slow kernel with the rules of the GPU's; families that look ahead or cap are refused."""
    one, data, expected, expected_gradients = made
    if why_not_varlen(one.model):
        assert one.model.config.model_type in ("gemma2", "gemma3", "paligemma")
        return
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    found = Scorer(one.model, "varlen")(collate(one, data.chunks, data.get, "varlen")).sums
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_common_beginnings_are_computed_once(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """6 and 11 + 6 tokens fewer than the responses have, here and where micro-batches are filled."""
    one, data, _, _ = made
    batch = collate(one, data.chunks, data.get, "tree")
    prompts = sum(map(len, data.prompts.values()))
    assert prompts + int(batch.lengths.sum()) - batch.tokens == 6 + 11 + 6
    assert batch.tokens == batch.inputs["input_ids"].numel()
    assert batch.tokens == sum(footprint(chunk, len(data.get(chunk.group))).tokens for chunk in data.chunks)
    assert len(batch.target) == batch.tokens - prompts
    assert len(batch.token_index) == len(batch.response_index) == int(batch.lengths.sum())


def _with_siblings(spans: list[Span]) -> Iterator[QueryKeys]:
    """A wrong plan: everything in a group sees what stands before it."""
    for span in spans:
        for member in sequences([span]):
            yield member._replace(keys=torch.arange(span.start, int(member.queries[-1]) + 1))


def test_a_wrong_plan_shows(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of the tiny models is far from uniform, so that responses which see each other have other log-probs."""
    one, data, expected, _ = made
    monkeypatch.setattr("mixpo.train.tree_attention.sequences", _with_siblings)
    with torch.no_grad():
        found = Scorer(one.model, "tree")(collate(one, data.chunks, data.get, "tree")).sums
    assert (found - expected).abs().max() > 0.3


def test_padded_rows_are_one_at_a_time(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """The exact way for every model, which the others are measured against."""
    one, data, expected, _ = made
    with torch.no_grad():
        found = Scorer(one.model, "plain")(collate(one, data.chunks, data.get, "plain")).sums
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("mm_encoder_outputs" not in inspect.signature(InternVLModel.forward).parameters, reason="an older transformers")
def test_images_once_in_padded_rows(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """The second choice: exact, with gradients, wherever features of an image can be told apart; refused elsewhere."""
    one, data, expected, expected_gradients = made
    try:
        found = Scorer(one.model, "shared")(collate(one, data.chunks, data.get, "shared")).sums
    except (AttributeError, TypeError, ValueError):
        assert one.model.config.model_type in ("smolvlm", "idefics3", "llava_onevision")
        return
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_the_check_chooses_packing(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    one, data, _, _ = made
    assert choose_layout(one, data.chunks[:3], data.get, torch.float32)[0] == "tree"


def test_order_and_siblings_change_nothing(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Permuted groups and responses; and each response alone with its prompt."""
    one, data, expected, _ = made
    by_id = dict(zip([(p.group.question.id, r) for p in data.chunks for r in p.responses], expected, strict=True))
    moved = [chunk._replace(responses=chunk.responses[::-1]) for chunk in data.chunks[::-1]]
    alone = [chunk._replace(responses=(response,)) for chunk in data.chunks for response in chunk.responses]
    for chunks in (moved, alone):
        with torch.no_grad():
            found = Scorer(one.model, "tree")(collate(one, chunks, data.get, "tree")).sums
        wanted = torch.stack([by_id[chunk.group.question.id, response] for chunk in chunks for response in chunk.responses])
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted({"internvl", "qwen2_5_vl", "gemma3", "paligemma2"} & FAMILIES.keys()))
def test_the_whole_loss_in_any_order(name: str) -> None:
    """MPO of all pairs and its gradients against log-probs one at a time; groups, responses and pairs in two orders."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    pairs = {"q0": ((0, 1), (2, 1)), "q1": ((1, 0),), "q2": ((0, 1), (0, 2), (3, 2))}
    chosen = [chunk for chunk in data.chunks if chunk.group.question.id in pairs]
    for number, chunk in enumerate(chosen):
        known = tuple(-10.0 - 3 * number - place for place in chunk.responses)
        group = replace(chunk.group, pairs=pairs[chunk.group.question.id], reference=known)
        chosen[number] = Chunk(group, chunk.responses, group.pairs)
    weights, shift = LossWeights(preference=0.8, quality=0.2, generation=1.0), 0.3
    expected = torch.zeros(())
    for chunk in chosen:
        for good, bad in chunk.pairs:
            logp = [naive(one.model, data.get(chunk.group), chunk.group.responses[side]) for side in (good, bad)]
            assert chunk.group.reference is not None
            rewards = [0.1 * (logp[side] - chunk.group.reference[place]) for side, place in enumerate((good, bad))]
            quality = -F.logsigmoid(rewards[0] - shift) - F.logsigmoid(-(rewards[1] - shift))
            sft = -logp[0] / len(chunk.group.responses[good])
            expected = expected - 0.8 * F.logsigmoid(rewards[0] - rewards[1]) + 0.2 * quality + sft
    expected.backward()
    wanted = gradients(one.model)
    turned = [Chunk(chunk.group, chunk.responses[::-1], chunk.pairs[::-1]) for chunk in chosen[::-1]]
    for chunks in (chosen, turned):
        batch = collate(one, chunks, data.get, "tree")
        logps = Scorer(one.model, "tree")(batch)
        total = combine(weights, 0.1, logps, batch.reference, batch.chosen, batch.rejected, shift).total.sum()
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        total.backward()
        same_gradients(gradients(one.model), wanted)


def test_images_reach_their_own_prompt(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Other pixels in one prompt change its responses and no others."""
    one, data, expected, _ = made
    first = data.prompts["q2"]
    if not first.features:
        pytest.skip("a model without images")
    pixels = first.features["pixel_values"].flip(-1)
    other = {**data.prompts, "q2": replace(first, features={**first.features, "pixel_values": pixels})}
    with torch.no_grad():
        found = Scorer(one.model, "tree")(collate(one, data.chunks, lambda group: other[group.question.id], "tree")).sums
    changed = (found - expected).abs() > 1e-3
    assert changed.tolist() == [False] * 5 + [True] * 4 + [False]


def test_bfloat16_is_as_near_as_the_plain_way(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    one, data, expected, _ = made
    errors = []
    for layout in ("tree", "plain"):
        with torch.no_grad():
            found = Scorer(one.model, layout, torch.bfloat16)(collate(one, data.chunks, data.get, layout))
        assert found.sums.dtype == torch.float64
        errors.append(float(((found.sums - expected).abs() / found.lengths).mean()))
    assert errors[0] <= 2 * errors[1] + 0.01
