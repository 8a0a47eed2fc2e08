"""The page of promises names tests that exist; a small size of the flips runs here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import forked
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
    arguments = ["--flips", "800", "--commands", "9", "--dir", str(tmp_path), "--json"]
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    done = forked.run(forked.script, ROOT / "benchmarks/chaos_flips.py", *arguments, environment=environment, seconds=880)
    assert done.status == 0, done.error[-3000:] + done.out[-3000:]
    figures = json.loads(done.out[done.out.index('{\n  "seed"') :])
    assert figures["must be 0"] == {"SILENT": 0, "TRACEBACK": 0}
    assert figures["flips"] > 700
