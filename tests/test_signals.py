"""Ctrl+C and SIGTERM end a command with one sentence, whenever they come and however often. In processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mixpo

START = """
import os, signal, sys
from mixpo.__main__ import main

def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)
"""
WHILE_LOADING = """
class Presses:
    def find_spec(self, name, *_):
        if name == "mixpo.cli.runs":
            press()

sys.meta_path.insert(0, Presses())
"""
AT_WORK = """
import mixpo.commands.doctor

def examine(folder):
    try:
        press({signal})
        print("went on")
    finally:
        for _ in range({more}):
            press({signal})
        print("in order", flush=True)

mixpo.commands.doctor.examine = examine
"""
AFTER_THE_SENTENCE = """
import atexit
import mixpo.commands.doctor

def examine(folder):
    print("in order", flush=True)
    press()

atexit.register(press)
mixpo.commands.doctor.examine = examine
"""
WHEN_DONE = """
import atexit
atexit.register(lambda: [press(), press()])
"""
IN_A_CHILD = """
import mixpo.commands.doctor

def examine(folder):
    child = os.fork()
    if not child:
        press(signal.SIGTERM)
        os._exit(0)
    print("child ended by", os.WTERMSIG(os.waitpid(child, 0)[1]))
    return []

mixpo.commands.doctor.examine = examine
"""


def ended(how: str) -> subprocess.CompletedProcess[str]:
    """`mixpo doctor` in a process in which something is different."""
    program = f"{START}{how}\nsys.argv = ['mixpo', 'doctor']\nsys.exit(main())\n"
    environment = {"PYTHONPATH": str(Path(mixpo.__file__).parents[1]), "PATH": ""}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.parametrize(
    ("how", "status", "in_order"),
    [
        (WHILE_LOADING, 130, False),
        (AT_WORK.format(signal="signal.SIGINT", more=0), 130, True),
        (AT_WORK.format(signal="signal.SIGINT", more=1), 130, False),
        (AT_WORK.format(signal="signal.SIGINT", more=2), 130, False),
        (AT_WORK.format(signal="signal.SIGTERM", more=0), 143, True),
        (WHEN_DONE, 130, False),
        (AFTER_THE_SENTENCE, 130, True),
    ],
)
def test_one_sentence_and_no_traceback(how: str, status: int, in_order: bool) -> None:
    done = ended(how)
    assert done.returncode == status
    assert done.stderr == "\nmixpo: stopped; run the same command again (without --force) to resume\n"
    assert ("in order" in done.stdout) == in_order
    assert "went on" not in done.stdout


def test_a_forked_child_dies_of_its_own_signal() -> None:
    done = ended(IN_A_CHILD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "child ended by 15" in done.stdout
