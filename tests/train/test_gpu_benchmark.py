"""The GPU benchmark's code path without a GPU, and the ways to attend that it compares, against the plan that training uses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train.kernels import slow_varlen

from mixpo.train.prefix_tree import build_prefix_tree
from mixpo.train.tree_attention import AttentionOptions, Span, plan_padded
from mixpo.vlm.families import Visibility

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[ModuleType, ModuleType]]:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import attention_forms
    import train_gpu

    yield train_gpu, attention_forms
    sys.path.remove(folder)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=14).map(tuple), min_size=1, max_size=4), min_size=1, max_size=3))
def test_all_forms_are_equal(benchmarks: tuple[ModuleType, ModuleType], groups: list[list[tuple[int, ...]]]) -> None:
    """Few different tokens, so that responses often begin alike."""
    spans, first = list[Span](), 0
    for number, responses in enumerate(groups, 3):
        prefix_tree = build_prefix_tree(responses)
        spans.append(Span(first, number, prefix_tree.branches))
        first += number + prefix_tree.tokens
    query, key, value = (torch.randn(first, heads, 16, dtype=torch.float64) for heads in (4, 2, 2))
    expected = plan_padded(spans, Visibility(), CPU).attend(query, key, value, AttentionOptions())
    for plan in (benchmarks[1].plan_dense(spans, CPU), benchmarks[1].plan_flex(spans, CPU)):
        assert len(plan) == first
        assert torch.allclose(plan.attend(query, key, value, AttentionOptions()), expected, atol=1e-10)
        with pytest.raises(NotImplementedError, match="not compared"):
            plan.attend(query, key, value, AttentionOptions(window=3))


def test_it_runs(benchmarks: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a slow kernel in place of the GPU's; FlexAttention has no backward pass here, and that is said."""
    monkeypatch.setattr(benchmarks[0], "PROMPT", 20)
    monkeypatch.setattr("mixpo.train.compiled.BACKEND", {"backend": "aot_eager"})
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    benchmarks[0].main(["--device", "cpu", "--size", "tiny", "--rounds", "1", "--cases", "2", "--json"])
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert found["device"] == "cpu"
    rows = {row["form"]: row for row in found["rows"]}
    assert set(rows) == {"varlen", "calls", "compiled", "flex", "dense", "rows"}
    assert "backward on CPU" in rows.pop("flex")["not_here"]
    assert rows["calls"]["over_calls"] == 1
    for row in rows.values():
        assert row["milliseconds"] > 0
        assert 0 < row["share_of_peak"] < 1.5
        assert row["memory_mib"] > 0
    assert all(claim["passed"] is not None for claim in found["claims"])
    assert found["claims"][0]["passed"], "varlen and calls differ"
    assert len([text for text in out if text.startswith(("PASS: ", "FAIL: "))]) == 4


def test_without_a_gpu(benchmarks: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device here; use a machine with an NVIDIA GPU") as stopped:
        benchmarks[0].main([])
    assert "\n" not in str(stopped.value)


def test_claims(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    good = {"form": "varlen", "milliseconds": 1.0, "gap": 0.01, "over_calls": 0.8, "share_of_peak": 0.5, "memory_over_plan": 0.9}
    bad = {**good, "gap": 0.2, "over_calls": 1.2, "share_of_peak": 0.3, "memory_over_plan": 1.2}
    assert [claim.passed for claim in benchmarks[0].claims_of([good], torch.bfloat16)] == [True] * 4
    assert [claim.passed for claim in benchmarks[0].claims_of([good, bad], torch.bfloat16)] == [False] * 4
    unmeasured = benchmarks[0].claims_of([{"form": "varlen", "not_here": "x"}], torch.bfloat16)
    assert {str(claim).partition(":")[0] for claim in unmeasured} == {"NOT MEASURED"}
