"""What grouped windows save in a vision tower: forward and backward with one call per window, and with grouped calls.

    python benchmarks/vision_windows.py            # tables for reading
    python benchmarks/vision_windows.py --json     # the last line is {"cases": [...]}

Random towers of Qwen2.5-VL (windows of 64 patches, every fourth layer over the whole image), Qwen3-VL (one window per image) and Pixtral
(a mask of all images together). CPU time on one thread, the two in turn, ratio of medians, own over grouped. `calls` counts SDPA.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers as tf
from history import emit
from torch import Tensor, nn

from mixpo.train.vision_attention import windows_grouped

QWEN: dict[str, Any] = {"depth": 4, "hidden_size": 160, "intermediate_size": 320, "num_heads": 4, "patch_size": 14, "out_hidden_size": 160}
Sides = Sequence[tuple[int, int]]
"""Height and width of each image in patches."""
CASES: tuple[tuple[str, str, Sides], ...] = (
    ("Qwen2.5-VL, 4 images of 448 x 448", "qwen2_5_vl", [(32, 32)] * 4),
    ("Qwen2.5-VL, 8 images of many sizes", "qwen2_5_vl", [(12, 18), (26, 20), (32, 24), (14, 30), (22, 22), (18, 12), (40, 16), (16, 28)]),
    ("Qwen3-VL, 32 images of 112 x 112", "qwen3_vl", [(8, 8)] * 32),
    ("Pixtral, 4 images of 224 x 224", "pixtral", [(16, 16)] * 4),
)


class Owner(nn.Module):
    """A tower as `windows_grouped` sees it in a model."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.config = tf.LlamaConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, kind, sides in CASES:
        rows.append({"name": name, **measure(kind, sides, args.rounds)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    emit("vision_windows", {"cases": rows, "load": round(os.getloadavg()[0], 1)}, show=args.json)


def measure(kind: str, sides: Sides, rounds: int) -> dict[str, Any]:
    """Ratio of one case, calls, and how far the gradients are apart."""
    torch.manual_seed(0)
    owner = Owner(tower_of(kind))
    inputs = inputs_of(kind, sides)
    ways: dict[str, AbstractContextManager[Any]] = {}
    seconds: dict[str, list[float]] = {"own": [], "grouped": []}
    calls, gradients = dict[str, int](), dict[str, Tensor]()
    for number in range(rounds + 1):
        for way in seconds:
            ways[way] = windows_grouped(owner) if way == "grouped" else nullcontext()
            owner.zero_grad()
            begun = time.process_time()
            with ways[way], Counted() as counted:
                owner.tower(**inputs).last_hidden_state.square().mean().backward()
            if number:
                seconds[way].append(time.process_time() - begun)
            calls[way] = counted.calls
            gradients[way] = torch.cat([p.grad.flatten() for p in owner.parameters() if p.grad is not None])
    gap = (gradients["own"] - gradients["grouped"]).norm() / gradients["own"].norm()
    return {
        "ratio": round(statistics.median(seconds["own"]) / statistics.median(seconds["grouped"]), 2),
        "calls_own": calls["own"],
        "calls_grouped": calls["grouped"],
        "gradient_rel": float(f"{float(gap):.1e}"),
    }


class Counted:
    """Counts calls of SDPA."""

    def __enter__(self) -> Counted:
        self.calls, self._sdpa = 0, F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self._call
        return self

    def __exit__(self, *_: object) -> None:
        F.scaled_dot_product_attention = self._sdpa

    def _call(self, *args: Any, **options: Any) -> Tensor:
        self.calls += 1
        return self._sdpa(*args, **options)


def tower_of(kind: str) -> nn.Module:
    from transformers.models.pixtral.modeling_pixtral import PixtralVisionModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    if kind == "pixtral":
        shape: dict[str, Any] = {
            "hidden_size": 160,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 14,
        }
        config: Any = tf.PixtralVisionConfig(**shape, image_size=448)
        model: Any = PixtralVisionModel
    elif kind == "qwen3_vl":
        config, model = _config(tf.Qwen3VLConfig(), **QWEN, deepstack_visual_indexes=[]), Qwen3VLVisionModel
    else:
        config = _config(tf.Qwen2_5_VLConfig(), **QWEN, window_size=112, fullatt_block_indexes=[3])
        model = Qwen2_5_VisionTransformerPretrainedModel
    config._attn_implementation = "sdpa"
    tower: nn.Module = model(config)
    return tower


def _config(whole: Any, **options: Any) -> Any:
    """A configuration of the vision tower of a family."""
    return type(whole.vision_config)(**options)


def inputs_of(kind: str, sides: Sides) -> dict[str, Tensor]:
    if kind == "pixtral":
        (height, width), count = sides[0], len(sides)
        pixels = torch.randn(count, 3, 14 * height, 14 * width)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[14 * height, 14 * width]] * count)}
    patches = sum(height * width for height, width in sides)
    grid = torch.tensor([[1, height, width] for height, width in sides])
    return {"hidden_states": torch.randn(patches, 3 * 2 * 14 * 14), "grid_thw": grid}


if __name__ == "__main__":
    main()
