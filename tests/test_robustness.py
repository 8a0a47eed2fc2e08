"""The page of promises names tests that exist; a small size of the flips runs here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "robustness.md"


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\|.*\| `(tests/[\w/]+\.py)::(\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_every_benchmark_of_the_page_exists() -> None:
    for path in re.findall(r"python (benchmarks/\w+\.py)", PAGE.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_flip_is_silent(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        str(ROOT / "benchmarks/chaos_flips.py"),
        "--flips",
        "800",
        "--commands",
        "9",
        "--dir",
        str(tmp_path),
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    figures = json.loads(done.stdout[done.stdout.index('{\n  "seed"') :])
    assert figures["must be 0"] == {"SILENT": 0, "TRACEBACK": 0}
    assert figures["flips"] > 700
