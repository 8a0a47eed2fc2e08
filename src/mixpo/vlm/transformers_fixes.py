"""Workarounds for bugs of supported `transformers` releases, applied when a model loads; its output and errors. No file is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from torch import Tensor, nn

from mixpo.errors import MixpoError, ModelError, first_line

_CAPS_LOGITS = {"paligemma": "5.23"}
"""Model types whose logit soft-cap is ignored before this release."""

_MIXED = {"smolvlm"}
"""Model types that (before 5.21) mix image features and embeddings of different dtypes under autocast."""


def apply_fixes(model: Any) -> None:
    """Make the model compute what its configuration says. Raises ModelError where the installed release cannot."""
    kind, text = model.config.model_type, model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        # SDPA does not support soft-capped scores. Before 5.21 it is used anyway and silently ignores the cap.
        model.set_attn_implementation("eager" if text is model.config else {"text_config": "eager"})
    if kind in _MIXED:
        model.base_model.connector.register_forward_hook(_cast_to_weights)
    if getattr(text, "final_logit_softcapping", None) and Version(transformers.__version__) < Version(_CAPS_LOGITS.get(kind, "0")):
        raise ModelError(
            f"transformers {transformers.__version__} does not cap the logits of {kind} as its configuration asks "
            f"(final_logit_softcapping); install transformers {_CAPS_LOGITS[kind]} or newer",
            code="transformers-too-old",
        )


def _cast_to_weights(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
    return features.to(next(module.parameters()).dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence `transformers` while it loads or saves a model; its load report is checked instead of printed."""
    from transformers.utils import logging as module

    logging: Any = module
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading_errors(source: Path, what: str) -> Iterator[None]:
    """Translate errors of `transformers` about a broken folder into a ModelError that names the folder."""
    try:
        yield
    except MixpoError:
        raise
    # The files of strangers make the libraries raise whatever they raise; a panic of the tokenizers library is not even an Exception.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            message = f"{source}: the {what} needs code that comes with it; read it, and set model.trust_remote_code = true if you trust it"
            raise ModelError(message, code="remote-code-not-trusted", path=source, key="model.trust_remote_code") from error
        message = f"{source}: the {what} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise ModelError(message, code="model-not-loadable", path=source) from error
