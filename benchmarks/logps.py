"""Time and peak memory of log-probs of tokens for growing vocabularies: all logits at once, and in tiles.

    python benchmarks/logps.py

Both are the code that training runs, which makes logits of up to 256 MiB at once. CPU time on one thread, taking turns, median; bytes of
tensors held at a time above hidden states and weights, gradients included. The gradient of the weights is as large as the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from memory import peak
from torch import Tensor, nn

from mixpo.train.token_logps import token_logps
from mixpo.vlm.families import LogitScaling


def ways(tokens: int, width: int, vocabulary: int) -> tuple[dict[str, Callable[[], Tensor]], Callable[[], None]]:
    """The two ways to score the same tokens, and what takes gradients away."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(width, vocabulary, bias=False), torch.randn(tokens, width, requires_grad=True)
    target, factors = torch.randint(vocabulary, (tokens,)), torch.randn(tokens)

    def way(whole: int) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            return (token_logps(head, LogitScaling(), hidden, target, whole=whole) * factors).sum()

        return loss

    def clear() -> None:
        hidden.grad = head.weight.grad = None

    return {"whole": way(2**40), "tiles": way(0)}, clear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[16_000, 64_000, 152_000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for vocabulary in args.vocabularies:
        found, clear = ways(args.tokens, args.width, vocabulary)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for number in range(args.rounds + 1):
            for name, loss in found.items():
                clear()
                begun = time.process_time()
                loss().backward()
                if number:
                    seconds[name].append(time.process_time() - begun)
        memory = {}
        for name, loss in found.items():
            clear()
            memory[f"{name}_mib"] = round(peak(loss) / 2**20)
        ratios = [tiles / whole for whole, tiles in zip(seconds["whole"], seconds["tiles"], strict=True)]
        weights = 4 * vocabulary * args.width
        row = {
            "vocabulary": vocabulary,
            "weights_mib": round(weights / 2**20),
            **memory,
            "tiles_over_whole_time": round(statistics.median(ratios), 2),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
