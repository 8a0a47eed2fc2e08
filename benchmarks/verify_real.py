"""The verifier on published answers: `extract` and `check` beside the labels of the people who published them.

    python benchmarks/verify_real.py --data DIR [--only NAME] [--json] [--dump ROWS.jsonl]

DIR holds any of these folders, each file as it was published:

- mathvision: `test.jsonl` and `outputs/*.jsonl` (id, response, correct);
- mathvista: `outputs/output_*.json` (response, answer, choices, true_false);
- m3cot: `outputs/*.jsonl` (messages, choices, answer), graded by M3CoT's own rule.

Labels are taken as they are, errors included. Outcomes are those of the pair pipeline where style and kind are "auto". The last line
of `--json` is one object over all files; `--dump` writes every answer with its label and verdict.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from history import emit

from mixpo.evaluate.benchmarks.m3cot import read_official
from mixpo.verify import check, extract

OUTCOMES = ("correct", "wrong", "undecided", "malformed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One published answer. right: the label of its authors."""

    id: str
    response: str
    gold: str
    choices: tuple[str, ...]
    right: bool


@dataclass(slots=True, kw_only=True)
class Score:
    """Counts of (label, outcome), and the milliseconds of each answer."""

    counts: Counter[tuple[bool, str]] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)

    def share(self, outcome: str, of: bool | None = None) -> float:
        """Share of the answers with this outcome (among those with label `of`)."""
        return self.count(of, outcome) / max(1, self.count(of))

    def precision(self, outcome: str) -> float:
        """Share of the verdicts "correct" or "wrong" with which the label agrees."""
        return self.count(outcome == "correct", outcome) / max(1, self.count(None, outcome))

    def count(self, right: bool | None = None, outcome: str | None = None) -> int:
        return sum(n for (label, said), n in self.counts.items() if right in (None, label) and outcome in (None, said))

    def percentile(self, share: float) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def mathvision(folder: Path) -> Iterator[tuple[str, Iterable[Answer]]]:
    rows = {row["id"]: row for row in lines(folder / "test.jsonl")}

    def answers(path: Path) -> Iterator[Answer]:
        for row in lines(path):
            asked = rows[str(row["id"])]
            yield Answer(
                id=row["id"], response=text(row["response"]), gold=asked["answer"], choices=tuple(asked["options"]),
                right=bool(row["correct"]),
            )  # fmt: skip

    for path in sorted((folder / "outputs").glob("*.jsonl")):
        yield path.stem, answers(path)


def mathvista(folder: Path) -> Iterator[tuple[str, Iterable[Answer]]]:
    def answers(path: Path) -> Iterator[Answer]:
        for name, row in json.loads(path.read_text(encoding="utf-8")).items():
            if row.get("answer") is not None:
                yield Answer(
                    id=name, response=text(row.get("response")), gold=text(row["answer"]), choices=tuple(row["choices"] or ()),
                    right=bool(row["true_false"]),
                )  # fmt: skip

    for path in sorted((folder / "outputs").glob("output_*.json")):
        yield path.stem.removeprefix("output_"), answers(path)


def m3cot(folder: Path) -> Iterator[tuple[str, Iterable[Answer]]]:
    def answers(path: Path) -> Iterator[Answer]:
        for row in lines(path):
            response = text(row["messages"][-1])
            right = read_official(response, row["choices"]) == row["answer"]
            yield Answer(id=row["id"], response=response, gold=row["answer"], choices=tuple(row["choices"]), right=right)

    for path in sorted((folder / "outputs").glob("*.jsonl")):
        yield path.stem, answers(path)


SETS: dict[str, Callable[[Path], Iterator[tuple[str, Iterable[Answer]]]]] = {
    "mathvision": mathvision,
    "mathvista": mathvista,
    "m3cot": m3cot,
}
"""From a folder to the name and answers of each file in it."""


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def text(value: object) -> str:
    return "" if value is None else str(value)


def judge(answers: Iterable[Answer], dump: TextIO | None, file: str) -> Score:
    score = Score()
    for answer in answers:
        begun = time.perf_counter()
        extracted = extract(answer.response, choices=answer.choices)
        verdict = check(extracted, answer.gold, choices=answer.choices) if extracted is not None else None
        score.milliseconds.append(1000 * (time.perf_counter() - begun))
        outcome = verdict.outcome if verdict else "malformed"
        score.counts[answer.right, outcome] += 1
        if dump:
            row = {"file": file, **asdict(answer), "extracted": extracted, "outcome": outcome, "reason": verdict.reason if verdict else ""}
            dump.write(json.dumps(row, ensure_ascii=False) + "\n")
    return score


def show(name: str, score: Score) -> str:
    total = score.count()
    right = "  ".join(f"{outcome} {score.count(True, outcome)}/{score.count(False, outcome)}" for outcome in OUTCOMES)
    return (
        f"{name}: {total} answers\n"
        f"  accuracy: published {score.count(True) / max(1, total):.2%}, ours {score.share('correct'):.2%}; "
        f"agreement of decided verdicts {agreement(score):.2%}\n"
        f"  outcome (labelled right/wrong): {right}\n"
        f"  precision: correct {score.precision('correct'):.2%}, wrong {score.precision('wrong'):.2%}; "
        f"recall of right answers {score.share('correct', True):.2%}; "
        f"undecided {score.share('undecided'):.2%}, malformed {score.share('malformed'):.2%}\n"
        f"  milliseconds: median {score.percentile(0.5):.3f}, p99 {score.percentile(0.99):.3f}, "
        f"total {sum(score.milliseconds):.0f}"
    )


def agreement(score: Score) -> float:
    decided = score.count(None, "correct") + score.count(None, "wrong")
    return (score.count(True, "correct") + score.count(False, "wrong")) / max(1, decided)


def merged(scores: Iterable[Score]) -> Score:
    total = Score()
    for score in scores:
        total.counts.update(score.counts)
        total.milliseconds += score.milliseconds
    return total


def summary(score: Score) -> dict[str, float]:
    return {
        "precision_correct": round(score.precision("correct"), 5),
        "precision_wrong": round(score.precision("wrong"), 5),
        "recall": round(score.share("correct", True), 5),
        "undecided": round(score.share("undecided"), 5),
        "malformed": round(score.share("malformed"), 5),
        "ms_p99": round(score.percentile(0.99), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mathvision/, mathvista/ or m3cot/")
    parser.add_argument("--only", choices=SETS, help="only this set")
    parser.add_argument("--json", action="store_true", help="end in one line of JSON over all files")
    parser.add_argument("--dump", type=Path, help="write every answer with its verdict to this file")
    args = parser.parse_args()
    names = [name for name in SETS if (args.data / name / "outputs").is_dir() and args.only in (None, name)]
    if not names:
        parser.error(f"{args.data}: none of the folders {', '.join(SETS)} with outputs/ in it")
    check("x", "y + 1", "formula")  # starts the worker, which is not to be timed
    dump = args.dump.open("w", encoding="utf-8") if args.dump else None
    totals: dict[str, Score] = {}
    for name in names:
        scores = []
        for file, answers in SETS[name](args.data / name):
            scores.append(judge(answers, dump, f"{name}/{file}"))
            print(show(f"{name}/{file}", scores[-1]), flush=True)
        totals[name] = merged(scores)
    for name in names:
        print(show(f"{name}, all files", totals[name]))
    if dump:
        dump.close()
    emit("verify_real", summary(merged(totals.values())), show=args.json)


if __name__ == "__main__":
    main()
