"""The viewer on a generated run: how long the index takes, and how long pages take in Debian's Chromium.

A page's time is from the request to its `load` event, images and fonts included, with nothing in the browser's cache. The
first load of each page, when the server remembers nothing yet, is told beside the others. Exit status 1 when a median is over the limit.

python benchmarks/viewer.py [--pairs 300000] [--shard-size 64] [--rounds 5] [--run DIR] [--json]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_run import DOMAINS, questions_for, write_run
from history import emit

LIMIT = 1.0
"""Seconds that a page may take."""
PAGES = {
    "first page of pairs": "/pairs",
    "a page in the middle": "/pairs?after={middle}",
    "pairs of one origin and domain": "/pairs?origin=format&domain=sum",
    "pairs by length and outcome": "/pairs?outcome=wrong&shortest=50&longest=90",
    "a pair": "/pairs/{pair}",
    "a pair under a filter": "/pairs/{pair}?domain={domain}",
    "questions": "/questions",
    "a question": "/questions/{question}",
    "a text search": "/pairs?text=red+square",
    "a text that is nowhere": "/pairs?text=nowhere+in+the+run",
    "statistics": "/statistics",
    "audit": "/audit",
    "suspicious verdicts": "/audit?kind=suspicious",
    "a verdict to mark": "/audit/7",
}


def start(root: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The server, its address, and the seconds until it answered."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mixpo", "view", str(root), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    home = next(word for word in process.stdout.readline().split() if word.startswith("http"))
    return process, home.rstrip("/"), time.monotonic() - begun


def names(pairs: int, shard_size: int) -> dict[str, str]:
    """What stands in the addresses: a pair in the middle of the run."""
    number = questions_for(pairs) // 2 // 10 * 10 + 3
    shard, row = divmod(number, shard_size)
    return {
        "pair": f"{number:012x}0002",
        "question": f"{number:016x}",
        "domain": DOMAINS[number % 5],
        "middle": str(shard << 40 | row << 16),
    }


def processor(pid: int) -> float:
    """Processor seconds that a process has used; unlike the clock, not touched by what else the machine does."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def most_memory(pid: int) -> int:
    """Bytes of resident memory that a process held at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(home: str, known: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each page, in turn; the first ones are those of a server that remembers nothing yet."""
    from playwright.sync_api import sync_playwright

    seconds: dict[str, list[float]] = {name: [] for name in PAGES}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(rounds + 1):
            for name, path in PAGES.items():
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                page = context.new_page()
                begun = time.monotonic()
                answer = page.goto(home + path.format(**known), wait_until="load")
                seconds[name].append(time.monotonic() - begun)
                assert answer is not None
                assert answer.status == 200, name
                context.close()
        browser.close()
    return seconds


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mixpo-viewer-") as folder:
        root = (args.run or Path(folder) / "run").absolute()
        if not root.exists():
            begun = time.monotonic()
            write_run(root, questions_for(args.pairs), args.shard_size)
            print(f"a run of {args.pairs:,} pairs was written in {time.monotonic() - begun:.1f} s", flush=True)
        shutil.rmtree(root / ".view", ignore_errors=True)
        process, home, first = start(root)
        try:
            used = processor(process.pid)
            pages = measure(home, names(args.pairs, args.shard_size), args.rounds)
            used = (processor(process.pid) - used) / ((args.rounds + 1) * len(PAGES))
            memory = most_memory(process.pid)
        finally:
            process.terminate()
            process.wait()
        process, _, again = start(root)
        process.terminate()
        process.wait()
        size = (root / ".view" / "index.duckdb").stat().st_size
    print(f"index made and first answer: {first:.1f} s; opened again: {again:.1f} s; index {size / 1e6:.1f} MB")
    print(f"most resident memory of the server: {memory / 1e6:.0f} MB")
    colds = {name: values[0] for name, values in pages.items()}
    pages = {name: values[1:] for name, values in pages.items()}
    for name, values in pages.items():
        print(f"{name}: {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}), the first time {colds[name]:.3f} s")
    print(f"processor time of the server for a page and its images: {used:.3f} s; load of the machine: {os.getloadavg()[0]:.1f}")
    slowest = max(statistics.median(values) for values in pages.values())
    print(f"slowest median {slowest:.3f} s, limit {LIMIT} s: {'kept' if slowest < LIMIT else 'NOT kept'}")
    cases = [
        {"name": name, "median": statistics.median(v), "low": min(v), "high": max(v), "first": colds[name]} for name, v in pages.items()
    ]
    figures = {
        "pairs": args.pairs,
        "shard_size": args.shard_size,
        "first_open": first,
        "open_again": again,
        "index_bytes": size,
        "memory": memory,
        "server_cpu": used,
        "load": os.getloadavg()[0],
        "cases": cases,
    }
    emit("viewer", figures, show=args.json)
    return 0 if slowest < LIMIT else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="keep the generated run here, or take the one that is here")
    parser.add_argument("--json", action="store_true")
    sys.exit(main(parser.parse_args()))
