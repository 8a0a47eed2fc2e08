"""Verdicts on number, choice, yes/no and text answers: `mixpo.verify.check` against math-verify on the same answers, in turn.

    python benchmarks/verify.py [--json]

math-verify is made for formulas; it is what people use for all of these all the same. Both run in one process here.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from history import emit
from math_verify import parse, verify

from mixpo.verify import check

Case = tuple[str, str, str]


def cases(count: int) -> list[Case]:
    """(predicted, gold, kind), a third of them wrong."""
    rng = random.Random(0)
    made: list[Case] = []
    for _ in range(count):
        number, other = rng.randint(0, 999), rng.randint(0, 999)
        gold = rng.choice([(str(number), "number"), (rng.choice("ABCD"), "choice"), (rng.choice(["yes", "no"]), "yes_no")])
        predicted = gold[0] if rng.random() < 0.67 else {"number": str(other), "choice": "ABCD"[other % 4], "yes_no": "no"}[gold[1]]
        made.append((predicted, *gold))
    return made


def ours(rows: list[Case]) -> list[bool]:
    return [check(predicted, gold, kind).outcome == "correct" for predicted, gold, kind in rows]


def theirs(rows: list[Case]) -> list[bool]:
    return [bool(verify(parse(gold), parse(predicted))) for predicted, gold, _ in rows]


def rate(work: Callable[[list[Case]], list[bool]], rows: list[Case]) -> float:
    """Answers in each CPU second."""
    begun = time.process_time()
    work(rows)
    return len(rows) / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = cases(args.rows)
    numbers = [row for row in rows if row[2] == "number"]
    agree = sum(a == b for a, b in zip(ours(numbers), theirs(numbers), strict=True)) / len(numbers)
    ratios = sorted(rate(ours, rows) / rate(theirs, rows) for _ in range(args.rounds))
    ratio = statistics.median(ratios)
    print(
        f"mixpo / math-verify, answers per CPU second: {ratio:.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f} in {args.rounds} rounds); "
        f"same verdict on {agree:.0%} of the number answers"
    )
    emit("verify", {"ratio": ratio, "agree": agree}, show=args.json)


if __name__ == "__main__":
    main()
