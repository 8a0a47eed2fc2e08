"""Handling of Ctrl+C and SIGTERM, from a command's first moment on. Imports nothing heavy, because it comes before everything else.

While a command is running, the first signal raises KeyboardInterrupt, so that the command can clean up. Before that there is nothing
to clean up, and a second signal means that the user does not want to wait: the process ends at once. No finished work is lost, because
a run survives being killed.
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


class SignalHandler:
    """The last signal, whether a command is running that must clean up first, and whether the message has been printed."""

    def __init__(self) -> None:
        self.interruptible = False
        self.message_printed = False
        self.signal = signal.SIGINT
        self._owner = 0

    def install(self) -> None:
        """Handle SIGINT and, in a process without a launcher, SIGTERM. Call it in the main thread of a command's own process."""
        self._owner = os.getpid()
        signal.signal(signal.SIGINT, self._handle)
        if os.environ.get("WORLD_SIZE", "1") == "1":  # a launcher ends its ranks with SIGTERM and does not wait for their work
            signal.signal(signal.SIGTERM, self._handle)

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Within this context the first signal raises KeyboardInterrupt."""
        self.interruptible = True
        try:
            yield
        finally:
            self.interruptible = False

    @property
    def exit_status(self) -> int:
        """The exit status after a signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal

    def exit_now(self) -> None:
        """End the process without cleaning up; prints the message unless it has been printed, and shows the cursor again."""
        text = (SHOW_CURSOR if sys.stderr.isatty() else "") + ("" if self.message_printed else f"\n{MESSAGE}\n")
        os.write(2, text.encode())  # not print: the signal may have come in the middle of one
        os._exit(self.exit_status)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked child: default behaviour, for this process only
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = signal.Signals(number)
        if self.interruptible:
            self.interruptible = False
            raise KeyboardInterrupt
        self.exit_now()


HANDLER = SignalHandler()
"""The handler of this process."""
