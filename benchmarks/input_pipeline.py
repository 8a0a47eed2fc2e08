"""The share of its time that training waits for inputs, with a model that does nothing but take a fixed time for each micro-batch.

    python benchmarks/input_pipeline.py [--real] [--json]

Preprocessing a micro-batch takes as long as the model does. By default both sleep, so that other work on the machine changes little: this
measures the order of things, not the speed of a processor. A third of preprocessing is decoding, of which several threads do several at
a time; the rest is the model's processor, of which one works at a time. --real decodes JPEG files of 6 megapixels, and scales and
normalises them to 13 tiles of 448 pixels; the model then takes as long as that took when it was measured before. Target: under 3 %
with two threads.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from history import emit
from PIL import Image
from synthetic import IMAGE, SIZES, model_of

from mixpo.prefetch import workers
from mixpo.recipe import ImageTable
from mixpo.train.group_data import NO_GROUPS, in_memory
from mixpo.train.inputs import StepInputs
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.schedule import Schedule
from mixpo.types import Group, Question
from mixpo.vlm.prompt import EncodedPrompt

SHARE = 0.03
"""Target."""
PROMPTS, STEPS, TILES = 4, 10, 13
"""Prompts of a step, which are one micro-batch each; steps; tiles of an image."""
SECONDS = 0.25
"""Of preprocessing one prompt, where it sleeps."""


class Preparing(PromptCache):
    """Prompts whose preprocessing sleeps, or decodes a file."""

    def __init__(self, vlm: Any, image: Path | None) -> None:
        super().__init__(vlm, ImageTable())
        self.image, self.processor = image, Lock()

    def _encode(self, question: Question, prompt: str) -> EncodedPrompt:
        if self.image is None:
            time.sleep(SECONDS / 3)
            with self.processor:
                time.sleep(SECONDS * 2 / 3)
        else:
            decoded = Image.open(self.image).convert("RGB")
            with self.processor:
                side = decoded.resize((448 * TILES, 448), Image.Resampling.BICUBIC)
                assert (np.asarray(side, np.float32) / 127.5 - 1).shape[0] == 448
        size = SIZES["tiny"]
        ids = torch.tensor([5] * 4 + [IMAGE] * size.image_tokens + [6] * 4)
        return EncodedPrompt(ids, {"pixel_values": torch.zeros(1, 3, size.side, size.side)})


def session_of(image: Path | None) -> Any:
    """What `StepInputs` needs of a session."""
    vlm, prompt_tokens = model_of(SIZES["tiny"]), 8 + SIZES["tiny"].image_tokens
    groups = in_memory(
        [
            Group(
                question=Question(id=f"q{number}", text=""), prompt="", responses=((7, number % 99, 2), (8, 2)), pairs=((0, 1),),
                prompt_tokens=prompt_tokens,
            )
            for number in range(PROMPTS * STEPS)
        ]
    )  # fmt: skip
    table = SimpleNamespace(tokens_per_batch=prompt_tokens + 6, replay=None)
    return SimpleNamespace(
        job=SimpleNamespace(vlm=vlm, groups=groups, table=table, replay=NO_GROUPS),
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
        prompts=Preparing(vlm, image),
        layout="tree",
        schedule=Schedule(pair_counts=groups.sizes["pairs"], batch_size=PROMPTS, epochs=1, seed=0),
        state=SimpleNamespace(step=0),
    )


def waiting(session: Any, seconds: float) -> dict[str, float]:
    """The figures of one run in which the model takes so many seconds for a micro-batch. first: wait for the first one."""
    first, count = 0.0, 0
    with StepInputs(session) as inputs:
        for plan in inputs:
            for number, chunks in enumerate(plan.batches):
                inputs.batch(plan, number, chunks)
                count += 1
                if count == 1:
                    first, begun = inputs.waited, time.monotonic()
                time.sleep(seconds)
        total = time.monotonic() - begun
    return {"seconds": total, "micro_batches": count, "first": first, "share": (inputs.waited - first) / total}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with TemporaryDirectory() as folder:
        image, each = None, SECONDS
        if args.real:
            image = Path(folder) / "image.jpg"
            Image.effect_noise((3000, 2000), 60).convert("RGB").save(image, quality=90)
            prompts, begun = session_of(image).prompts, time.monotonic()
            for number in range(8):
                prompts.of(Question(id=f"w{number}", text=""), "")
            each = (time.monotonic() - begun) / 8
        figures = {"each": each, "threads": workers(), **waiting(session_of(image), each)}
    print(
        f"{figures['micro_batches']} micro-batches; preprocessing takes {1000 * each:.0f} ms each, as the model does; {workers()} threads"
    )
    print(f"waited {1000 * figures['first']:.0f} ms for the first one")
    print(
        f"then {figures['share']:.1%} of {figures['seconds']:.1f} s, target {SHARE:.0%}: {'pass' if figures['share'] < SHARE else 'FAIL'}"
    )
    emit("input_pipeline", {name: round(value, 4) for name, value in figures.items()}, show=args.json)


if __name__ == "__main__":
    main()
