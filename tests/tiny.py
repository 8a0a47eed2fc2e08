"""Small, randomly initialised models of real architectures, built from nothing: no network, no downloaded files.

Weights are drawn wide (standard deviation 0.3), because at the default initialisation attention is nearly uniform and
a wrong mask, position or image would change nothing that a test could see.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.utils import logging

from mixpo.types import ImageRef

CORPUS = (
    "How many digits are even? The digits are 3, 1, 4 and 1. Reason step by step. Final answer: 2",
    "What is the sum of all digits in the picture? 12 + 7 = 19. Describe the picture. The top left digit is larger.",
    "答案是左上角的数字最大，它是九。请一步一步推理。图片里有四个手写数字。",
)

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE like those of Qwen: any text can be written, and Chinese characters may be split over tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    bpe.train_from_iterator(CORPUS, trainer)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special.values(), "<ref>", "</ref>")
    bpe.add_special_tokens([AddedToken(name, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left", extra_special_tokens=special
    )


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def cached(build: Callable[[Path, int], Path]) -> Callable[..., Path]:
    """Build a model once per machine, version of this file, torch and transformers; afterwards copy it. Safe with several workers."""

    @wraps(build)
    def copy(folder: Path, seed: int = 0) -> Path:
        key = hashlib.sha256(Path(__file__).read_bytes() + f"{torch.__version__} {transformers.__version__} {seed}".encode()).hexdigest()
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixpo-tests"
        model = root / f"{build.__name__}-{key[:16]}"
        if not model.exists():
            root.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=root))
            build(new, seed)
            with suppress(OSError):  # another worker was first
                new.rename(model)
            shutil.rmtree(new, ignore_errors=True)
        return Path(shutil.copytree(model, folder, dirs_exist_ok=True))

    return copy


@cached
def build_internvl(folder: Path, seed: int = 0) -> Path:
    """InternVL: 4 image tokens for each 28 x 28 tile, one tile for a square image and three for a wide one."""
    from transformers import GotOcr2ImageProcessor, InternVLVideoProcessor

    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(special)
    image_token = _id(tokenizer, "<IMG_CONTEXT>")
    side = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, max_patches=2, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer) + 5,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [28, 28],
        "patch_size": [7, 7],
    }
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=image_token, image_seq_length=4)
    return _save(InternVLForConditionalGeneration, config, processor, folder, seed)


@cached
def build_qwen(folder: Path, seed: int = 0) -> Path:
    """Qwen2.5-VL: rotary positions on three axes (mrope) and as many image tokens as an image's size asks for."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer({"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "s": "<|vision_start|>", "e": "<|vision_end|>"})
    ids = {name: _id(tokenizer, f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")}
    patch: dict[str, Any] = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 14 * 14, "longest_edge": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **patch),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **patch),
        chat_template=_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    text = {
        "vocab_size": len(tokenizer) + 5,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 48,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return _save(Qwen2_5_VLForConditionalGeneration, config, processor, folder, seed)


def _save(model_class: Callable[[Any], Any], config: object, processor: Any, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    for parameter in _matrices(model):
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _matrices(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.ndim >= 2)


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> ImageRef:
    """A file of coloured noise (width, height), and the reference to it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return ImageRef(path=str(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())
