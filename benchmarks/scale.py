"""What the data side itself takes as the data grows: synthetic questions through source, sample (scripted), verify and pair in one process.

    python benchmarks/scale.py [--questions 300000] [--json]

Prints for each stage the most resident memory, and the processor time and the disk space of a million answers. Questions have no images;
each gets 4 answers of some 270 token ids (bytes: no model and no tokenizer is loaded).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from history import emit

from mixpo.engines.scripted import ScriptedEngine
from mixpo.pipeline import open_context, run_stage
from mixpo.progress import Silent
from mixpo.recipe import parse
from mixpo.stages import engine

ANSWERS = 4
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
        "sample": {"engine": "scripted", "script": "script.jsonl", "n": ANSWERS, "max_new_tokens": 2048},
        "verify": {"workers": 1},
    }


def measure(count: int) -> dict[str, dict[str, float]]:
    """For each stage its peak memory in MB, its processor's seconds and its gigabytes of a million answers."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        recipe, run = parse(write_inputs(Path(name), count), "scale"), Path(name) / "run"
        vars(engine)["create"] = lambda *_unused, **_settings: ScriptedEngine(Path(name) / "script.jsonl")
        for kind in STAGES:
            progress, begun, before = Watching(), time.process_time(), disk_bytes(run)
            run_stage(open_context(recipe, Path(name), run, progress), [kind])
            seconds, grown = time.process_time() - begun, disk_bytes(run) - before
            per_million = 1e6 / (count * ANSWERS)
            found[kind] = {
                "peak_mb": progress.peak,
                "cpu_s_per_million": seconds * per_million,
                "gb_per_million": grown * per_million / 1e9,
            }
    return found


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.questions)
    peak = max(stage["peak_mb"] for stage in found.values())
    for kind, stage in found.items():
        print(f"{kind}: {stage['cpu_s_per_million']:,.0f} s of a processor and {stage['gb_per_million']:.2f} GB for a million answers")
    print(f"{args.questions:,} questions; peak memory {peak:,.0f} MB")
    emit("scale", {"questions": args.questions, "peak_mb": peak, "stages": found}, show=args.json)


if __name__ == "__main__":
    main()
