"""Model inputs of prompts with their responses: several in one padded batch, or one alone as the family itself would have it.

T tokens of one prompt, B rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mixpo.vlm.families import MODEL_ERRORS, answer_type, image_batch_axis
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt


def batch_inputs(
    vlm: Vlm, prompts: Sequence[EncodedPrompt], pad: Literal["left", "right"], tails: Sequence[Sequence[int]] = ()
) -> dict[str, Tensor]:
    """Model inputs for several prompts, each followed by its tail (response ids) if `tails` are given; on the model's device.

    input_ids, attention_mask: (B, L). position_ids: (B, L), or (axes, B, L) for models with positions on several axes (mrope);
    padding gets position 0. Plus the vision features of all prompts in order, and token types.
    """
    rows = [torch.cat([p.ids, torch.tensor(tail, dtype=torch.long)]) for p, tail in zip(prompts, tails or [()] * len(prompts), strict=True)]
    inputs = {
        "input_ids": _pad(rows, pad, vlm.processor.tokenizer.pad_token_id or 0),
        "attention_mask": _pad([torch.ones_like(row) for row in rows], pad, 0),
    }
    for name in dict.fromkeys(name for p in prompts for name in p.token_types):
        extended = [extend_token_type(vlm, p, name, len(row) - len(p)) for p, row in zip(prompts, rows, strict=True)]
        inputs[name] = _pad(extended, pad, 0)
    inputs = _on_device(vlm, inputs | join_features(vlm, [p.features for p in prompts]))
    inputs["position_ids"] = _positions(vlm, inputs)
    return inputs


def single_inputs(vlm: Vlm, prompt: EncodedPrompt, tail: Sequence[int] = ()) -> dict[str, Tensor]:
    """Model inputs of one prompt and its tail as a user of the family passes them: what the processor gave, and nothing else.

    No padding, no other prompts and no position ids, so nothing here depends on `mixpo`; all other layouts are compared with it.
    """
    ids = torch.cat([prompt.ids, torch.tensor(tail, dtype=torch.long)])
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    inputs |= {name: extend_token_type(vlm, prompt, name, len(tail))[None] for name in prompt.token_types}
    return _on_device(vlm, inputs | prompt.features)


def extend_token_type(vlm: Vlm, prompt: EncodedPrompt, name: str, count: int) -> Tensor:
    """(T + count,) values of a per-token input for the prompt and `count` tokens of its response; zeros for a prompt without it."""
    values = prompt.token_types.get(name, torch.zeros_like(prompt.ids))
    return torch.cat([values, values.new_full((count,), next_token_type(vlm, prompt, name))])


def next_token_type(vlm: Vlm, prompt: EncodedPrompt, name: str) -> int:
    """The value of a per-token input for response tokens: that of the prompt's last token, which is text like them."""
    if name == "token_type_ids" and answer_type(vlm.model):
        return answer_type(vlm.model)
    return int(prompt.token_types[name][-1]) if name in prompt.token_types else 0


def join_features(vlm: Vlm, features: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Vision features of several prompts as one batch: concatenated along images, other axes zero-padded."""
    axis = image_batch_axis(vlm.model)
    present = [f for f in features if f]
    return {name: _join([f[name] for f in present if name in f], axis) for name in dict.fromkeys(name for f in present for name in f)}


def positions_of(vlm: Vlm, prompt: EncodedPrompt) -> Tensor:
    """Position ids of one prompt on the CPU: (T,), or (axes, T) for models with several axes (mrope)."""
    inputs = {"input_ids": prompt.ids, "attention_mask": torch.ones_like(prompt.ids), **prompt.token_types}
    grid = {name: value for name, value in prompt.features.items() if name == "image_grid_thw"}
    return _positions(vlm, {name: value[None] for name, value in inputs.items()} | grid)[..., 0, :]


def positions_like(vlm: Vlm, ids: Tensor) -> Tensor:
    """Position ids of a text without padding, on the device of `ids` (B, L): (B, L), or (axes, B, L) for models with several axes."""
    plain = torch.arange(ids.shape[1], device=ids.device).expand(*ids.shape)
    owner = next((m for m in (vlm.model, getattr(vlm.model, "model", None)) if hasattr(m, "get_rope_index")), None)
    return plain if owner is None else plain.expand(_position_axes(vlm, owner), *ids.shape)


def _join(values: list[Tensor], axis: int) -> Tensor:
    sizes = [max(value.shape[d] for value in values) for d in range(values[0].ndim)]
    padded = []
    for value in values:
        missing = [0 if d == axis else sizes[d] - value.shape[d] for d in range(value.ndim)]
        widths = [width for size in reversed(missing) for width in (0, size)]
        padded.append(torch.nn.functional.pad(value, widths) if any(missing) else value)
    return torch.cat(padded, dim=axis)


def _pad(rows: Sequence[Tensor], side: Literal["left", "right"], value: int) -> Tensor:
    """(B, L) from rows of different lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _on_device(vlm: Vlm, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs on the model's device, floats in the dtype of its weights."""
    dtype = next(vlm.model.parameters()).dtype
    return {name: value.to(vlm.device, dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()}


def _positions(vlm: Vlm, inputs: dict[str, Tensor]) -> Tensor:
    """Position ids from the model's own `get_rope_index` where it has one; otherwise counted, without padding."""
    mask = inputs["attention_mask"]
    plain = (mask.cumsum(-1) - 1).clamp(min=0)
    owner = next((m for m in (vlm.model, getattr(vlm.model, "model", None)) if hasattr(m, "get_rope_index")), None)
    if owner is None:
        return plain
    if "image_grid_thw" not in inputs:
        return plain.expand(_position_axes(vlm, owner), *plain.shape)
    names = ("mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions: Tensor = owner.get_rope_index(inputs["input_ids"], **{n: inputs[n] for n in names if n in inputs})[0]
    return positions.masked_fill(mask == 0, 0)


def _position_axes(vlm: Vlm, owner: Any) -> int:
    """Axes of position ids, as the model itself gives them to a text; else one for each section of the rotary embedding."""
    if "position_axes" not in vlm.cache:
        one = torch.ones((1, 1), dtype=torch.long)
        try:
            axes = len(owner.get_rope_index(one, mm_token_type_ids=torch.zeros_like(one), attention_mask=one)[0])
        except MODEL_ERRORS:
            rope = getattr(vlm.model.config.get_text_config(), "rope_parameters", None) or {}
            axes = len(rope.get("mrope_section") or (0, 0, 0))
        vlm.cache["position_axes"] = axes
    return int(vlm.cache["position_axes"])
