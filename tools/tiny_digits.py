"""The base model `mixpo:tiny`: an InternVL of 2 M parameters for scenes of four handwritten digits."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_answers import TEMPLATE, BaseModel, Cycle, Lesson, Shares
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from mixpo.sources.digits import CELL, WORLD, Scene, digit_images

CAREFUL: Shares = dict.fromkeys(WORLD.families, (1.0, 0.0, 0.0))
MIXED: Shares = dict.fromkeys(WORLD.families, (0.30, 0.55, 0.15)) | dict.fromkeys(
    ("sum", "difference", "product", "position"), (0.55, 0.30, 0.15)
)
SHARES: Shares = {
    "sum": (0.60, 0.25, 0.15),
    "largest": (0.25, 0.60, 0.15),
    "difference": (0.25, 0.60, 0.15),
    "product": (0.60, 0.25, 0.15),
    "count": (0.60, 0.25, 0.15),
    "compare": (0.60, 0.25, 0.15),
    "choice": (0.60, 0.25, 0.15),
    "position": (0.60, 0.25, 0.15),
}

IMAGE_TOKENS = 16


class DigitsModel(BaseModel[Scene]):
    """InternVL: vision tower of 3 layers, pixel shuffle, projector, Qwen2 decoder of 4 layers; 56 x 56 pixels."""

    world = WORLD
    course = (Cycle(1.5e-3, (Lesson(550, CAREFUL), Lesson(350, MIXED))), Cycle(6e-4, (Lesson(200, SHARES),)))
    batch = 64
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    roles = {  # noqa: RUF012
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    image = ("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>")

    def read_aloud(self, picture: Scene, rng: random.Random) -> str:
        a, b, c, d = picture.values
        if rng.random() < 0.7:
            return f"Top row {a} {b}, bottom row {c} {d}."
        return f"In the picture are {a} {b} above and {c} {d} below."

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
        side = {"height": 2 * CELL, "width": 2 * CELL}
        half = [0.5, 0.5, 0.5]
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=False, image_mean=half, image_std=half),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(size=side),
            image_seq_length=IMAGE_TOKENS,
            chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
        )

    def model(self, tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
        end, pad, image = (int(tokenizer.get_vocab()[name]) for name in ("<|im_end|>", "<|endoftext|>", "<IMG_CONTEXT>"))
        config = InternVLConfig(
            vision_config={
                "hidden_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 384,
                "image_size": [2 * CELL, 2 * CELL],
                "patch_size": [7, 7],
                "layer_scale_init_value": 1.0,
            },
            text_config={
                "model_type": "qwen2",
                "vocab_size": len(tokenizer),
                "hidden_size": 192,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "intermediate_size": 512,
                "max_position_embeddings": 1024,
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": end,
                "pad_token_id": pad,
            },
            image_token_id=image,
            image_seq_length=IMAGE_TOKENS,
            tie_word_embeddings=True,
        )
        model = InternVLForConditionalGeneration(config)
        model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=True, temperature=1.0)
        return model

    def image_inputs(
        self, pictures: list[Scene], ids: torch.Tensor, processor: Any, jitter: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        images = [Image.fromarray(distort(scene, jitter)).convert("RGB") for scene in pictures]
        return {"pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"]}


def distort(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene with every digit slightly turned, scaled and moved: (56, 56) uint8."""
    cells = []
    for index in scene.images:
        angle, scale = rng.normal(0, 0.08), 1 + rng.normal(0, 0.06)
        cos, sin, centre = math.cos(angle) / scale, math.sin(angle) / scale, CELL / 2
        x, y = centre + rng.normal(0, 0.8), centre + rng.normal(0, 0.8)
        matrix = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
        digit = Image.fromarray(digit_images()[0][index])
        cells.append(np.asarray(digit.transform((CELL, CELL), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)))
    return 255 - np.block([[cells[0], cells[1]], [cells[2], cells[3]]])
