"""Sampling 8 answers a question: mixpo's engine against `generate(num_return_sequences=8)`, in turn, CPU time per token.

Two cases: the bundled model with its pictures (45 prompt tokens), and a random InternVL of some 10 M parameters with 274 prompt tokens
whose answers end at very different lengths (both sides stop at the same tokens).

python benchmarks/sampling.py [--json]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from history import emit
from transformers import InternVLForConditionalGeneration

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.transformers import TransformersEngine
from mixpo.images import open_image
from mixpo.prompts import PROMPTS
from mixpo.recipe import DigitsSource, ImageTable, ModelTable
from mixpo.sources.digits import WORLD
from mixpo.types import Question
from mixpo.vlm.inputs import batch_inputs
from mixpo.vlm.load import Vlm, load
from mixpo.vlm.prompt import encode
from mixpo.vlm.tokenizer_only import load_tokenizer_only

N = 8


@dataclass(frozen=True)
class Case:
    """A model, questions to it as (prompt, question), and the most tokens of an answer."""

    name: str
    vlm: Vlm
    asked: Sequence[tuple[str, Question]]
    longest: int


def ours(case: Case) -> list[int]:
    """Lengths of the answers that the engine writes."""
    engine = TransformersEngine(case.vlm, ImageTable(), len(case.asked))
    requests = [
        Request(key=q.id, prompt=prompt, images=q.images, seeds=tuple(range(number * N, number * N + N)), indices=tuple(range(N)))
        for number, (prompt, q) in enumerate(case.asked)
    ]
    params = SamplingParams(temperature=1.0, max_new_tokens=case.longest)
    return [len(response.token_ids) for sampled in engine.sample(requests, params) for response in sampled.responses]


def theirs(case: Case) -> list[int]:
    """Lengths of the answers that `generate` writes, up to and with the end of turn."""
    vlm = case.vlm
    prompts = [encode(vlm, prompt, [open_image(image, ImageTable()) for image in q.images]) for prompt, q in case.asked]
    inputs: dict[str, Any] = batch_inputs(vlm, prompts, "left")
    inputs.pop("position_ids", None)
    ends = list(vlm.end_ids)
    with torch.inference_mode():
        rows = vlm.model.generate(
            **inputs,
            max_new_tokens=case.longest,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=N,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    written = rows[:, inputs["input_ids"].shape[1] :]
    ended = torch.isin(written, torch.tensor(ends))
    return torch.where(ended.any(1), ended.float().argmax(1) + 1, written.shape[1]).tolist()


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Ratio of the median CPU seconds per token, taken in turn, and what the answers were like."""
    ours(case), theirs(case)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    lengths: list[int] = []
    for _ in range(rounds):
        for name, work in (("ours", ours), ("theirs", theirs)):
            begun = time.process_time()
            written = work(case)
            seconds[name].append((time.process_time() - begun) / sum(written))
            lengths += written
    each = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    tokens = len(encode(case.vlm, case.asked[0][0], [open_image(i, ImageTable()) for i in case.asked[0][1].images]))
    return {
        "name": case.name,
        "ratio": statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"]),
        "lowest": min(each),
        "highest": max(each),
        "prompt_tokens": tokens,
        "median_length": statistics.median(lengths),
        "longest": max(lengths),
    }


def bundled(folder: Path, questions: int) -> Case:
    """The bundled model and the demo's questions."""
    vlm = load(ModelTable(path="mixpo:tiny", device="cpu"), Path("."))
    found = list(WORLD.read(DigitsSource(kind="digits", pool="validation", count=questions), folder))
    return Case("bundled model, 45 prompt tokens", vlm, [(PROMPTS["brief"].render(q.text), q) for q in found], 64)


def long_prompt(folder: Path, questions: int) -> Case:
    """The bundled tokenizer with a larger random model and longer questions. One token in 33 ends an answer."""
    words = load_tokenizer_only(ModelTable(path="mixpo:tiny"), Path("."))
    config = copy.deepcopy(words.model.config)
    config.text_config.update({"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6})
    config.text_config.update({"num_key_value_heads": 6, "head_dim": 64, "layer_types": ["full_attention"] * 6})
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    ends = tuple(range(100, 100 + config.text_config.vocab_size // 33))
    vlm = Vlm(model, words.processor, words.device, "", "", ends)
    found = WORLD.read(DigitsSource(kind="digits", pool="validation", count=questions), folder)
    return Case("random model, 274 prompt tokens, varied lengths", vlm, [(_lengthened(vlm, q, 274), q) for q in found], 128)


def _lengthened(vlm: Vlm, question: Question, tokens: int) -> str:
    images = [open_image(image, ImageTable()) for image in question.images]
    prompt = PROMPTS["brief"].render(question.text)
    while len(encode(vlm, prompt, images)) < tokens:
        prompt += " 3"
    return prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=0, help="questions of each case; by default 48 and 6")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = [bundled(Path(folder), args.questions or 48), long_prompt(Path(folder), args.questions or 6)]
        results = [measure(case, args.rounds) for case in cases]
    for r in results:
        print(f"{r['name']}: generate / mixpo = {r['ratio']:.2f} (rounds {r['lowest']:.2f} to {r['highest']:.2f})", end="")
        print(f"; {r['prompt_tokens']} prompt tokens, answers of {r['median_length']:g} tokens in the median, up to {r['longest']}")
    emit("sampling", {"cases": results}, show=args.json)


if __name__ == "__main__":
    main()
