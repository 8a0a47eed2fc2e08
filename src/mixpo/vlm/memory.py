"""Conservative estimates of the memory of a batch of responses, to size batches by tokens; and the available devices."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

TEXT_WIDTHS, INNER_WIDTHS = 12, 3
"""Tensors of a layer alive at once in prefill: of the model's width, and of the MLP's width."""
VISION_FACTOR = 40
"""Values that a vision tower holds per pixel value: a patch of 14 x 14 x 3 becomes about twenty vectors of 1,024."""


def batch_bytes(vlm: Vlm, prompts: Sequence[EncodedPrompt], longest: int, rows: int, new_tokens: int) -> int:
    """Bytes of `rows` responses of at most `new_tokens` to these prompts. longest: tokens of the longest prompt with its prefix."""
    pixels = sum(value.numel() for prompt in prompts for value in prompt.features.values() if value.is_floating_point())
    seen = VISION_FACTOR * int(next(vlm.model.parameters()).element_size()) * pixels
    return rows * row_bytes(vlm, longest + new_tokens) + len(prompts) * prompt_bytes(vlm, longest) + seen


def row_bytes(vlm: Vlm, length: int) -> int:
    """Bytes of one response with `length` tokens, prompt included."""
    config = vlm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(vlm.model.parameters()).element_size()
    # Twice, because removing rows copies the cache; 32 bytes per vocabulary entry for logits, log-probs and float64 probabilities.
    return int(2 * 2 * config.num_hidden_layers * heads * width * size * length + 32 * config.vocab_size)


def prompt_bytes(vlm: Vlm, length: int) -> int:
    """Bytes of the prefill of one prompt of `length` tokens, without images: activations, and the attention mask or (eager) scores."""
    config = vlm.model.config.get_text_config()
    size = next(vlm.model.parameters()).element_size()
    scores = 8 * config.num_attention_heads if config._attn_implementation == "eager" else 0
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(length * (TEXT_WIDTHS * config.hidden_size + INNER_WIDTHS * inner) * size + length * length * (size + scores))


def free_bytes(device: torch.device) -> int:
    """Memory that a batch may use: a fraction of what is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.6)
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.25)
    except (ValueError, OSError):  # not available on macOS
        return 2**31


def devices() -> list[str]:
    """One line per device that torch can use, the CPU first."""
    lines = [f"cpu: {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple GPU")
    return lines
