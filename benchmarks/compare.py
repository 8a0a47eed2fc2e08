"""What got slower or larger: the last run of each benchmark against the one before it on the same machine.

python -m benchmarks.compare                # every benchmark with two runs or more
python -m benchmarks.compare --above 0.1    # only figures that changed by more than 10 %
python -m benchmarks.compare --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).with_name("history.jsonl")


@dataclass(frozen=True)
class Change:
    """One figure in two runs. ratio: after / before."""

    benchmark: str
    figure: str
    before: float
    after: float
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--above", type=float, default=0.05, help="smallest relative change to show (default 0.05)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.history.read_text(encoding="utf-8").splitlines()] if args.history.exists() else []
    found = [change for change in changes(lines) if abs(change.ratio - 1) > args.above]
    if args.json:
        print(json.dumps([asdict(change) for change in found]))
        return
    for change in sorted(found, key=lambda change: -abs(change.ratio - 1)):
        print(f"{change.benchmark:<14} {change.figure:<50} {change.before:>12.4g} -> {change.after:>12.4g}   x{change.ratio:.2f}")
    if not found:
        print(f"no figure changed by more than {args.above:.0%} between the last two runs of a benchmark on one machine")


def changes(lines: list[dict[str, Any]]) -> Iterator[Change]:
    """The figures of the last two runs of each (benchmark, machine), in the order of the history."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in lines:
        runs.setdefault((line["benchmark"], line["machine"]), []).append(dict(numbers(line["figures"])))
    for (benchmark, _), figures in runs.items():
        if len(figures) < 2:
            continue
        before, after = figures[-2:]
        for name, value in after.items():
            if before.get(name):
                yield Change(benchmark, name, before[name], value, value / before[name])


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, each with its path; a list's entries are called by their `name` or `case` if they have one."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            label = str(inner.get("name") or inner.get("case") or index) if isinstance(inner, dict) else str(index)
            yield from numbers(inner, f"{name}.{label}" if name else label)


if __name__ == "__main__":
    main()
