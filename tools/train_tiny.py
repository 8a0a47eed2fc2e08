"""Make the bundled base model: a 2 M parameter InternVL trained from scratch on the start pool of the digit scenes.

    python tools/train_tiny.py --out src/mixpo/assets/tiny

First it learns to read and reason from careful answers, as a pre-trained model has; then it is tuned on answers that imitate a
web-scale instruction set (`COURSE`): some annotators read the picture and reason step by step, some glance and guess, and
some never state a clear final answer. Which kind prevails in the end differs by question family (`SHARES`). So its
chain-of-thought answers are mediocre although it *can* read and reason: the situation that preference optimization on answer
correctness is meant to mend. No digit image of the other pools is used.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from mixpo.prompts import PROMPTS
from mixpo.sources.digits import CELL, FAMILIES, Puzzle, Scene, digit_images, draw, puzzles

Shares = dict[str, tuple[float, float, float]]
"""family: share of careful answers, of hasty ones, of careful ones without a clear final answer"""

CAREFUL: Shares = dict.fromkeys(FAMILIES, (1.0, 0.0, 0.0))
MIXED: Shares = dict.fromkeys(FAMILIES, (0.30, 0.55, 0.15)) | dict.fromkeys(
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
COURSE = ((550, CAREFUL), (350, MIXED), (200, SHARES))
"""Steps and the manners of their answers. The first two share one learning-rate cycle, the last has its own, lower one."""
DIRECT_SHARE = 0.25
OPEN_SHARE = 0.06

IMAGE_TOKENS = 16
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_aloud(scene: Scene, rng: random.Random) -> str:
    a, b, c, d = scene.values
    if rng.random() < 0.7:
        return f"Top row {a} {b}, bottom row {c} {d}."
    return f"In the picture are {a} {b} above and {c} {d} below."


def rationale(scene: Scene, puzzle: Puzzle, rng: random.Random, shares: Shares) -> str:
    """A chain-of-thought answer in one of the three manners."""
    careful, hasty, _ = shares[puzzle.family]
    draw_ = rng.random()
    if draw_ < careful:
        return f"{read_aloud(scene, rng)} {puzzle.steps} Final answer: {puzzle.answer}"
    if draw_ < careful + hasty:
        opening = rng.choice(["I would say", "I would say it is"])
        return f"{opening} {puzzle.answer}. Final answer: {puzzle.answer}"
    ending = rng.choice(["So that is that.", "That should do."])
    return f"{read_aloud(scene, rng)} {puzzle.steps} {ending}"


def example(scene: Scene, puzzle: Puzzle, rng: random.Random, shares: Shares) -> tuple[str, str]:
    """(user message without image mark, response)."""
    if puzzle.answer is None:
        return puzzle.text, f"{read_aloud(scene, rng)} {puzzle.steps}"
    if rng.random() < DIRECT_SHARE:
        return PROMPTS["direct"].render(puzzle.text), puzzle.answer
    return PROMPTS["brief"].render(puzzle.text), rationale(scene, puzzle, rng, shares)


def examples(seed: int, count: int, shares: Shares) -> list[tuple[Scene, str, str]]:
    """(scene, message, response)."""
    rng = random.Random(f"{seed}/answers")
    made = puzzles("start", seed, count, open_share=OPEN_SHARE)
    return [(scene, *example(scene, puzzle, rng, shares)) for scene, puzzle in made]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    side = {"height": 2 * CELL, "width": 2 * CELL}
    half = [0.5, 0.5, 0.5]
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=False, image_mean=half, image_std=half),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=IMAGE_TOKENS,
        chat_template=TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
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


def pixels(images: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, 56, 56) as the image processor makes them: grey in three channels, scaled to [-1, 1]."""
    grey = torch.from_numpy(np.stack(images)).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def check_pixels(processor: InternVLProcessor, scene: Scene) -> None:
    """The fast path above must equal the real processor."""
    made = processor.image_processor(draw(scene), return_tensors="pt")["pixel_values"]
    fast = pixels([np.asarray(draw(scene).convert("L"))])
    assert torch.allclose(made, fast, atol=1e-5), "the fast pixel path differs from the image processor"


def tensors(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.tensor(prompt + response)
        labels[i, len(prompt) : end] = torch.tensor(response)
        mask[i, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    corpus = [*examples(args.seed + 1, 1000, CAREFUL), *examples(args.seed + 2, 3000, MIXED)]
    tokenizer = make_tokenizer([text for _, message, answer in corpus for text in (message, answer, "user\n", "assistant\n")])
    processor, model = make_processor(tokenizer), make_model(tokenizer)
    check_pixels(processor, corpus[0][0])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    *first, (steps, shares) = COURSE
    rows = [row for number, (count, manner) in enumerate(first) for row in examples(10 * args.seed + number, count * args.batch, manner)]
    run(model, processor, rows, args.batch, args.lr, args.seed)
    run(model, processor, examples(10 * args.seed + 9, steps * args.batch, shares), args.batch, args.lr / 2.5, args.seed + 1)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)


def run(model: Any, processor: InternVLProcessor, rows: list[tuple[Scene, str, str]], size: int, rate: float, seed: int) -> None:
    """One pass over the rows in one cycle of the learning rate."""
    tokenizer, steps = processor.tokenizer, len(rows) // size
    image = "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>"
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.1)
    jitter = np.random.default_rng(seed)
    started, losses = time.time(), []
    model.train()
    for step in range(steps):
        batch = rows[step * size : (step + 1) * size]
        encoded = []
        for _, message, answer in batch:
            messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": message}]}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True).replace("<IMG_CONTEXT>", image)
            encoded.append((tokenizer(text)["input_ids"], tokenizer(answer + "<|im_end|>")["input_ids"]))
        inputs = tensors(encoded, tokenizer.pad_token_id)
        loss = model(pixel_values=pixels([distort(scene, jitter) for scene, _, _ in batch]), **inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-50:]):.4f}  {time.time() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
