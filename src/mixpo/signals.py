"""What Ctrl+C and SIGTERM do to a command, from its first moment on. Imports nothing heavy, because it comes before everything else.

While a command is at work, the first signal is a KeyboardInterrupt, so that the command puts its things in order. Before that
nothing is at stake, and after it whoever signals again does not want to wait: then the process ends at once. That loses nothing,
because whatever a run keeps outlives a kill.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MESSAGE = "mixpo: stopped; run the same command again (without --force) to resume"
SHOW_CURSOR = "\x1b[?25h"


class Stopping:
    """Which signal has come, whether there is something to put in order first, and whether the user was told."""

    def __init__(self) -> None:
        self.at_work = False
        self.announced = False
        self.signal = signal.SIGINT
        self._owner = 0

    def listen(self) -> None:
        """Take over Ctrl+C and, in a process that no launcher watches, SIGTERM. For the main thread of a command's own process."""
        self._owner = os.getpid()
        signal.signal(signal.SIGINT, self._heard)
        if os.environ.get("WORLD_SIZE", "1") == "1":  # a launcher ends its ranks so, and does not wait for what they compute
            signal.signal(signal.SIGTERM, self._heard)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Within it the first signal is a KeyboardInterrupt."""
        self.at_work = True
        try:
            yield
        finally:
            self.at_work = False

    @property
    def status(self) -> int:
        """The exit status after a signal: 130 for Ctrl+C, 143 for SIGTERM."""
        return 128 + self.signal

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # forked: the signal is meant for this process alone
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = signal.Signals(number)
        if self.at_work:
            self.at_work = False
            raise KeyboardInterrupt
        self.end()

    def end(self) -> None:
        """End the process now, with the terminal as it was."""
        end = (SHOW_CURSOR if sys.stderr.isatty() else "") + ("" if self.announced else f"\n{MESSAGE}\n")
        os.write(2, end.encode())  # not print: the signal may have come in the middle of one
        os._exit(self.status)


STOPPING = Stopping()
"""Of this process."""
