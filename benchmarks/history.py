"""What benchmarks measured before: one line of JSON per run in history.jsonl, so that `compare.py` shows what got slower.

Absolute times of different machines are not comparable; every line names the machine.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).with_name("history.jsonl")
APPENDED = Path(os.environ.get("MIXPO_BENCHMARK_HISTORY", HISTORY))
"""Where a run is written: elsewhere in tests, which run benchmarks in small."""


def emit(benchmark: str, figures: Any, *, show: bool, path: Path = APPENDED) -> None:
    """Append the figures of one run to the history, and print them as one line of JSON if `show`."""
    if show:
        print(json.dumps(figures, ensure_ascii=False), flush=True)
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "benchmark": benchmark,
        "commit": commit(),
        "machine": machine(),
        "figures": figures,
    }
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def commit() -> str:
    """The current commit, with "+" if files have changed since; empty outside a repository."""
    try:
        words = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(words, cwd=HISTORY.parent, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> str:
    """Processor, cores, and GPU if PyTorch sees one."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
