"""From sampled answers to preference pairs: mixpo against InternVL's released post-processing script, on the same answers.

    python benchmarks/pairs.py --peer DIR [--json]

DIR is a copy of InternVL's repository (docs/benchmarks.md says how to get it). 1,000 questions with 32 answers each, of mixed kinds, lie
in one JSONL; both sides read it, judge every answer and write pairs, in turn; imports are not counted. A disagreement is an answer
that one side calls right and the other wrong; what mixpo leaves undecided is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path

from mixpo.pairs.build import build
from mixpo.recipe import PairsTable, VerifyTable
from mixpo.records import Judged, Sampled
from mixpo.sources.build import make_question
from mixpo.types import Response
from mixpo.verify import Verifier

SAMPLES = 32
DRIVER = """
import argparse, importlib, json, random, sys, time
module = importlib.import_module("tools.reasoning_data_pipeline.mmpr_data_pipeline_correctness_postprocess")
module.args = argparse.Namespace(data_dir=sys.argv[1], save_dir=sys.argv[2], max_lines=10**6, num_pairs_per_key=15, overwrite=True,
                                 answer_fix=False, force=False, use_correctness_cache=False)
module.NUM_PAIRS_PER_KEY = 15
begun = time.perf_counter(), time.process_time()
module.main(module.args)
print("SECONDS", time.perf_counter() - begun[0], time.process_time() - begun[1])
"""

WORDS = ["red circle", "blue square", "a cat", "New York", "ice cream", "the left one", "tennis racket", "Toyota", "42nd street"]
FORMULAS = [r"2\sqrt{3}", r"\frac{\pi}{4}", r"4+\sqrt{5}", r"12\pi", r"\frac{\sqrt{2}}{2}"]


def questions(count: int) -> Iterator[tuple[str, str, list[str]]]:
    """(text, right answer, wrong answers): 35 % choice, 30 % numbers, 10 % yes or no, 22 % words, 3 % formulas."""
    rng = random.Random(0)
    for number in range(count):
        draw = rng.random()
        if draw < 0.35:
            right, others = rng.choice("ABCD"), [*"ABCD"]
        elif draw < 0.65:
            value = rng.randint(2, 900)
            right, others = str(value), [str(value + step) for step in (-1, 1, 3, 10)]
        elif draw < 0.75:
            right, others = rng.choice(["Yes", "No"]), ["Yes", "No"]
        elif draw < 0.97:
            right, others = rng.choice(WORDS), WORDS
        else:
            right, others = rng.choice(FORMULAS), FORMULAS
        yield f"Question {number}: what is it?", right, [other for other in others if other != right]


def spelled(answer: str, rng: random.Random) -> str:
    """An answer as models write it."""
    form = rng.random()
    if form < 0.6:
        return answer
    if form < 0.8:
        return f"{answer}."
    return f"**{answer}**" if form < 0.9 else answer.lower()


def write_answers(path: Path, count: int) -> int:
    """The answers as InternVL's sampling script writes them; returns how many."""
    rng, total = random.Random(1), 0
    with path.open("w") as stream:
        for text, right, wrong in questions(count):
            for index in range(SAMPLES):
                answer = spelled(right if rng.random() < 0.6 else rng.choice(wrong), rng)
                ending = f"Final answer: {answer}" if rng.random() < 0.95 else "I am not sure."
                response = f"Sample {index}.\n\nI look at the picture step by step and compare what I see.\n\n{ending}"
                row = {"image": "", "question": text, "answer": right, "response": response, "prompt_version": "en"}
                stream.write(json.dumps(row) + "\n")
                total += 1
    return total


# --- ours ----------------------------------------------------------------------------------------------------------------------


VERIFIER: list[Verifier] = []
"""In a process of ours, the verifier of this round."""


def warm() -> None:
    """A new verifier whose formula worker has done its imports; those of the peer are not counted either."""
    while VERIFIER:
        VERIFIER.pop().close()
    VERIFIER.append(Verifier(VerifyTable(workers=1)))
    question = make_question(text="?", answer="(x+1)^2")
    VERIFIER[0].verify(question, Response(question=question.id, index=0, text="Final answer: x^2+2x+1"), "final")


def ours(path: Path, out: Path, pools: list[ProcessPoolExecutor]) -> tuple[dict[tuple[str, str], str], float]:
    """Judge and pair; returns the outcome of each (question, response) and the seconds of all processors."""
    begun = time.process_time()
    with path.open("rb") as stream:
        groups = [list(group) for _, group in groupby(map(json.loads, stream), key=lambda row: row["question"])]
    parts = [pool.submit(judge_and_pair, groups[number :: len(pools)]) for number, pool in enumerate(pools)]
    outcomes: dict[tuple[str, str], str] = {}
    seconds = 0.0
    with out.open("w") as stream:
        for part in parts:
            lines, found, used = part.result()
            stream.writelines(lines)
            outcomes |= found
            seconds += used
    return outcomes, seconds + time.process_time() - begun


def judge_and_pair(groups: list[list[dict[str, str]]]) -> tuple[list[str], dict[tuple[str, str], str], float]:
    """Pairs as lines, outcomes, and seconds of the processor."""
    begun, table = time.process_time(), PairsTable()
    lines: list[str] = []
    outcomes: dict[tuple[str, str], str] = {}
    for rows in groups:
        question = make_question(text=rows[0]["question"], answer=rows[0]["answer"])
        responses = tuple(Response(question=question.id, index=index, text=row["response"]) for index, row in enumerate(rows))
        verdicts = VERIFIER[0].verify_all(question, responses, "final")
        sampled, judged = Sampled(question=question.id, responses=responses), Judged(question=question.id, verdicts=verdicts)
        for pair in build(question, sampled, judged, None, table, 0).pairs:
            row = {"question": question.text, "chosen": pair.chosen, "rejected": pair.rejected, "answer_gt": question.answer}
            lines.append(json.dumps(row) + "\n")
        outcomes.update(((question.text, r.text), v.outcome) for r, v in zip(responses, verdicts, strict=True))
    return lines, outcomes, time.process_time() - begun


# --- theirs --------------------------------------------------------------------------------------------------------------------


def theirs(peer: Path, folder: Path, out: Path) -> tuple[float, float]:
    """Seconds of the peer's script without its imports, by the clock and of the processor."""
    root = peer / "internvl_chat"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    command = [sys.executable, "-c", DRIVER, str(folder), str(out)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer's script failed:\n{done.stderr[-2000:]}")
    clock, processor = done.stdout.rsplit("SECONDS", 1)[1].split()
    return float(clock), float(processor)


def right_of(out: Path) -> set[tuple[str, str]]:
    """The (question, response) that the peer calls right."""
    with (out / "pos_items" / "mixed.jsonl").open() as stream:
        return {(row["question"], row["response"]) for row in map(json.loads, stream)}


def compare(outcomes: dict[tuple[str, str], str], right: set[tuple[str, str]]) -> tuple[Counter[str], list[str]]:
    """How often each combination of verdicts came, and an example of each disagreement."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for (question, response), outcome in outcomes.items():
        combination = f"{outcome}, peer {'right' if (question, response) in right else 'not right'}"
        counts[combination] += 1
        examples.setdefault(combination, f"{combination}: {question} ... {response[-60:]!r}")
    same = {"correct, peer right", "wrong, peer not right", "malformed, peer not right"}
    return counts, [example for combination, example in examples.items() if combination not in same]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, metavar="DIR")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2), help="processes of mixpo; the peer's script has one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    mine, other, cpu = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        total = write_answers(folder / "in" / "mixed.jsonl", args.questions)
        for number in range(args.rounds):
            for pool in POOLS[: args.workers]:
                pool.submit(warm).result()
            begun = time.perf_counter()
            outcomes, used = ours(folder / "in" / "mixed.jsonl", folder / f"ours-{number}.jsonl", POOLS[: args.workers])
            mine.append(total / (time.perf_counter() - begun))
            clock, processor = theirs(args.peer, folder / "in", folder / f"theirs-{number}")
            other.append(total / clock)
            cpu.append(processor / used)
            print(f"round {number + 1}: {mine[-1]:,.0f} and {other[-1]:,.0f} answers/s; processor time 1 : {cpu[-1]:.0f}", flush=True)
        counts, examples = compare(outcomes, right_of(folder / "theirs-0"))
    for combination, count in counts.most_common():
        print(f"{count:8,}  {combination}")
    print(*examples, sep="\n")
    disagreements = counts["correct, peer not right"] + counts["wrong, peer right"] + counts["malformed, peer right"]
    rates = statistics.median(mine), statistics.median(other)
    if args.json:
        result = {"cpu_ratio": statistics.median(cpu), "undecided": sum(n for name, n in counts.items() if name.startswith("undecided"))}
        result |= {"ratio": rates[0] / rates[1], "ours_per_s": rates[0], "peer_per_s": rates[1], "disagreements": disagreements}
        print(json.dumps(result))


if __name__ == "__main__":
    with ProcessPoolExecutor(1) as first, ProcessPoolExecutor(1) as second:
        POOLS = [first, second]
        main()
