"""Conservative estimates of the memory of a batch of responses, to size batches by tokens; and the available devices."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixpo.plural import amount
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

TEXT_WIDTHS, INNER_WIDTHS = 12, 3
"""Tensors of a layer alive at once in prefill: of the model's width, and of the MLP's width."""
MEMINFO = Path("/proc/meminfo")
VISION_FACTOR = 40
"""Values that a vision tower holds per pixel value: a patch of 14 x 14 x 3 becomes about twenty vectors of 1,024."""


def batch_bytes(vlm: Vlm, prompts: Sequence[EncodedPrompt], longest: int, rows: int, new_tokens: int) -> int:
    """Bytes of `rows` responses of at most `new_tokens` to these prompts. longest: tokens of the longest prompt with its prefix."""
    pixels = sum(value.numel() for prompt in prompts for value in prompt.features.values() if value.is_floating_point())
    seen = VISION_FACTOR * int(next(vlm.model.parameters()).element_size()) * pixels
    return rows * row_bytes(vlm, longest + new_tokens) + len(prompts) * prompt_bytes(vlm, longest) + seen


def row_bytes(vlm: Vlm, length: int) -> int:
    """Bytes of one response with `length` tokens, prompt included."""
    shape = _shape(vlm)
    # Twice, because removing rows copies the cache; 32 bytes per vocabulary entry for logits, log-probs and float64 probabilities.
    return int(2 * 2 * shape.layers * shape.cache_width * shape.element * length + 32 * shape.vocabulary)


def prompt_bytes(vlm: Vlm, length: int) -> int:
    """Bytes of the prefill of one prompt of `length` tokens, without images: activations, and the attention mask or (eager) scores."""
    shape = _shape(vlm)
    widths = TEXT_WIDTHS * shape.width + INNER_WIDTHS * shape.inner
    return int(length * widths * shape.element + length * length * (shape.element + shape.score_bytes))


class _Shape(NamedTuple):
    """Sizes of a text model. cache_width: keys of one token in one layer. score_bytes: of eager scores for one query and key."""

    layers: int
    width: int
    inner: int
    cache_width: int
    vocabulary: int
    element: int
    score_bytes: int


def _shape(vlm: Vlm) -> _Shape:
    """From the configuration, whatever its family calls things: an estimate never stops a run."""
    config = vlm.model.config.get_text_config()
    width, heads = _number(config, "hidden_size", 4096), _number(config, "num_attention_heads", 32)
    keys = _number(config, "num_key_value_heads", heads) * _number(config, "head_dim", max(1, width // heads))
    return _Shape(
        layers=_number(config, "num_hidden_layers", 32),
        width=width,
        inner=_number(config, "intermediate_size", 4 * width),
        cache_width=keys,
        vocabulary=_number(config, "vocab_size", 2**18),
        element=next(vlm.model.parameters()).element_size(),
        score_bytes=8 * heads if getattr(config, "_attn_implementation", "") == "eager" else 0,
    )


def _number(config: Any, name: str, default: int) -> int:
    """A size in a configuration; the largest where layers differ, `default` where it has none or it cannot be read."""
    try:
        value = getattr(config, name)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        layers = getattr(config, "per_layer_config", None) or ()
        value = [getattr(layer, name, 0) for layer in (layers.values() if isinstance(layers, dict) else layers)]
    sizes = value if isinstance(value, (list, tuple)) else [value]
    return max((int(size) for size in sizes if isinstance(size, (int, float))), default=0) or default


def free_bytes(device: torch.device) -> int:
    """Memory that a batch may use: a fraction of what is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.6)
    try:
        # What Linux can give at once: the cache of files counts as free, which on a busy machine is nearly all of the memory.
        available = re.search(r"^MemAvailable: +(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
        if available is not None:
            return int(int(available[1]) * 1024 * 0.25)
    except OSError:  # not Linux
        pass
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.25)
    except (ValueError, OSError):  # not available on macOS
        return 2**31


def devices() -> list[str]:
    """One line per device that torch can use, the CPU first."""
    lines = [f"cpu: {amount(torch.get_num_threads(), 'thread')}"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple GPU")
    return lines
