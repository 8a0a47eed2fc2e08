"""The only file with knowledge of model families: attention patterns, image inputs, output heads."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mixpo.errors import first_line

MODEL_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What an unknown architecture may raise on inputs that do not suit it."""

PACKABLE = {"full_attention", "sliding_attention"}
"""Layer types whose states depend only on the tokens attended to."""

_NOT_PACKABLE = {
    "cross_attention_layers": "cross-attention to the images",
    "attention_chunk_size": "chunked attention",
    "use_bidirectional_attention": "bidirectional attention",
}
"""Settings of a text model that tree attention does not support, with their names for messages."""


_PLAIN_HEAD = {"gemma3", "aya_vision", "cohere2_vision"}
"""Models that ignore the logit settings of their text model."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a token attends to beyond causal attention.

    bidirectional: tokens that attend to each other in both directions: those of one image, of the whole prompt, or none.
    window_applies: whether a sliding window also limits these (otherwise only causal attention).
    """

    bidirectional: Literal["none", "image", "prompt"] = "none"
    window_applies: bool = True


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """What happens between the output head and the softmax: logits are multiplied by `scale`, then soft-capped at `cap` (0: not)."""

    scale: float = 1.0
    softcap: float = 0.0


def visibility_of(model: Any) -> Visibility:
    """By model type, because configurations do not specify it."""
    kind = model.config.model_type
    if kind == "paligemma":
        return Visibility(bidirectional="prompt", window_applies=False)
    return Visibility(bidirectional="image") if kind == "gemma3" else Visibility()


def why_not_packed(model: Any) -> str:
    """Why packed layouts are not supported for this model; "" if they may be."""
    text = model.config.get_text_config()
    for number, kind in enumerate(getattr(text, "layer_types", None) or ()):
        if kind not in PACKABLE:
            return f"layer {number} is {kind.replace('_', ' ')}, whose state carries over from one response to the next"
    for name, what in _NOT_PACKABLE.items():
        # PaliGemma's configuration says so of its prompts; see `visibility_of`.
        if getattr(text, name, None) and not (name == "use_bidirectional_attention" and model.config.model_type == "paligemma"):
            return f"the model has {what} ({name})"
    text = model.get_decoder() if hasattr(model, "get_decoder") else None
    # Some wrappers say no although their text model, the only one to be replaced, can.
    if not getattr(text if hasattr(text, "_supports_attention_backend") else model, "_supports_attention_backend", True):
        return "its attention cannot be replaced"
    return ""


def why_not_varlen(model: Any) -> str:
    """Why the varlen kernel, which is causal, does not support this model's attention; "" if it does."""
    bidirectional = visibility_of(model).bidirectional
    if bidirectional != "none":
        return f"tokens of {'an image' if bidirectional == 'image' else 'a prompt'} see each other both ways"
    return "attention scores are soft-capped" if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) else ""


def configs_of(model: Any) -> list[Any]:
    """The configurations of all parts of a model, each once."""
    return list({id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values())


def varlen_vision_configs(model: Any) -> list[Any]:
    """Configurations of vision towers that pass the ends of their windows to attention kernels that take them.

    Those whose attention layers take `cu_seqlens`, and Pixtral, which else builds a mask of all images.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        takes_ends = getattr(module, "is_causal", None) is False and "cu_seqlens" in _arguments(type(module).forward)
        if takes_ends or getattr(config, "model_type", "") == "pixtral":
            configs[id(config)] = config
    configs.pop(id(model.config.get_text_config()), None)
    return [config for config in configs.values() if getattr(config, "_attn_implementation", None) == "sdpa"]


@cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def window_of(text: Any, layer: int) -> int | None:
    """The sliding window of a layer in tokens, or None. text: configuration of the text model."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    if getattr(text, "use_sliding_window", True) is False:
        return None
    return getattr(text, "sliding_window", None)


def logit_scaling(model: Any) -> LogitScaling:
    """Scale and soft-cap of the logits, from the settings of each family."""
    if model.config.model_type in _PLAIN_HEAD:
        return LogitScaling()
    text = model.config.get_text_config()
    scaling = float(getattr(text, "logits_scaling", None) or 1.0)
    if not text.model_type.startswith("hyperclovax"):
        # Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it.
        scaling = 1 / scaling
    softcap = getattr(text, "final_logit_softcapping", None)
    return LogitScaling(scale=float(getattr(text, "logit_scale", None) or 1.0) * scaling, softcap=float(softcap or 0.0))


def image_batch_axis(model: Any) -> int:
    """Axis along which images of several prompts are concatenated: the Idefics family has a leading axis of length 1."""
    kind = model.config.model_type
    return 1 if "idefics" in kind or "smolvlm" in kind else 0


def answer_type(model: Any) -> int:
    """Token type of response tokens. For PaliGemma, type 0 is the prompt, with bidirectional attention."""
    return 1 if model.config.model_type == "paligemma" else 0


def described(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
