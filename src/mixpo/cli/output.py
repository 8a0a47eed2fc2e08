"""Plain output: lines, JSON documents and progress for logs. Imports no library, so that every command can start with it."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO
from unicodedata import category

from mixpo.masking import masked
from mixpo.plural import amount
from mixpo.progress import duration

LOG_SECONDS = 10.0
"""Without a terminal, each progress bar logs a line at most this often."""


def line(text: str = "") -> None:
    """Print one line; control characters are replaced."""
    print(printable(text), flush=True)


def document(value: object) -> None:
    """Print one JSON document; escapes non-ASCII characters only where the output is not UTF-8."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=plain, indent=2), flush=True)


def printable(text: str) -> str:
    """The text with control characters replaced, because file names and responses must not control the terminal; secrets are masked."""
    text = masked(text)
    return "".join(letter if letter in "\n\t" or category(letter) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}" for letter in text)


class Lines:
    """Progress as log lines: the start of each bar, the latest figures every few seconds, and the end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._title, self._unit, self._total, self._done = "", "", 0, 0
        self._started = self._logged = self._first = 0.0
        self._first_done = 0

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._unit, self._total, self._done = title, unit, total, done
        self._started = self._logged = time.monotonic()
        self._first = 0.0
        self._line("started")  # the first item may take minutes: a model is loaded before it

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        now = time.monotonic()
        if not self._first:
            # The time until the first items is that of loading a model; it says nothing about the rate.
            self._first, self._first_done = now, self._done
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._line(f"{self._left(now)}{', ' + note if note else ''}")

    def finish(self) -> None:
        if self._done < self._total:
            self._total = 0  # the total was a limit, and there were fewer
        self._line(f"done in {duration(time.monotonic() - self._started)}")

    def say(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is held."""

    def _left(self, now: float) -> str:
        processed = self._done - self._first_done
        if not processed or self._total <= self._done:
            return "working"
        return f"about {duration((now - self._first) / processed * (self._total - self._done))} left"

    def _line(self, tail: str) -> None:
        done = f"{self._done:,} of " if self._total else ""
        self.say(f"{self._title}: {done}{amount(self._total or self._done, self._unit.removesuffix('s'))}, {tail}")
