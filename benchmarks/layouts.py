"""Time of a training step in each layout of micro-batches, on the same pairs: what a prompt computed once is worth.

    python benchmarks/layouts.py --size demo

Layouts take turns, so that a busy machine slows all of them; CPU time on one thread, median and extremes of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from synthetic import SIZES, Data, model_of

from mixpo.train.batch import Layout, micro_batches
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.losses import Weights, combine
from mixpo.vlm.load import Vlm

SHAPES = {"demo": (46, (20, 20, 20, 20), ((0, 1), (0, 2), (3, 1)), 0.3), "small": (512, (64,) * 4, ((0, 1), (0, 2), (3, 1), (3, 2)), 0.0)}
"""Tokens of a prompt and of its responses, pairs of each question, and how much lengths differ."""


def step(vlm: Vlm, data: Data, layout: Layout, budget: int) -> tuple[float, int]:
    """CPU seconds of laying out, forward and backward over all pieces; and the tokens that passed through."""
    begun, tokens = time.process_time(), 0
    for pieces in micro_batches(data.pieces, data.length, budget, layout):
        batch = collate(vlm, pieces, data.get, layout)
        logps = Scorer(vlm.model, layout)(batch)
        weights = Weights(preference=0.8, quality=0.2, generation=1.0)
        combine(weights, 0.1, logps, logps.sums.detach(), batch.chosen, batch.rejected, 0.0).total.sum().backward()
        tokens += batch.tokens
    vlm.model.zero_grad()
    return time.process_time() - begun, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES[args.size]
    prompt, lengths, pairs, spread = SHAPES[args.size]
    vlm, data = model_of(size), Data(size, args.questions, prompt, lengths, pairs, spread)
    layouts: tuple[Layout, ...] = ("tree", "shared", "plain")
    for layout in layouts:
        step(vlm, data, layout, args.budget)
    seconds: dict[str, list[float]] = {layout: [] for layout in layouts}
    tokens: dict[str, int] = {}
    for _ in range(args.rounds):
        for layout in layouts:
            taken, tokens[layout] = step(vlm, data, layout, args.budget)
            seconds[layout].append(taken)
    for layout in layouts:
        ratios = [slow / fast for slow, fast in zip(seconds[layout], seconds["tree"], strict=True)]
        row = {
            "layout": layout,
            "tokens": tokens[layout],
            "cpu_seconds": round(statistics.median(seconds[layout]), 3),
            "over_tree": [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))],
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
