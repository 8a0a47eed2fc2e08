"""Sampling 8 answers a question: mixpo's engine against `generate(num_return_sequences=8)` on the bundled model, in turn.

python benchmarks/sampling.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mixpo.engines import create
from mixpo.engines.base import Request, SamplingParams
from mixpo.images import open_image
from mixpo.prompts import PROMPTS
from mixpo.recipe import DigitsSource, ImageTable, ModelTable
from mixpo.sources.digits import read
from mixpo.types import Question
from mixpo.vlm.load import Vlm, load
from mixpo.vlm.prompt import batch_inputs, encode

N, LONGEST = 8, 64


def ours(vlm: Vlm, questions: Sequence[Question]) -> int:
    """Tokens written by the engine."""
    engine = create("transformers", vlm=vlm, image=ImageTable(), batch_size=len(questions), script=None)
    requests = [
        Request(key=q.id, prompt=PROMPTS["brief"].render(q.text), images=q.images, seeds=tuple(range(N)), indices=tuple(range(N)))
        for q in questions
    ]
    params = SamplingParams(temperature=1.0, max_new_tokens=LONGEST)
    return sum(len(response.token_ids) for sampled in engine.sample(requests, params) for response in sampled.responses)


def theirs(vlm: Vlm, questions: Sequence[Question]) -> int:
    """Tokens written by `generate`, up to and with the end of turn."""
    prompts = [encode(vlm, PROMPTS["brief"].render(q.text), [open_image(i, ImageTable()) for i in q.images]) for q in questions]
    inputs: dict[str, Any] = batch_inputs(vlm, prompts, "left")
    inputs.pop("position_ids", None)
    with torch.inference_mode():
        rows = vlm.model.generate(
            **inputs, max_new_tokens=LONGEST, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=N
        )
    written = rows[:, inputs["input_ids"].shape[1] :]
    ended = torch.isin(written, torch.tensor(vlm.end_ids))
    return int(torch.where(ended.any(1), ended.float().argmax(1) + 1, written.shape[1]).sum())


def timed(work: Callable[[Vlm, Sequence[Question]], int], vlm: Vlm, questions: Sequence[Question]) -> float:
    """CPU seconds for each token."""
    begun = time.process_time()
    tokens = work(vlm, questions)
    return (time.process_time() - begun) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vlm = load(ModelTable(path="mixpo:tiny"), Path("."))
    with tempfile.TemporaryDirectory() as folder:
        questions = list(read(DigitsSource(kind="digits", pool="validation", count=args.questions), Path(folder)))
        for work in (ours, theirs):
            work(vlm, questions)
        pairs = [(timed(ours, vlm, questions), timed(theirs, vlm, questions)) for _ in range(args.rounds)]
    ratio = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
    spread = [b / a for a, b in pairs]
    print(f"generate / mixpo, CPU time per token: {ratio:.2f} (rounds {min(spread):.2f} to {max(spread):.2f})")
    if args.json:
        print(json.dumps({"cases": [{"name": "bundled model, 45-token prompts, 8 answers", "ratio": ratio}]}))


if __name__ == "__main__":
    main()
