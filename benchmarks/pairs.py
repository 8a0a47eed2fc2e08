"""From sampled answers to preference pairs: mixpo against InternVL's released post-processing script, on the same answers.

    python benchmarks/pairs.py --peer DIR [--json]

DIR is a copy of InternVL's repository (docs/benchmarks.md says how to get it). 1,000 questions with 32 answers each, of mixed kinds, lie
in JSONL files of 50 questions, as a sampler writes them. Both sides read them, judge every answer and write pairs, in turn; imports are not
counted. A disagreement is an answer that one side calls right and the other wrong; what mixpo leaves undecided is counted apart.
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
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import orjson
from history import emit

from mixpo.pairs.build import build
from mixpo.recipe import PairsTable, VerifyTable
from mixpo.records import Judged, Sampled
from mixpo.sources.build import make_question
from mixpo.types import Response
from mixpo.verify import Verifier

T = TypeVar("T")
SAMPLES = 32
PER_FILE = 50
RIGHT = 0.5
"""Share of right answers: about the accuracy of the paper's base model on M3CoT and MathVista (59 and 58 %), sampling being less sure."""
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
UNITS = ["", "", "", " cm", "%", "°"]
CONSTANTS = [r"2\sqrt{3}", r"\frac{\pi}{4}", r"4+\sqrt{5}", r"12\pi", r"\frac{\sqrt{2}}{2}", r"6\sqrt{2}", r"\frac{5}{13}", r"100-25\pi"]
EXPRESSIONS = ["2x+3", "x^2-4", r"\frac{x}{2}", r"a\sqrt{3}", r"\frac{1}{2}bh", "3x-1", "x^2+4", "4a^2"]


def a_choice(rng: random.Random) -> tuple[str, list[str]]:
    return rng.choice("ABCD"), [*"ABCD"]


def a_number(rng: random.Random) -> tuple[str, list[str]]:
    value, unit = rng.randint(2, 900), rng.choice(UNITS)
    return f"{value}{unit}", [f"{value + step}{unit}" for step in (-1, 1, 3, 10)]


def a_word(rng: random.Random) -> tuple[str, list[str]]:
    return rng.choice(WORDS), WORDS


def yes_or_no(rng: random.Random) -> tuple[str, list[str]]:
    return rng.choice(["Yes", "No"]), ["Yes", "No"]


def a_constant(rng: random.Random) -> tuple[str, list[str]]:
    return rng.choice(CONSTANTS), rng.sample(CONSTANTS, 5)


def an_expression(rng: random.Random) -> tuple[str, list[str]]:
    return rng.choice(EXPRESSIONS), rng.sample(EXPRESSIONS, 5)


KINDS = {a_choice: 25, a_number: 30, a_word: 20, yes_or_no: 10, a_constant: 10, an_expression: 5}
"""Shares in percent. Of the paper's sources with known answers about a quarter are mathematics; half of their answers are formulas here."""


def questions(count: int) -> Iterator[tuple[str, str, list[str]]]:
    """(text, right answer, wrong answers)."""
    rng = random.Random(0)
    for number in range(count):
        (make,) = rng.choices([*KINDS], [*KINDS.values()])
        right, others = make(rng)
        yield f"Question {number}: what is it?", right, [other for other in others if other != right]


def spelled(answer: str, rng: random.Random) -> str:
    """An answer as models write it: a letter often in brackets, mathematics often between dollars."""
    if answer in "ABCD":
        forms = [answer, f"({answer})", f"{answer}.", f"**{answer}**"]
    elif any(character.isdigit() or character == "\\" for character in answer):
        forms = [answer, answer, f"{answer}.", f"**{answer}**", f"${answer}$", f"${answer}$"]
    else:
        forms = [answer, answer, f"{answer}.", f"**{answer}**", answer.lower()]
    return rng.choice(forms)


def write_answers(folder: Path, count: int) -> int:
    """The answers as InternVL's sampling script writes them; returns how many."""
    rng, total = random.Random(1), 0
    for number, part in enumerate(batched(questions(count), PER_FILE)):
        with (folder / f"mixed-{number:03}.jsonl").open("w") as stream:
            for text, right, wrong in part:
                for index in range(SAMPLES):
                    answer = spelled(right if rng.random() < RIGHT else rng.choice(wrong), rng)
                    ending = f"Final answer: {answer}" if rng.random() < 0.95 else "I am not sure."
                    response = f"Sample {index}.\n\nI look at the picture step by step and compare what I see.\n\n{ending}"
                    row = {"image": "", "question": text, "answer": right, "response": response, "prompt_version": "en"}
                    stream.write(json.dumps(row) + "\n")
                    total += 1
    return total


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := [*islice(iterator, size)]:
        yield batch


# --- ours ----------------------------------------------------------------------------------------------------------------------


VERIFIER: list[Verifier] = []
"""In a process of ours, the verifier of this round."""
OUTCOMES: dict[tuple[str, str], str] = {}
"""In a process of ours, the outcome of each (question, response) of this round."""


def warm() -> None:
    """A new verifier whose formula worker has done its imports; those of the peer are not counted either."""
    OUTCOMES.clear()
    while VERIFIER:
        VERIFIER.pop().close()
    VERIFIER.append(Verifier(VerifyTable(workers=1)))
    question = make_question(text="?", answer="(x+1)^2")
    VERIFIER[0].verify(question, Response(question=question.id, index=0, text="Final answer: x^2+2x+1"), "final")


def ours(folder: Path, out: Path, pools: list[ProcessPoolExecutor]) -> float:
    """Judge and pair; returns the seconds of all processors."""
    out.mkdir()
    files = sorted(folder.iterdir())
    parts = [pool.submit(judge_and_pair, files[number :: len(pools)], out) for number, pool in enumerate(pools)]
    return sum(part.result() for part in parts)


def judge_and_pair(files: list[Path], out: Path) -> float:
    """A file of pairs for each file of answers; returns the seconds of the processor."""
    begun, table = time.process_time(), PairsTable()
    for file in files:
        with file.open("rb") as answers, (out / file.name).open("wb") as pairs:
            for _, rows in groupby(map(orjson.loads, answers), key=itemgetter("question")):
                pairs.writelines(pairs_of([*rows], table))
    return time.process_time() - begun


def pairs_of(rows: list[dict[str, str]], table: PairsTable) -> Iterator[bytes]:
    """The pairs of one question, as lines."""
    question = make_question(text=rows[0]["question"], answer=rows[0]["answer"])
    responses = tuple(Response(question=question.id, index=index, text=row["response"]) for index, row in enumerate(rows))
    verdicts = VERIFIER[0].verify_all(question, responses, "final")
    OUTCOMES.update(((question.text, r.text), v.outcome) for r, v in zip(responses, verdicts, strict=True))
    sampled, judged = Sampled(question=question.id, responses=responses), Judged(question=question.id, verdicts=verdicts)
    for pair in build(question, sampled, judged, None, table, 0).pairs:
        row = {"question": question.text, "chosen": pair.chosen, "rejected": pair.rejected, "answer_gt": question.answer}
        yield orjson.dumps(row) + b"\n"


def outcomes() -> dict[tuple[str, str], str]:
    return OUTCOMES


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
    files = sorted((out / "pos_items").iterdir())
    return {(row["question"], row["response"]) for file in files for row in map(orjson.loads, file.read_bytes().splitlines())}


def compare(verdicts: dict[tuple[str, str], str], right: set[tuple[str, str]], golds: dict[str, str]) -> tuple[Counter[str], list[str]]:
    """How often each combination of verdicts came, and for those that differ how often by what wraps the answer, with an example."""
    counts: Counter[str] = Counter()
    wrapped: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for (question, response), outcome in verdicts.items():
        combination = f"{outcome}, peer {'right' if (question, response) in right else 'not right'}"
        counts[combination] += 1
        answer = response.rpartition("Final answer: ")[2]
        kind = combination, "in bold" if answer[:1] == "*" else "in dollars" if answer[:1] == "$" else "bare"
        wrapped[kind] += 1
        examples.setdefault(kind, f"{answer} where {golds[question]} is right")
    same = {"correct, peer right", "wrong, peer not right", "malformed, peer not right"}
    return counts, [f"{count:8,}  {kind[0]}, {kind[1]}: {examples[kind]}" for kind, count in wrapped.most_common() if kind[0] not in same]


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
        total = write_answers(folder / "in", args.questions)
        for number in range(args.rounds):
            for pool in POOLS[: args.workers]:
                pool.submit(warm).result()
            begun = time.perf_counter()
            used = ours(folder / "in", folder / f"ours-{number}", POOLS[: args.workers])
            mine.append(total / (time.perf_counter() - begun))
            clock, processor = theirs(args.peer, folder / "in", folder / f"theirs-{number}")
            other.append(total / clock)
            cpu.append(processor / used)
            print(f"round {number + 1}: {mine[-1]:,.0f} and {other[-1]:,.0f} answers/s; processor time 1 : {cpu[-1]:.0f}", flush=True)
        found = [pool.submit(outcomes).result() for pool in POOLS[: args.workers]]
        counts, examples = compare(
            dict(ChainMap(*found)), right_of(folder / "theirs-0"), {text: right for text, right, _ in questions(args.questions)}
        )
    for combination, count in counts.most_common():
        print(f"{count:8,}  {combination}")
    print(*examples, sep="\n")
    disagreements = counts["correct, peer not right"] + counts["wrong, peer right"] + counts["malformed, peer right"]
    rates = statistics.median(mine), statistics.median(other)
    undecided = sum(n for name, n in counts.items() if name.startswith("undecided"))
    result = {"cpu_ratio": statistics.median(cpu), "undecided": undecided}
    result |= {"ratio": rates[0] / rates[1], "ours_per_s": rates[0], "peer_per_s": rates[1], "disagreements": disagreements}
    emit("pairs", result, show=args.json)


if __name__ == "__main__":
    with ProcessPoolExecutor(1) as first, ProcessPoolExecutor(1) as second:
        POOLS = [first, second]
        main()
