"""The one file that knows architectures: what their attention, image inputs and output head ask of whoever lays tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PACKABLE = {"full_attention", "sliding_attention"}
"""Kinds of layers in which a token's state depends on nothing but the tokens that it may look at."""

_RUNS_THROUGH = {
    "cross_attention_layers": "cross-attention to the images",
    "attention_chunk_size": "chunked attention",
    "use_bidirectional_attention": "bidirectional attention",
}
"""Settings of a text model that attention over shared prompts does not reproduce, and what they are called."""


_PLAIN_HEAD = {"gemma3", "aya_vision", "cohere2_vision"}
"""Models with images whose text model has a setting for its logits that they do not use."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a token may look at besides what is not later than itself.

    bidirectional: the tokens among which everyone sees everyone: of one image, of the whole prompt, or none. window_applies: a sliding
    window also limits these (otherwise only looking back is limited).
    """

    bidirectional: Literal["none", "image", "prompt"] = "none"
    window_applies: bool = True


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """What happens between the output head and the softmax: logits are multiplied by `scale`, then soft-capped at `cap` (0: not)."""

    scale: float = 1.0
    softcap: float = 0.0


def visibility_of(model: Any) -> Visibility:
    """How far tokens of this model see. By model type, because configurations do not tell."""
    kind = model.config.model_type
    if kind == "paligemma":
        return Visibility(bidirectional="prompt", window_applies=False)
    return Visibility(bidirectional="image") if kind == "gemma3" else Visibility()


def why_not_packed(model: Any) -> str:
    """Why responses cannot share their prompt's row in this model; "" if nothing is known against it."""
    text = model.config.get_text_config()
    for number, kind in enumerate(getattr(text, "layer_types", None) or ()):
        if kind not in PACKABLE:
            return f"layer {number} is {kind.replace('_', ' ')}, whose state would run from one response into the next"
    for name, what in _RUNS_THROUGH.items():
        # PaliGemma's configuration says so of its prompts; see `visibility_of`.
        if getattr(text, name, None) and not (name == "use_bidirectional_attention" and model.config.model_type == "paligemma"):
            return f"the model has {what} ({name})"
    if not getattr(model, "_supports_attention_backend", True):
        return "its attention cannot be exchanged"
    return ""


def why_not_varlen(model: Any) -> str:
    """Why the kernel for sequences of any length, which only looks back, cannot do this model's attention; "" if it can."""
    bidirectional = visibility_of(model).bidirectional
    if bidirectional != "none":
        return f"tokens of {'an image' if bidirectional == 'image' else 'a prompt'} see each other both ways"
    return "attention scores are soft-capped" if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) else ""


def window_of(text: Any, layer: int) -> int | None:
    """The sliding window of a layer, in tokens, or None; from the configuration of the text model."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    if getattr(text, "use_sliding_window", True) is False:
        return None
    return getattr(text, "sliding_window", None)


def logit_scaling(model: Any) -> LogitScaling:
    """Scale and soft-cap of the logits, under the names that the families have for them."""
    if model.config.model_type in _PLAIN_HEAD:
        return LogitScaling()
    text = model.config.get_text_config()
    scaling = float(getattr(text, "logits_scaling", None) or 1.0)
    if not text.model_type.startswith("hyperclovax"):
        # Granite and its like divide by what HyperCLOVA X multiplies with.
        scaling = 1 / scaling
    softcap = getattr(text, "final_logit_softcapping", None)
    return LogitScaling(scale=float(getattr(text, "logit_scale", None) or 1.0) * scaling, softcap=float(softcap or 0.0))


def image_batch_axis(model: Any) -> int:
    """Along which axis images of several prompts are joined: the Idefics family has an axis of length 1 in front of them."""
    kind = model.config.model_type
    return 1 if "idefics" in kind or "smolvlm" in kind else 0


def answer_type(model: Any) -> int:
    """The token type of an answer's tokens; PaliGemma takes everything of type 0 for the prompt, which sees itself both ways."""
    return 1 if model.config.model_type == "paligemma" else 0
