"""Processor time of everyday commands: `mixpo --help`, `mixpo status` and `mixpo check` of 84 questions on the bundled model.

    python benchmarks/startup.py            # a table; the best of three runs of each
    python benchmarks/startup.py --json

User and system time of the process, not wall-clock time: a busy machine changes it less. The first check loads torch, transformers and
the model; a later one reads what it needs from the user's cache, which is an empty folder here.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from history import emit

LIMITS = {"help": 0.3, "status": 0.6, "check": 6.0}
"""Seconds that each should stay below on one core of a current server that does nothing else."""

RECIPE = """\
[model]
path = "mixpo:tiny"

[source]
kind = "digits"
count = 60

[[evaluate.sets]]
name = "test"
source = { kind = "digits", pool = "test", count = 24 }
"""


def seconds(arguments: list[str], repeats: int) -> float:
    """The least processor time of a command that succeeds."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mixpo", *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    """Measure the commands and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run directory for status; by default the source stage of a small one is read")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling the sources is no part of an everyday command
    with TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": folder, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(RECIPE, encoding="utf-8")
        run = args.run or Path(folder) / "run"
        if args.run is None:  # training needs pairs: the command fails after it has read the questions and planned the run
            subprocess.run([sys.executable, "-m", "mixpo", "pair", str(recipe), "--dir", str(run)], check=False, capture_output=True)
        commands = {"help": ["--help"], "status": ["status", str(run)], "check": ["check", str(recipe)]}
        for arguments in commands.values():
            seconds(arguments, 1)  # compiles the sources
        (Path(folder) / "mixpo" / "check.sqlite").unlink()
        times = {"first check": seconds(commands["check"], 1)}
        times |= {name: seconds(arguments, args.repeats) for name, arguments in commands.items()}
    for name, value in times.items():
        print(f"{name:<12} {value:6.2f} s", f"  (limit {LIMITS[name]:.1f} s)" if name in LIMITS else "")
    emit("startup", {name: round(value, 3) for name, value in times.items()}, show=args.json)


if __name__ == "__main__":
    main()
