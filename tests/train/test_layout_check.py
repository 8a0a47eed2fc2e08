"""The check of the layout at the start: what it accepts, what it notices, and what it says."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from slow_rows import slow_except
from train.architectures import FAMILIES, HYBRIDS, POOLED, vlm
from train.kernels import slow_varlen
from train.slow import Data, slow

from mixpo.train.collate import collate
from mixpo.train.layout_check import TOLERANCE, _why_no_varlen, agree, check_sample, choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.tree_attention import PaddedPlan
from mixpo.vlm.families import LogitScaling, Visibility, logit_scaling, why_not_packed
from mixpo.vlm.load import Vlm
from mixpo.vlm.sampling_check import why_not_joined


@pytest.mark.parametrize("name", list(HYBRIDS))
def test_hybrids_fall_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """State that runs from one response into the next: told by the configuration, and noticed without it too."""
    one, data = vlm(HYBRIDS[name]), Data(HYBRIDS[name])
    layout, note = choose_layout(one, data.chunks[:3], data.get, torch.float32)
    assert layout != "tree"
    assert "layer 0 is" in note
    with torch.no_grad():
        found = Scorer(one.model, layout)(collate(one, data.chunks, data.get, layout)).sums
        assert torch.allclose(found, slow(one.model, data), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("mixpo.train.layout_check.why_not_packed", lambda _: "")
    layout, note = choose_layout(one, data.chunks[:3], data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


@pytest.mark.skipif(POOLED is None, reason="an older transformers")
def test_images_that_cannot_be_joined_are_scored_one_by_one() -> None:
    """Molmo2: indices into the patches of the whole batch. Two prompts in one batch are wrong in the plain layout too."""
    assert POOLED is not None
    one, data = vlm(POOLED), Data(POOLED)
    with torch.no_grad():
        expected = slow(one.model, data)
        plain = Scorer(one.model, "plain")(collate(one, data.chunks, data.get, "plain")).sums
    assert (plain - expected).abs().max() > 0.3
    layout, note = choose_layout(one, check_sample(chunk.group for chunk in data.chunks), data.get, torch.float32)
    assert layout == "single"
    assert "the plain layout would change log-probs" in note
    with torch.no_grad():
        found = Scorer(one.model, layout)(collate(one, data.chunks, data.get, layout)).sums
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert "change by" in why_not_joined(sampled(one), [data.prompts["q0"], data.prompts["q3"]])
    assert why_not_joined(sampled(one), [data.prompts["q0"]]) == ""


def sampled(one: Vlm) -> Vlm:
    """The model with a vocabulary of which everything may be sampled."""
    return replace(one, cache={"banned_ids": torch.zeros(one.model.get_output_embeddings().weight.shape[0], dtype=torch.bool)})


def test_the_whole_data_set_is_sampled() -> None:
    """No image, one, most, the longest and every source, wherever they stand."""
    data = Data(FAMILIES["internvl"])
    groups = [
        replace(chunk.group, question=replace(chunk.group.question, source=name)) for chunk, name in zip(data.chunks, "aaab", strict=True)
    ]
    for turn in range(4):
        chosen = [chunk.group.question.id for chunk in check_sample(groups[turn:] + groups[:turn])]
        assert sorted(chosen) == ["q0", "q1", "q2", "q3"]
        assert chosen[:3] == ["q2", "q3", "q1"], "two with images and one without in the first batch"


def test_a_layout_without_gradients_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES["internvl"]), Data(FAMILIES["internvl"])
    attend = PaddedPlan.attend
    sample = check_sample(chunk.group for chunk in data.chunks)
    monkeypatch.setattr(PaddedPlan, "attend", lambda plan, query, *rest: attend(plan, query.detach(), *rest))
    assert choose_layout(one, sample, data.get, torch.float32)[0] == "tree"
    layout, note = choose_layout(one, sample, data.get, torch.float32, gradients=True)
    assert layout == "shared"
    assert "the tree layout would change gradients by" in note
    assert all(parameter.grad is None for parameter in one.model.parameters())


def test_the_reference_stage_and_training_agree() -> None:
    assert agree("tree", "packed", "") == ("tree", "packed")
    assert agree("varlen", "packed", "tree") == ("varlen", "packed")
    assert agree("plain", "padded", "tree") == ("plain", "padded")
    assert agree("tree", "packed", "shared") == ("shared", "rows as in the reference stage (shared), which refused the tree layout")


def test_routed_experts_are_packed() -> None:
    """How many tokens an expert gets changes how its sums are rounded, which is not a leak."""
    family = FAMILIES["qwen3_moe"]
    one, data = vlm(family), Data(family)
    one.model.set_experts_implementation("eager")
    assert choose_layout(one, check_sample([chunk.group for chunk in data.chunks[:3]]), data.get, torch.float32)[0] == "tree"


@pytest.mark.parametrize("name", ["qwen3_moe", "text"])
@pytest.mark.parametrize("faint", [1.0, 1e-3])
def test_a_leak_is_noticed(name: str, faint: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token gets something of all tokens before it, whoever's they are; and nobody compares with the plain layout."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    attend = PaddedPlan.attend

    def leaking(plan: PaddedPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Any) -> torch.Tensor:
        mixed = (value.cumsum(0) / len(value)).repeat_interleave(query.shape[1] // value.shape[1], 1)
        return attend(plan, query, key, value, options) + faint * mixed

    monkeypatch.setattr(PaddedPlan, "attend", leaking)
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e9)
    layout, note = choose_layout(one, check_sample([chunk.group for chunk in data.chunks[:3]]), data.get, torch.float32)
    assert layout != "tree"
    assert "would notice the others' tokens" in note


PLAIN, CAPPED, SCALED = LogitScaling(), LogitScaling(softcap=3.0), LogitScaling(scale=0.3)


@pytest.mark.parametrize(
    ("name", "rule"),
    slow_except(
        product(("gemma2", "granite", "cohere", "cohere2_vision"), (PLAIN, CAPPED, SCALED)),
        ("gemma2", PLAIN), ("gemma2", SCALED), ("granite", CAPPED), ("cohere2_vision", PLAIN),
    ),
)  # fmt: skip
def test_a_wrong_head_rule_is_noticed(name: str, rule: LogitScaling, monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    right = logit_scaling(one.model)
    monkeypatch.setattr("mixpo.train.logps.logit_scaling", lambda _: rule)
    layout, note = choose_layout(one, data.chunks[:2], data.get, torch.float32)
    assert (layout == "tree") == (rule == right)
    assert ("would change log-probs" in note) == (rule != right)


def test_a_missing_cap_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES["gemma2"]), Data(FAMILIES["gemma2"])
    assert choose_layout(one, data.chunks[:2], data.get, torch.float32)[0] == "tree"
    monkeypatch.setattr("mixpo.train.tree_attention._capped", lambda q, k, v, mask, options: F.scaled_dot_product_attention(q, k, v, mask))
    layout, note = choose_layout(one, data.chunks[:2], data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


def test_the_kernel_is_chosen_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the varlen kernel can be used it is, and one that is wrong or missing costs nothing but time."""
    one, data = vlm(FAMILIES["internvl"]), Data(FAMILIES["internvl"])

    def check() -> tuple[str, str]:
        return choose_layout(one, check_sample([chunk.group for chunk in data.chunks[:3]]), data.get, torch.float32)

    layout, note = check()
    assert (layout, note.endswith("attention: length-bucketed SDPA (the varlen kernel needs an NVIDIA GPU)")) == ("tree", True)
    monkeypatch.setattr("mixpo.train.layout_check._why_no_varlen", lambda *_: "")
    layout, note = check()
    assert layout == "tree"
    assert "the varlen layout fails with NotImplementedError" in note
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    layout, note = check()
    assert (layout, note.endswith("attention: varlen kernel")) == ("varlen", True)

    @wraps(slow_varlen)
    def top_left(*args: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
        """A kernel that takes the first query for the first key's."""
        return slow_varlen(*args, window_size=(-1, 3), **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", top_left)
    layout, note = check()
    assert layout == "tree"
    assert "the varlen layout would change log-probs" in note


def test_where_the_kernel_is_tried() -> None:
    one = vlm(FAMILIES["internvl"])
    gpu = replace(one, device=torch.device("cuda"))
    assert _why_no_varlen(one, torch.bfloat16) == "the varlen kernel needs an NVIDIA GPU"
    assert _why_no_varlen(gpu, torch.float32) == "the varlen kernel has no float32"
    assert _why_no_varlen(gpu, torch.bfloat16) == ""
    assert "soft-capped" in _why_no_varlen(replace(gpu, model=FAMILIES["gemma2"].model()), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), [("gemma3", Visibility()), ("paligemma", Visibility()), ("gemma3", Visibility("prompt"))])
def test_a_wrong_rule_is_noticed(name: str, rule: Visibility, monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    monkeypatch.setattr("mixpo.train.collate.visibility_of", lambda _: rule)
    layout, note = choose_layout(one, data.chunks, data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


def test_what_is_known_against_packing() -> None:
    def model(**text: Any) -> Any:
        config = SimpleNamespace(model_type="some", get_text_config=lambda: SimpleNamespace(**text))
        return SimpleNamespace(config=config)

    assert why_not_packed(model(layer_types=["full_attention", "sliding_attention"])) == ""
    assert "layer 1 is chunked attention" in why_not_packed(model(layer_types=["full_attention", "chunked_attention"]))
    assert "cross-attention" in why_not_packed(model(cross_attention_layers=[3]))
    assert "cannot be replaced" in why_not_packed(SimpleNamespace(config=model().config, _supports_attention_backend=False))
