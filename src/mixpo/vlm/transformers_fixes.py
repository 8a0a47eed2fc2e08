"""What some releases of `transformers` that mixpo runs on get wrong in a model: put right when it is loaded, or refused.

Changes nothing in releases that get it right, and nothing in the model's files.
"""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version
from torch import Tensor, nn

from mixpo.errors import ModelError

_CAPS_LOGITS = {"paligemma": "5.23"}
"""Model types whose logits are capped as configured only from this release on."""

_MIXED = {"smolvlm"}
"""Model types that (before 5.21) put image features between embeddings of another type; autocast makes them of two types."""


def apply_fixes(model: Any) -> None:
    """Let the model compute what its configuration says. Raises ModelError where the installed release cannot."""
    kind, text = model.config.model_type, model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        # PyTorch's own attention cannot cap scores. Before 5.21 it is used all the same, and the cap is dropped without a word.
        model.set_attn_implementation("eager" if text is model.config else {"text_config": "eager"})
    if kind in _MIXED:
        model.base_model.connector.register_forward_hook(_as_its_weights)
    if getattr(text, "final_logit_softcapping", None) and Version(transformers.__version__) < Version(_CAPS_LOGITS.get(kind, "0")):
        raise ModelError(
            f"transformers {transformers.__version__} does not cap the logits of {kind} as its configuration asks "
            f"(final_logit_softcapping); install transformers {_CAPS_LOGITS[kind]} or newer",
            code="transformers-too-old",
        )


def _as_its_weights(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
    return features.to(next(module.parameters()).dtype)
