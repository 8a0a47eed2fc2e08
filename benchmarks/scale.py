"""Memory of the data side as the data grows: synthetic questions through source, sample (scripted), verify and pair in one process.

    python benchmarks/scale.py [--questions 300000] [--json]

Prints the peak of resident memory after each stage. Questions have no images; each gets 4 answers with token ids.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from mixpo.pipeline import open_context, run_stage
from mixpo.progress import Silent
from mixpo.recipe import parse

STAGES = (("sample",), ("continue",), ("verify",), ("pair",))


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


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
        for kinds in STAGES:
            run_stage(open_context(recipe, Path(name), Path(name) / "run", Silent()), kinds)
            peaks[kinds[0]] = peak_mb()
    return {**peaks, "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.questions)
    print(f"{args.questions:,} questions in {found['seconds']:,.0f} s; peak memory {max(found[kinds[0]] for kinds in STAGES):,.0f} MB")
    if args.json:
        print(json.dumps({"questions": args.questions, "peak_mb": peak_mb(), **found}))


if __name__ == "__main__":
    main()
