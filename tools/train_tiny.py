"""Make the base model of a bundled world: a small VLM trained from scratch on the start pool of its world.

    python tools/train_tiny.py digits --out src/mixpo/assets/tiny
    python tools/train_tiny.py charts --out runs/charts-base

A model learns from worked answers of three manners (`tiny_answers.py`), of which the world's `SHARES` are the last mixture. So its
chain-of-thought answers are mediocre although it *can* read and reason: the situation that preference optimization on answer
correctness is meant to mend. Nothing of the other pools is used.

The same command resumes an interrupted course after the last finished learning-rate cycle.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from tiny_answers import BaseModel
from tiny_charts import ChartsModel
from tiny_digits import DigitsModel
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORLDS: dict[str, type[BaseModel[Any]]] = {"digits": DigitsModel, "charts": ChartsModel}


def make_tokenizer(texts: list[str], base: BaseModel[Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=list(base.specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=base.roles,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def tensors(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Prompts with their responses, padded on the right: ids, labels and attention mask, each (B, T)."""
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


def train(base: BaseModel[Any], out: Path, seed: int) -> None:
    """All cycles of the course; after an interruption those that are finished are read from `out`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    *_, careful, mixed = base.course[0].lessons
    corpus = [*base.examples(seed + 1, 1000, careful), *base.examples(seed + 2, 3000, mixed)]
    tokenizer = make_tokenizer([text for _, message, answer in corpus for text in (message, answer, "user\n", "assistant\n")], base)
    processor, model = base.processor(tokenizer), base.model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}", flush=True)
    for number, cycle in enumerate(base.course):
        weights = out / f"cycle-{number + 1}.safetensors"
        if weights.exists():
            load_model(model, weights)
            continue
        lessons = enumerate(cycle.lessons)
        rows = [row for i, part in lessons for row in base.examples(10 * seed + 9 * number + i, part.steps * base.batch, part)]
        run(base, model, processor, rows, cycle.rate, seed + number)
        save_model(model, str(weights))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for path in out.glob("cycle-*.safetensors"):
        path.unlink()


def run(base: BaseModel[Any], model: Any, processor: Any, rows: list[tuple[Any, str, str]], rate: float, seed: int) -> None:
    """One pass over the rows in one cycle of the learning rate."""
    tokenizer, size, steps = processor.tokenizer, base.batch, len(rows) // base.batch
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
            text = processor.apply_chat_template(messages, add_generation_prompt=True).replace(*base.image)
            encoded.append((tokenizer(text)["input_ids"], tokenizer(answer + "<|im_end|>")["input_ids"]))
        inputs = tensors(encoded, tokenizer.pad_token_id)
        images = base.image_inputs([picture for picture, _, _ in batch], inputs["input_ids"], processor, jitter)
        loss = model(**inputs, **images).loss
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
    parser.add_argument("world", choices=sorted(WORLDS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(WORLDS[args.world](), args.out, args.seed)


if __name__ == "__main__":
    main()
