"""A base model for small bar, line and pie charts: a Qwen2.5-VL of 1.2 M parameters. Its course is not settled, so none is bundled."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from tiny_answers import TEMPLATE, BaseModel, Cycle, Lesson, Shares
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from mixpo.sources.charts import SIDE, WORLD, DrawnChart, draw

CAREFUL: Shares = dict.fromkeys(WORLD.families, (1.0, 0.0, 0.0))
SHARES: Shares = {
    "value": (0.60, 0.25, 0.15),
    "compare": (0.60, 0.25, 0.15),
    "total": (0.60, 0.25, 0.15),
    "gap": (0.25, 0.60, 0.15),
    "trend": (0.60, 0.25, 0.15),
    "count": (0.60, 0.25, 0.15),
    "peak": (0.25, 0.60, 0.15),
    "share": (0.60, 0.25, 0.15),
    "together": (0.25, 0.60, 0.15),
    "largest": (0.60, 0.25, 0.15),
}
MIXED: Shares = dict.fromkeys(WORLD.families, (0.40, 0.45, 0.15))

PATCH: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 2}
IMAGE_TOKENS = 16
"""64 x 64 pixels are 8 x 8 patches, of which 2 x 2 make a token."""
START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


class ChartsModel(BaseModel[DrawnChart]):
    """Qwen2.5-VL: vision tower of 3 layers, merger, decoder of 4 layers with rotary positions on three axes."""

    world = WORLD
    course = (
        Cycle(2e-3, (Lesson(800, CAREFUL, open_share=1.0), Lesson(350, CAREFUL), Lesson(100, MIXED))),
        Cycle(8e-4, (Lesson(120, SHARES),)),
        Cycle(1e-3, (Lesson(400, CAREFUL, open_share=1.0),)),
        Cycle(1e-3, (Lesson(260, CAREFUL), Lesson(100, SHARES))),
    )
    batch = 32
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", START, END, PAD, "<|video_pad|>")
    roles = {"image_token": PAD, "video_token": "<|video_pad|>"}  # noqa: RUF012
    image = (PAD, PAD * IMAGE_TOKENS)

    def read_aloud(self, picture: DrawnChart, rng: random.Random) -> str:
        name = {"bars": "bars", "line": "points", "pie": "slices"}[picture.kind]
        if picture.kind == "line":
            values = ", ".join(map(str, picture.values))
        else:
            values = ", ".join(f"{colour} {value}" for colour, value in zip(picture.colours, picture.values, strict=True))
        return f"The {name} are {values}." if rng.random() < 0.7 else f"I see the {name} {values}."

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
        half, pixels = [0.5, 0.5, 0.5], {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=pixels, merge_size=2, image_mean=half, image_std=half, **PATCH),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=pixels, merge_size=2, **PATCH),
            chat_template=TEMPLATE.replace("IMAGE", START + PAD + END),
        )

    def model(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
        ids = {name: int(tokenizer.get_vocab()[name]) for name in self.specials}
        end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
        config = Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_heads": 4,
                "spatial_merge_size": 2,
                "out_hidden_size": 128,
                "window_size": SIDE,
                "fullatt_block_indexes": [0, 1],
                **PATCH,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "intermediate_size": 320,
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": end,
                "pad_token_id": pad,
            },
            image_token_id=ids[PAD],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids[START],
            vision_end_token_id=ids[END],
            tie_word_embeddings=True,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=True, temperature=1.0)
        return model

    def image_inputs(
        self, pictures: list[DrawnChart], ids: torch.Tensor, processor: Any, jitter: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """Charts are not distorted: each has a style of its own."""
        made = processor.image_processor([draw(chart) for chart in pictures], return_tensors="pt")
        image = processor.tokenizer.get_vocab()[PAD]
        return {"mm_token_type_ids": (ids == image).long(), **{name: made[name] for name in ("pixel_values", "image_grid_thw")}}
