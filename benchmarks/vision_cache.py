"""What `train.cache_vision` saves: a training step with vision features computed, and with features that are kept.

    python benchmarks/vision_cache.py            # tables for reading
    python benchmarks/vision_cache.py --json     # the last line is {"cases": [...]}

A random InternVL whose vision tower has 0.3 times the weights of its language model, as 300 M beside 1 B, vision frozen; and one of the
demo's shape. One image to a question. CPU time on one thread, the two in turn, median of ratios, without over with. `analytic` counts
multiplications by weights alone: vision forward, language model forward and backward (twice the forward, or once beside an adapter).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from history import emit
from synthetic import SIZES, Data, Size, model_of

from mixpo.recipe import ImageTable, TrainTable
from mixpo.train.adapters import prepare_trainable
from mixpo.train.batch import Chunk
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.parts import find_parts
from mixpo.train.vision_cache import VisionCache
from mixpo.types import ImageRef
from mixpo.vlm.load import Vlm

RATIO = Size(width=384, layers=6, heads=6, vocabulary=2048, vision=192, vision_layers=7, side=224)
"""0.3 : 1 in weights."""

CASES: tuple[tuple[str, Size, dict[str, Any], int, list[int], list[tuple[int, int]]], ...] = (
    ("1 pair, short answers", RATIO, {"freeze": ["vision", "projector"]}, 90, [20, 20], [(0, 1)]),
    ("1 pair, short answers, adapter", RATIO, {"lora": {}}, 90, [20, 20], [(0, 1)]),
    ("1 pair, chains of thought", RATIO, {"freeze": ["vision", "projector"]}, 90, [200, 200], [(0, 1)]),
    ("4 pairs of 8 chains of thought", RATIO, {"freeze": ["vision", "projector"]}, 90, [200] * 8, [(n, n + 4) for n in range(4)]),
    ("demo's shape, 3 pairs of 4", SIZES["demo"], {"freeze": ["vision", "projector"]}, 40, [30] * 4, [(0, 1), (0, 2), (0, 3)]),
)
"""Name, model, settings of [train], tokens of the prompt with its image, of each response, and pairs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name, size, table, prompt, lengths, pairs in CASES:
        row = {"name": name, **measure(size, table, Data(size, 2, prompt, lengths, pairs), args.rounds)}
        found.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    emit("vision_cache", {"cases": found}, show=args.json)


def measure(size: Size, table: dict[str, Any], data: Data, rounds: int) -> dict[str, float]:
    """Ratios of one case, and how far the gradients are apart."""
    vlm = model_of(size)
    settings = TrainTable.model_validate({"cache_vision": True, **table})
    prepare_trainable(vlm, settings, 0)
    chunks = [chunk._replace(group=replace(chunk.group, question=_with_image(chunk))) for chunk in data.chunks]
    vision_cache = VisionCache(vlm, ImageTable(), data.get, torch.float32)
    ways: dict[str, Callable[[], None]] = {
        "computed": lambda: _step(vlm, chunks, data, None),
        "kept": lambda: _step(vlm, chunks, data, vision_cache),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for number in range(rounds + 1):
        for name, step in ways.items():
            vlm.model.zero_grad()
            begun = time.process_time()
            step()
            if number:
                seconds[name].append(time.process_time() - begun)
            gradients[name] = torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])
    ratios = sorted(one / two for one, two in zip(seconds["computed"], seconds["kept"], strict=True))
    gap = (gradients["computed"] - gradients["kept"]).norm() / gradients["computed"].norm()
    tokens = sum(data.length(chunk.group) + sum(map(len, chunk.group.responses)) for chunk in chunks)
    return {
        "analytic": round(_analytic(vlm, size, len(chunks), tokens, settings.lora is not None), 2),
        "measured": round(statistics.median(ratios), 2),
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "kib_a_question": round(vision_cache.size / len(chunks) / 1024),
        "gradient_rel": float(f"{float(gap):.1e}"),
    }


def _step(vlm: Vlm, chunks: Sequence[Chunk], data: Data, vision_cache: VisionCache | None) -> None:
    batch = collate(vlm, chunks, data.get, "tree")
    if vision_cache is not None:
        batch = vision_cache.fill(batch, chunks)
    Scorer(vlm.model, "tree")(batch).sums.sum().backward()


def _with_image(chunk: Chunk) -> Any:
    return replace(chunk.group.question, images=(ImageRef(path="", digest=chunk.group.question.id),))


def _analytic(vlm: Vlm, size: Size, images: int, tokens: int, adapter: bool) -> float:
    weights = dict.fromkeys(("vision", "projector", "llm"), 0)
    parts = find_parts(vlm.model)
    for name, parameter in vlm.model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name and ".lora_" not in name:
            (part,) = parts.of(name)
            weights[part] += parameter.numel()
    seeing = images * (weights["vision"] * (size.side // 14) ** 2 + weights["projector"] * size.image_tokens)
    return 1 + seeing / (weights["llm"] * tokens * (2 if adapter else 3))


if __name__ == "__main__":
    main()
