"""Time of a training step in each layout of micro-batches, on the same pairs: what a prompt computed once is worth.

    python benchmarks/layouts.py --size demo
    python benchmarks/layouts.py --size demo --alike 1 2 4 8 10

--alike: pairs whose two responses begin with so many tokens in common (in DropoutNTP half of them), with those computed once against
each response by itself. What is compared takes turns, so that a busy machine slows all of it; CPU time on one thread, median and
extremes of the ratios; the last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from history import emit
from synthetic import SIZES, Data, Size, model_of

from mixpo.train import prefix_tree
from mixpo.train.batch import Layout, micro_batches
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.losses import LossWeights, combine
from mixpo.vlm.load import Vlm

SHAPES = {"demo": (46, (20, 20, 20, 20), ((0, 1), (0, 2), (3, 1)), 0.3), "small": (512, (64,) * 4, ((0, 1), (0, 2), (3, 1), (3, 2)), 0.0)}
"""Tokens of a prompt and of its responses, pairs of each question, and how much lengths differ."""
LAYOUTS: tuple[Layout, ...] = ("tree", "shared", "plain")

Way = Callable[[], tuple[float, int]]


def step(vlm: Vlm, data: Data, layout: Layout, budget: int) -> tuple[float, int]:
    """CPU seconds of laying out, forward and backward over all chunks; and the computed tokens."""
    begun, tokens = time.process_time(), 0
    for chunks in micro_batches(data.chunks, data.length, budget, layout):
        batch = collate(vlm, chunks, data.get, layout)
        logps = Scorer(vlm.model, layout)(batch)
        weights = LossWeights(preference=0.8, quality=0.2, generation=1.0)
        combine(weights, 0.1, logps, logps.sums.detach(), batch.chosen, batch.rejected, 0.0).total.sum().backward()
        tokens += batch.tokens
    vlm.model.zero_grad()
    return time.process_time() - begun, tokens


@contextmanager
def nothing_shared() -> Iterator[None]:
    """Every response by itself, whatever it begins with."""
    had, prefix_tree.MIN_SHARED = prefix_tree.MIN_SHARED, 10**9
    try:
        yield
    finally:
        prefix_tree.MIN_SHARED = had


@contextmanager
def everything_shared() -> Iterator[None]:
    """Even a single token in common."""
    had, prefix_tree.MIN_SHARED = prefix_tree.MIN_SHARED, 1
    try:
        yield
    finally:
        prefix_tree.MIN_SHARED = had


def compare(ways: dict[str, Way], rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each way, the first one of which the others are measured against."""
    first = next(iter(ways))
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            taken, tokens[name] = way()
            seconds[name].append(taken)
    for name in ways:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds[first], strict=True)]
        over = [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))]
        yield {"name": name, "tokens": tokens[name], "cpu_seconds": round(statistics.median(seconds[name]), 3), f"over_{first}": over}


def ways_of_layouts(vlm: Vlm, size: Size, args: argparse.Namespace) -> dict[str, Way]:
    prompt, lengths, pairs, spread = SHAPES[args.size]
    data = Data(size, args.questions, prompt, lengths, pairs, spread)
    return {layout: partial(step, vlm, data, layout, args.budget) for layout in LAYOUTS}


def ways_of_sharing(vlm: Vlm, size: Size, args: argparse.Namespace, alike: int) -> dict[str, Way]:
    """Three pairs of each question, as DropoutNTP makes them."""
    prompt, lengths, _, _ = SHAPES[args.size]
    data = Data(size, args.questions, prompt, (lengths[0],) * 6, ((0, 1), (2, 3), (4, 5)), alike=alike)

    def once() -> tuple[float, int]:
        with everything_shared():
            return step(vlm, data, "tree", args.budget)

    def each() -> tuple[float, int]:
        with nothing_shared():
            return step(vlm, data, "tree", args.budget)

    return {"once": once, "each": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alike", type=int, nargs="*", default=[], help="tokens in common, instead of comparing layouts")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES[args.size]
    vlm, rows = model_of(size), list[dict[str, Any]]()
    cases = [({"alike": alike}, ways_of_sharing(vlm, size, args, alike)) for alike in args.alike]
    for about, ways in cases or [({}, ways_of_layouts(vlm, size, args))]:
        for row in compare(ways, args.rounds):
            rows.append({**about, **row})
            print(json.dumps(rows[-1]), flush=True)
    emit("layouts", {"rows": rows}, show=args.json)


if __name__ == "__main__":
    main()
