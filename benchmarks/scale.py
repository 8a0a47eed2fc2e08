"""Memory of the data side as the data grows: synthetic questions through source, sample (scripted), verify and pair in one process.

    python benchmarks/scale.py [--questions 300000] [--json]

Prints the most resident memory while each stage worked. Questions have no images; each gets 4 answers of some 270 token ids (bytes: no
model and no tokenizer is loaded).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from mixpo.engines.scripted import ScriptedEngine
from mixpo.pipeline import open_context, run_stage
from mixpo.progress import Silent
from mixpo.recipe import parse
from mixpo.stages import sample

STAGES = ("sample", "continue", "verify", "pair")


def resident_mb() -> float:
    """Resident memory of this process now, in MB; where the system does not say, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class Watching(Silent):
    """Looks at the memory whenever something is done."""

    peak = 0.0

    def advance(self, count: int, note: str = "") -> None:
        self.peak = max(self.peak, resident_mb())


def write_inputs(folder: Path, count: int) -> dict[str, object]:
    """Questions and a script; returns the recipe. All questions share the script, so that half of the answers are wrong."""
    with (folder / "questions.jsonl").open("w") as stream:
        for number in range(count):
            stream.write(json.dumps({"question": f"What is {number} + {number % 10}?", "answer": str(number % 10)}) + "\n")
    reasoning = "I add the two numbers step by step and look at the last digit. " * 4
    answers = [f"{reasoning}{number}\nFinal answer: {digit}" for number, digit in enumerate((1, 3, 5, 7))]
    (folder / "script.jsonl").write_text(json.dumps({"responses": answers}) + "\n")
    return {
        "source": {"kind": "jsonl", "path": "questions.jsonl"},
        "sample": {"engine": "scripted", "script": "script.jsonl", "n": 4, "max_new_tokens": 2048},
        "verify": {"workers": 1},
    }


def measure(count: int) -> dict[str, float]:
    """Peak memory in MB after each stage, and seconds in all."""
    begun, peaks = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as name:
        recipe = parse(write_inputs(Path(name), count), "scale")
        sample.open_engine = lambda *_unused: ScriptedEngine(Path(name) / "script.jsonl")
        for kind in STAGES:
            progress = Watching()
            run_stage(open_context(recipe, Path(name), Path(name) / "run", progress), [kind])
            peaks[kind] = progress.peak
    return {**peaks, "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.questions)
    peak = max(found[kind] for kind in STAGES)
    print(f"{args.questions:,} questions in {found['seconds']:,.0f} s; peak memory {peak:,.0f} MB")
    if args.json:
        print(json.dumps({"questions": args.questions, "peak_mb": peak, **found}))


if __name__ == "__main__":
    main()
