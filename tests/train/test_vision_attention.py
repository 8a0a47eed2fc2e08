"""Windows of a vision tower in grouped calls, against one call for each window and against the family's own tower."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from train.architectures import FAMILIES, vlm
from train.kernels import slow_varlen
from train.slow import Data, slow

from mixpo.train import vision_attention
from mixpo.train.collate import collate
from mixpo.train.layout_check import choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.vision_attention import WindowPlan, groups_windows, plan_windows, refuse_grouping, window_attention, windows_grouped
from mixpo.vlm.families import varlen_vision_configs

WINDOWED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "pixtral")
HEADS, SHARED, WIDTH = 4, 2, 8
WINDOWS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def ends_of(lengths: list[int]) -> torch.Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def states(total: int, shared: int = HEADS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(total)
    query, key, value = (torch.randn(1, heads, total, WIDTH, generator=rng, requires_grad=True) for heads in (HEADS, shared, shared))
    return query, key, value


def by_window(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float) -> torch.Tensor:
    """(1, T, H, D), as the families compute it."""
    key, value = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (key, value))
    windows = zip(*(part.split(lengths, 2) for part in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in windows], 2).transpose(1, 2)


def same(lengths: list[int], shared: int = HEADS) -> None:
    parts, ends = states(sum(lengths), shared), ends_of(lengths)
    most = max(lengths)
    ours, _ = window_attention(
        None, *parts, None, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=most, max_length_k=most, scaling=0.3, is_causal=False
    )
    expected = by_window(*parts, lengths, 0.3)
    assert torch.allclose(ours, expected, atol=1e-6)
    factors = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * factors).sum(), parts), torch.autograd.grad((expected * factors).sum(), parts), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(lengths=WINDOWS, spare=st.sampled_from([0, 200, 32_768]), shared=st.sampled_from([HEADS, SHARED]))
def test_equal_to_one_window_at_a_time(lengths: list[int], spare: int, shared: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_attention, "SPARE", spare)
        same(lengths, shared)


def test_equal_to_one_window_at_a_time_in_the_varlen_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_attention, "_fits_kernel", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    same([7, 3, 3, 9])


def test_equal_windows_are_one_call_without_copies_and_padding_is_bounded() -> None:
    plan = plan_windows(ends_of([64] * 100))
    assert (len(plan.calls), plan.order, plan.calls[0].mask) == (1, None, None)
    ragged = plan_windows(ends_of([64, 64, 32, 64, 1024, 48, 1024]))
    assert [(tuple(call.places.shape), call.mask is not None) for call in ragged.calls] == [((2, 1024), False), ((5, 64), True)]


def test_the_plan_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []

    def plan(ends: torch.Tensor) -> WindowPlan:
        made.append(ends)
        return plan_windows(ends)

    monkeypatch.setattr(vision_attention, "plan_windows", plan)
    ends = ends_of([4, 4])
    for _ in range(3):
        window_attention(None, *states(8), None, cu_seq_lens_q=ends, cu_seq_lens_k=ends)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cu_seq_lens_q": None}, "not over windows"),
        ({"attention_mask": torch.zeros(1)}, "not over windows"),
        ({"dropout": 0.1}, "with dropout"),
        ({"softcap": 2.0}, "with softcap"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    ends = ends_of([4])
    given_options = {"attention_mask": None, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "position_ids": ends, **options}
    with pytest.raises(NotImplementedError, match=message):
        window_attention(None, *states(4), **given_options)


@pytest.mark.parametrize("name", WINDOWED)
def test_the_tower_is_the_familys_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of six images, one call of SDPA in a layer instead of one for each window or one over all images with a mask."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    batch = collate(one, data.chunks, data.get, "shared")
    assert batch.vision is not None
    calls: list[int] = []
    sdpa = F.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return sdpa(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    def features() -> torch.Tensor:
        assert batch.vision is not None
        calls.clear()
        output = one.model.base_model.get_image_features(**batch.vision.inputs, return_dict=True).pooler_output
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in output])

    with torch.no_grad():
        own, before = features(), len(calls)
        with windows_grouped(one.model):
            ours, after = features(), len(calls)
    assert torch.allclose(ours, own, rtol=1e-5, atol=1e-5)
    assert after <= before
    assert name in ("mistral3", "pixtral") or after < before / 3
    assert all(config._attn_implementation == "sdpa" for config in varlen_vision_configs(one.model))


def test_other_families_stay_as_they_are() -> None:
    for name in ("internvl", "llava", "text"):
        assert not groups_windows(vlm(FAMILIES[name]).model)


def test_the_check_at_the_start_compares_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where grouped windows are wrong or fail, the tower computes window by window, in the same layout, and the log says so."""
    family = FAMILIES["qwen2_5_vl"]
    data = Data(family)

    def check() -> str:
        layout, note = choose_layout(one, data.chunks[:3], data.get, torch.float32, gradients=True)
        assert layout == "tree"
        ours = Scorer(one.model, layout)(collate(one, data.chunks, data.get, layout)).sums
        with torch.no_grad():
            assert torch.allclose(ours, slow(one.model, data), rtol=1e-5, atol=1e-5)
        return note

    one = vlm(family)
    assert check().endswith("; vision: windows grouped, a few calls per layer")
    right = vision_attention.plan_windows
    wrongs = (
        (lambda ends: right(ends[[0, -1]]), "would change log-probs by"),
        (lambda _: SimpleNamespace(attend=broken), "fail with RuntimeError: no"),
        (lambda ends: SimpleNamespace(attend=lambda q, k, v, s: right(ends).attend(q, k, v.detach(), s)), "would change gradients by"),
    )
    for wrong, words in wrongs:
        one = vlm(family)
        monkeypatch.setattr(vision_attention, "plan_windows", wrong)
        note = check()
        assert "; vision: window by window, because grouped windows" in note
        assert words in note
        assert not groups_windows(one.model)


def broken(*_: object) -> torch.Tensor:
    raise RuntimeError("no")


def test_a_refused_model_is_refused_alone() -> None:
    first, second = vlm(FAMILIES["qwen2_vl"]), vlm(FAMILIES["qwen2_vl"])
    refuse_grouping(first.model)
    with windows_grouped(first.model):
        assert {config._attn_implementation for config in varlen_vision_configs(first.model)} == {"sdpa"}
    assert groups_windows(second.model)
