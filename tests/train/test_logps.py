"""Batched log-probs and their gradients against the slow obvious way: one sequence at a time, all logits, nothing shared."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train.cases import fresh, groups, scored
from transformers import InternVLModel

from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.train.batch import Chunk, Layout, make_chunk, micro_batches
from mixpo.train.collate import collate
from mixpo.train.layout_check import TOLERANCE, check_sample, choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.prefix_tree import build_prefix_tree
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.tree_attention import QueryKeys, Span
from mixpo.train.vision_attention import groups_windows
from mixpo.types import Group
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import encode

IMAGES = ImageTable()

SHARED = pytest.mark.skipif(
    "mm_encoder_outputs" not in inspect.signature(InternVLModel.forward).parameters,
    reason="this release of transformers takes no vision features, so that every row has its own images",
)


def naive(vlm: Vlm, group: Group, ids: tuple[int, ...]) -> torch.Tensor:
    """log pi(ids | prompt) of one response: the model alone decides about masks and positions."""
    prompt = encode(vlm, group.prompt, [open_image(image, IMAGES) for image in group.question.images])
    answer = torch.tensor(ids)
    kinds = {name: torch.cat([value, torch.zeros_like(answer)])[None] for name, value in prompt.token_types.items()}
    logits = vlm.model(input_ids=torch.cat([prompt.ids, answer])[None], **prompt.features, **kinds).logits[0]
    logprobs = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
    total: torch.Tensor = logprobs[torch.arange(len(answer)), answer].sum(dtype=torch.float64)
    return total


def chunks(found: list[Group]) -> list[Chunk]:
    return [make_chunk(group, group.pairs) for group in found]


def gradients(vlm: Vlm) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in vlm.model.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=["tiny_vlm", "tiny_qwen"])
def vlm(request: pytest.FixtureRequest) -> Vlm:
    shared: Vlm = request.getfixturevalue(request.param)
    return fresh(shared)


@pytest.mark.parametrize("layout", ["tree", pytest.param("shared", marks=SHARED), "plain"])
def test_equal_to_one_at_a_time(vlm: Vlm, tmp_path: Path, layout: Layout) -> None:
    """Rows with no, one and two images in one batch; values and gradients of a sum in which every response has its own factor."""
    found = groups(vlm, tmp_path)
    batch = collate(vlm, chunks(found), PromptCache(vlm, IMAGES).get, layout)
    assert (batch.vision is not None, batch.attention_plan is not None) == (layout == "shared", layout == "tree")
    slow = torch.stack([naive(vlm, group, ids) for group in found for ids in group.responses])
    factors = torch.linspace(-1, 2, len(slow))
    (slow * factors).sum().backward()
    expected = gradients(vlm)
    vlm.model.zero_grad()
    fast = Scorer(vlm.model, layout)(batch)
    (fast.sums * factors).sum().backward()
    assert fast.lengths.tolist() == [len(ids) for group in found for ids in group.responses]
    assert torch.allclose(fast.sums, slow, rtol=1e-5, atol=0)
    found_gradients = gradients(vlm)
    assert found_gradients.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        # Exactly zero gradients (a bias before a norm or softmax) are rounding noise in both.
        floor = 1e-6 * largest
        assert float((found_gradients[name] - gradient).norm()) <= 1e-4 * max(float(gradient.norm()), floor), name


@pytest.mark.parametrize("layout", ["tree", pytest.param("shared", marks=SHARED)])
def test_images_matter(vlm: Vlm, tmp_path: Path, layout: Layout) -> None:
    """The same words with other pixels have another log-prob: no image is lost, and none goes to the wrong row."""
    found = groups(vlm, tmp_path)
    other = replace(found[0], question=replace(found[0].question, images=found[3].question.images))
    scorer, prompts = Scorer(vlm.model, layout), PromptCache(vlm, IMAGES)
    moved = replace(other, question=replace(other.question, id="moved"))
    first, second = scorer(collate(vlm, chunks([found[0], moved]), prompts.get, layout)).sums.reshape(2, -1)
    assert (first - second).abs().min() > 1e-3


@pytest.mark.parametrize("layout", ["tree", pytest.param("shared", marks=SHARED)])
def test_each_image_is_seen_once(vlm: Vlm, tmp_path: Path, layout: Layout) -> None:
    found = groups(vlm, tmp_path)
    prompts = PromptCache(vlm, IMAGES)
    visible: list[int] = []
    tower = next(module for name, module in vlm.model.named_modules() if name.endswith(("vision_tower", "visual")))
    handle = tower.register_forward_pre_hook(lambda _, args, kwargs: visible.append(len([*args, *kwargs.values()][0])), with_kwargs=True)
    Scorer(vlm.model, layout)(collate(vlm, chunks(found), prompts.get, layout))
    handle.remove()
    assert visible == [sum(len(prompts.get(group).features.get("pixel_values", ())) for group in found)]


@pytest.mark.parametrize("layout", ["tree", pytest.param("shared", marks=SHARED)])
def test_the_head_sees_answer_tokens_only(vlm: Vlm, tmp_path: Path, layout: Layout) -> None:
    found = groups(vlm, tmp_path)
    visible: list[torch.Size] = []
    handle = vlm.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: visible.append(args[0].shape))
    Scorer(vlm.model, layout)(collate(vlm, chunks(found), PromptCache(vlm, IMAGES).get, layout))
    handle.remove()
    tokens = sum(len(ids) for group in found for ids in group.responses)
    if layout == "tree":
        # What responses begin with in common stands there once.
        tokens, each = sum(build_prefix_tree(group.responses).tokens for group in found), tokens
        assert tokens < each
    assert [shape[:-1].numel() for shape in visible] == [tokens]


@SHARED
def test_layout_check(vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layout is used where it is right, and only there; what was found is said."""
    found, prompts = chunks(groups(vlm, tmp_path)), PromptCache(vlm, IMAGES)
    sample = check_sample(chunk.group for chunk in found)
    assert [len(chunk.group.question.images) for chunk in sample][:3] == [2, 2, 0]

    def check() -> tuple[Layout, str]:
        return choose_layout(vlm, sample, prompts.get, torch.float32)

    responses = sum(len(chunk.responses) for chunk in sample)
    form = "attention: length-bucketed SDPA (the varlen kernel needs an NVIDIA GPU)"
    seen = "; vision: windows grouped, a few calls per layer" if groups_windows(vlm.model) else ""
    assert check() == ("tree", f"packed rows, every prompt computed once (checked on {responses} responses); {form}{seen}")
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.train.layout_check.why_not_packed", lambda _: "layer 1 is odd")
        assert check() == ("shared", "padded rows, one per response, images computed once: layer 1 is odd" + seen)
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.train.tree_attention.sequences", _with_siblings)
        layout, note = check()
        assert (layout, "would change log-probs by" in note) == ("shared", True)
        patch.setitem(TOLERANCE, torch.float32, 1e9)
        layout, note = check()
        assert (layout, "would notice the others' tokens" in note) == ("shared", True)
    with monkeypatch.context() as patch:
        patch.setattr("mixpo.train.attention_patch.window_of", lambda *_: 3)
        layout, note = check()
        assert (layout, "a window of None in a layer that the configuration gives 3" in note) == ("shared", True)
    with monkeypatch.context() as patch:
        patch.delattr(type(vlm.model.base_model), "get_image_features")
        patch.setattr("mixpo.train.logps._single", lambda model, batch: torch.zeros(len(batch.target)))
        patch.setattr("mixpo.train.logps._plain", lambda model, batch: torch.zeros(len(batch.target)))
        layout, note = check()
        assert (layout, note.count("AttributeError")) == ("plain", 2)
        patch.setattr("mixpo.train.logps._plain", lambda model, batch: torch.ones(len(batch.target)))
        layout, note = check()
        assert (layout, "the plain layout would change log-probs by" in note) == ("single", True)


def _with_siblings(spans: Sequence[Span]) -> Iterator[QueryKeys]:
    """A wrong plan: each response also looks at those before it, as it would in an ordinary causal row."""
    for span in spans:
        yield QueryKeys(span.prompt_positions(), span.prompt_positions())
        first = span.start + span.prompt
        for branch in span.branches:
            end = first + len(branch.tokens)
            yield QueryKeys(torch.arange(first, end), torch.arange(span.start, end))
            first = end


@pytest.mark.parametrize("budget", [60, 100_000])
def test_reference_does_not_depend_on_the_batches(tiny_vlm: Vlm, tmp_path: Path, budget: int) -> None:
    from mixpo.recipe import TrainTable
    from mixpo.train.reference import ReferenceScorer

    found = groups(tiny_vlm, tmp_path)
    with torch.no_grad():
        slow = [[naive(tiny_vlm, group, ids).item() for ids in group.responses] for group in found]
    reference = ReferenceScorer(tiny_vlm, IMAGES, TrainTable(tokens_per_batch=budget))
    fast = [logps.sums for logps in reference.score(found)]
    assert len(micro_batches(chunks(found), PromptCache(tiny_vlm, IMAGES).length, budget, "tree")) > (1 if budget == 60 else 0)
    for logps, expected in zip(fast, slow, strict=True):
        assert logps == pytest.approx(expected, rel=1e-5)


def test_bfloat16_reference_leaves_the_model_as_it_was(tiny_vlm: Vlm, tmp_path: Path) -> None:
    half = replace(tiny_vlm, model=copy.deepcopy(tiny_vlm.model).bfloat16(), cache={})
    before = {name: value.clone() for name, value in half.model.named_parameters()}
    found = scored(half, groups(half, tmp_path, 3))
    for name, value in half.model.named_parameters():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name])
    exact = scored(tiny_vlm, groups(tiny_vlm, tmp_path, 3))
    for rough, fine in zip(found, exact, strict=True):
        assert rough.reference != fine.reference
        assert rough.reference == pytest.approx(fine.reference, rel=0.1)


def test_cache_is_bounded_and_lengths_stay(tiny_vlm: Vlm, tmp_path: Path) -> None:
    found = groups(tiny_vlm, tmp_path)
    prompts = PromptCache(tiny_vlm, IMAGES, max_bytes=45_000)
    lengths = [prompts.length(group) for group in found]
    assert prompts._bytes <= 45_000
    assert len(prompts._kept) < len(found)
    opened = len(prompts._kept)
    assert [prompts.length(group) for group in found] == lengths
    assert len(prompts._kept) == opened


def test_sums_of_many_tokens_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-ratios are small differences of large sums: one token's worth of 1e-4 must not get lost among thousands of nats."""
    token_a = -5 - 10 * torch.rand(4000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("mixpo.train.logps._from_states", lambda *_: token_a)
    batch: Any = SimpleNamespace(
        token_index=torch.arange(4000),
        target=torch.zeros(4000, dtype=torch.long),
        response_index=torch.arange(4000) // 2000,
        lengths=torch.tensor([2000, 2000]),
        singles=(),
    )
    found = Scorer(torch.nn.Identity(), "tree")(batch).sums
    assert (found - token_a.double().reshape(2, 2000).sum(1)).abs().max() < 1e-6
