"""Models that some releases of transformers get wrong: the cap of attention scores is heeded, and what cannot be heeded is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from train import architectures

from mixpo.errors import ModelError
from mixpo.vlm.transformers_fixes import apply_fixes

IDS = torch.arange(10, 30)[None]


def gemma(cap: float | None) -> torch.Tensor:
    """Logits of the same Gemma 2 with this cap of its attention scores."""
    model = architectures.vlm(architectures.FAMILIES["gemma2"]).model
    for layer in model.base_model.layers:
        layer.self_attn.attn_logit_softcapping = cap
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


def test_attention_scores_are_capped() -> None:
    capped, higher, not_capped = gemma(2.0), gemma(1e6), gemma(None)
    assert torch.allclose(higher, not_capped, atol=1e-4)
    assert not torch.allclose(capped, not_capped, atol=0.1)


def test_a_release_that_leaves_the_cap_of_the_logits_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures._paligemma2()
    monkeypatch.setitem(apply_fixes.__globals__, "transformers", SimpleNamespace(__version__="5.22.0"))
    with pytest.raises(ModelError, match=r"5\.22\.0 does not cap the logits of paligemma .* install transformers 5\.23 or newer"):
        apply_fixes(model)
    apply_fixes(architectures._paligemma())  # has no cap
    monkeypatch.setitem(apply_fixes.__globals__, "transformers", SimpleNamespace(__version__="5.23.0"))
    apply_fixes(model)


def test_image_features_are_of_the_type_of_the_embeddings() -> None:
    one = architectures.vlm(architectures.FAMILIES["smolvlm"])
    connector = one.model.base_model.connector
    size = connector.modality_projection.proj.in_features // connector.scale_factor**2
    with torch.autocast("cpu", torch.bfloat16):
        assert connector(torch.randn(1, 4, size)).dtype == torch.float32
