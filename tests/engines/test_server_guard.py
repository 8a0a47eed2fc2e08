"""A server that mixpo started ends with it, however that ends: nothing is left that holds a port or memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixpo.engines.openai import server_guard

SLEEPER = "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
FAMILY = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " + SLEEPER
PARENT = """
import os, sys, time
from pathlib import Path
from mixpo.engines.openai import server_guard
from mixpo.engines.openai.server import ServerProcess
server_guard.__file__ = sys.argv[3]
started = ServerProcess([sys.executable, "-c", sys.argv[1]], "http://127.0.0.1:1/v1", Path(sys.argv[2]))
if len(sys.argv) > 4 and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


class Family:
    """A parent that has started a server through the guard. grace: seconds after which the guard kills a server that does not end."""

    def __init__(self, log: Path, server: str, *more: str, grace: float = 3600.0) -> None:
        text, of_guard = Path(server_guard.__file__).read_text(encoding="utf-8"), f"GRACE_SECONDS = {server_guard.GRACE_SECONDS}"
        assert of_guard in text
        guard = log.with_suffix(".py")
        guard.write_text(text.replace(of_guard, f"GRACE_SECONDS = {grace}"), encoding="utf-8")
        command = [sys.executable, "-c", PARENT, server, str(log), str(guard), *more]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.server, self.guard = map(int, until(lambda: log.read_text().split() if log.read_text().endswith("\n") else ()))


@pytest.fixture
def families() -> Iterator[list[Family]]:
    made: list[Family] = []
    yield made
    for family in made:
        family.parent.kill()
        family.parent.wait()
        for pid in (family.server, family.guard):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(check: Any, seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := check():
                return value
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def gone(family: Family) -> bool:
    """Before the guard's grace is over, and with the guard."""
    return bool(until(lambda: not alive(family.server) and not alive(family.guard)))


def test_it_ends_when_mixpo_is_killed(tmp_path: Path, families: list[Family]) -> None:
    families.append(family := Family(tmp_path / "log", SLEEPER))
    assert alive(family.server)
    family.parent.kill()
    assert gone(family)


def test_what_it_has_started_itself_ends_with_it(tmp_path: Path, families: list[Family]) -> None:
    families.append(family := Family(tmp_path / "log", FAMILY))
    (child,) = map(int, Path(f"/proc/{family.server}/task/{family.server}/children").read_text().split())
    family.parent.kill()
    assert gone(family)
    assert until(lambda: not alive(child))


def test_it_ends_although_a_child_of_mixpo_holds_the_pipe(tmp_path: Path, families: list[Family]) -> None:
    """As workers do that were forked while the server ran."""
    families.append(family := Family(tmp_path / "log", SLEEPER, "fork"))
    assert family.parent.stdout is not None
    fork = int(family.parent.stdout.readline())
    family.parent.kill()
    try:
        assert gone(family)
        assert alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_it_ends_when_the_guard_itself_is_killed(tmp_path: Path, families: list[Family]) -> None:
    families.append(family := Family(tmp_path / "log", STUBBORN))
    os.kill(family.guard, signal.SIGKILL)
    assert until(lambda: not alive(family.server))


def test_ending_the_guard_takes_no_longer_than_ending_the_server(tmp_path: Path, families: list[Family]) -> None:
    families.append(family := Family(tmp_path / "log", SLEEPER))
    os.kill(family.guard, signal.SIGTERM)
    assert gone(family)


def test_one_that_will_not_end_is_killed(tmp_path: Path, families: list[Family]) -> None:
    families.append(family := Family(tmp_path / "log", STUBBORN, grace=0.5))
    family.parent.kill()
    assert gone(family)
