"""Formula verdicts on an idle and on a busy machine, and across kills: all must be the same.

    python benchmarks/verdicts.py [--formulas 2000] [--start 0] [--load 10] [--kills 3] [--timeout 5] [--json]

Every comparison is made by a worker: first alone; then beside `--load` busy loops; then in a process that is killed with
SIGKILL at random moments and started again with the same cache, beside the loops as well. Exit status 1 when one verdict or reason differs.
--start N leaves out the first N formulas, to run a long comparison in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixpo.verify.pool import FormulaPool

TOLERANCE = 1e-6
Pair = tuple[str, str]


def formulas(count: int, start: int = 0) -> list[Pair]:
    """Distinct pairs of an answer and a ground truth, about half of them equal; one in 500 never ends, one in 50 takes long."""
    rng, made = random.Random(0), dict[Pair, None]()
    while len(made) < start + count:
        number = len(made)
        if number % 500 == 29:
            made[f"9^{{9^{{9^{{{number}}}}}}}", "1"] = None
        elif number % 50 == 49:
            power = rng.randint(20, 60)
            made[f"(x+{number})^{{{power}}}(x-1)", f"(x-1)(x+{number})^{{{power - 1}}}(x+{number})"] = None
        else:
            made[_pair(rng)] = None
    return list(made)[start:]


def _pair(rng: random.Random) -> Pair:
    """A pair that takes a worker some milliseconds."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 9)
    equal = rng.random() < 0.5
    d = b if equal else b + c
    return rng.choice(
        [
            (f"x^2+{a + d}x+{a * d}", f"(x+{a})(x+{b})"),
            (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * d}}}"),
            (f"\\frac{{{a}x}}{{{b}}}", f"\\frac{{{a * c}x}}{{{d * c}}}"),
            (f"\\sin^2({a}x)+\\cos^2({a}x)+{b}", f"{d + 1}"),
            (f"\\{{{a},{b + 50}\\}}", f"\\{{{d + 50},{a}\\}}"),
            (f"({a},{b + 50}]", f"({a},{d + 50}]"),
            (f"\\begin{{pmatrix}}{a}&x\\\\{b}&1\\end{{pmatrix}}", f"\\begin{{pmatrix}}{a}&x\\\\{d}&1\\end{{pmatrix}}"),
            (f"\\log_{{{c}}}({c**2 * a})", f"2+\\log_{{{c}}}({a if equal else a + 1})"),
            (f"y={a}x+{b}", f"{a}x-y+{d}=0"),
            (f"e^{{{a}}}\\pi^{{{c}}}x_{b}", f"\\pi^{{{c}}}e^{{{a if equal else a + 1}}}x_{b}"),
        ]
    )


def verdicts(pairs: Sequence[Pair], timeout_s: float, cache: Path | None = None) -> tuple[list[list[str]], int]:
    """[outcome, reason] of each pair, and how many comparisons timed out."""
    with FormulaPool(timeout_s=timeout_s, workers=2, cache=cache) as pool, ThreadPoolExecutor(2) as threads:
        return [list(made) for made in threads.map(lambda pair: pool.compare(pair[0], pair[1], TOLERANCE), pairs)], pool.timeouts


@contextmanager
def busy(load: int) -> Iterator[None]:
    """So many loops beside the block. They end with this process, too."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10 ** 6))"
    loops = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(load)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def killed(count: int, start: int, timeout_s: float, kills: int, folder: Path) -> list[list[str]]:
    """The verdicts of a process that was killed `kills` times on its way and each time started again."""
    command = [sys.executable, __file__, *map(str, ("--formulas", count, "--start", start, "--timeout", timeout_s, "--child", folder))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rng, cache = random.Random(1), folder / "verdicts.sqlite"
    for kill in range(kills):
        process, known = subprocess.Popen(command, env=environment), _size(cache)
        while process.poll() is None and _size(cache) <= known + kill:  # let it get on
            time.sleep(0.05)
        time.sleep(rng.random())
        process.kill()
        process.wait()
    subprocess.run(command, env=environment, check=True)
    made: list[list[str]] = json.loads((folder / "verdicts.json").read_text())
    return made


def _size(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.parent.glob(f"{cache.name}*"))


def compare(count: int, load: int, kills: int, timeout_s: float, start: int = 0) -> dict[str, Any]:
    """Figures of a whole comparison. `different` must be 0."""
    pairs, seconds = formulas(count, start), {}
    begun = time.monotonic()
    alone, timeouts = verdicts(pairs, timeout_s)
    seconds["alone"] = time.monotonic() - begun
    with busy(load), tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        beside, timeouts_beside = verdicts(pairs, timeout_s)
        seconds["busy"] = time.monotonic() - begun
        again = killed(count, start, timeout_s, kills, Path(folder)) if kills else beside
    different = [
        {"pair": pair, "alone": one, "busy": other, "killed": third}
        for pair, one, other, third in zip(pairs, alone, beside, again, strict=True)
        if not one == other == third
    ]
    return {
        "formulas": count, "start": start, "load": load, "kills": kills, "outcomes": dict(Counter(outcome for outcome, _ in alone)),
        "timeouts": [timeouts, timeouts_beside], "different": len(different), "first_different": different[:5],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formulas", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--load", type=int, default=10, help="busy loops beside")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=5.0, help="as verify.timeout_s")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        made, _ = verdicts(formulas(args.formulas, args.start), args.timeout, args.child / "verdicts.sqlite")
        (args.child / "verdicts.json").write_text(json.dumps(made))
        return 0
    figures = compare(args.formulas, args.load, args.kills, args.timeout, args.start)
    print(json.dumps(figures, indent=2) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    return 1 if figures["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
