"""Memory does not grow with the data set: four times the questions, hardly more memory. The full size is in benchmarks/scale.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "scale.py"


def peak(questions: int) -> float:
    command = [sys.executable, str(BENCHMARK), "--questions", str(questions), "--json"]
    # How many arenas the allocator has, with megabytes in each, depends on which threads meet.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=800, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_questions() -> None:
    small, large = peak(256), peak(1536)
    # What grows is the index of the shards and the identities seen, some hundred bytes a question: 1,280 more are below 1 MB.
    assert large - small < 10, f"{small:.0f} MB for 256 questions, {large:.0f} MB for 1,536"
