"""Starts the chat endpoint of tests/evaluate/judge_server.py in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def serving(mode: str, folder: Path) -> Iterator[str]:
    """The address of an endpoint in `mode`; it writes what it is asked to `folder`."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "evaluate" / "judge_server.py"), mode, str(folder)])
    try:
        limit = time.monotonic() + 120
        while not (folder / "port").exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        yield f"http://127.0.0.1:{(folder / 'port').read_text()}/v1"
    finally:
        process.kill()
        process.wait()


def asked(folder: Path) -> list[dict[str, Any]]:
    """What the endpoint was asked, in order."""
    log = folder / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
