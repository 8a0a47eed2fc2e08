"""Progress on the screen: live bars with the time left in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TextIO
from unicodedata import category

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mixpo.plural import amount

PLAIN_SECONDS = 10.0
"""Without a terminal a line is written at most this often for one bar."""


def open_progress() -> Bars | Lines:
    """Bars when standard error is a terminal, lines when it is not. Close it, or the terminal keeps a half-drawn bar."""
    return Bars() if sys.stderr.isatty() else Lines(sys.stderr)


class Bars:
    """One live bar at a time, drawn by rich."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.close()
        self._progress = _WithNote(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._progress.start()
        self._task = self._progress.add_task(title, total=total or None, completed=done, note="")

    def advance(self, count: int, note: str = "") -> None:
        if self._progress is None or self._task is None:
            return
        if note:
            self._progress.update(self._task, advance=count, note=note)
        else:
            self._progress.update(self._task, advance=count)

    def finish(self) -> None:
        if self._progress is not None and self._task is not None:
            task = self._progress.tasks[0]
            self._progress.update(self._task, total=task.total or task.completed)
        self.close()

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar down and give the cursor back, also in the middle of a stage."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None


class _WithNote(Progress):
    """The bar, and the latest figures on a line of their own below it, cut at the edge of the terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", style="dim", no_wrap=True, overflow="ellipsis")


class Lines:
    """Lines for logs: the start, a figure now and then, and the end of each bar."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._title, self._unit, self._total, self._done = "", "", 0, 0
        self._begun = self._told = self._flows = 0.0
        self._before = 0

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._unit, self._total, self._done = title, unit, total, done
        self._begun = self._told = time.monotonic()
        self._flows = 0.0

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        moment = time.monotonic()
        if not self._flows:
            # Until the first are done, a model was loaded: that tells nothing of the time left.
            self._flows, self._before = moment, self._done
        if moment - self._told >= PLAIN_SECONDS:
            self._told = moment
            self._line(f"{self._left(moment)}{', ' + note if note else ''}")

    def finish(self) -> None:
        if self._done < self._total:
            self._total = 0  # it was a limit, and there were not so many
        self._line(f"done in {clock(time.monotonic() - self._begun)}")

    def say(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is held."""

    def _left(self, moment: float) -> str:
        made = self._done - self._before
        if not made or self._total <= self._done:
            return "working"
        return f"about {clock((moment - self._flows) / made * (self._total - self._done))} left"

    def _line(self, tail: str) -> None:
        done = f"{self._done:,} of " if self._total else ""
        self.say(f"{self._title}: {done}{amount(self._total or self._done, self._unit.removesuffix('s'))}, {tail}")


def printable(text: str) -> str:
    """The text without control characters: file names and model answers must not steer the terminal."""
    return "".join(letter if letter in "\n\t" or category(letter) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}" for letter in text)


def clock(seconds: float) -> str:
    """A duration for people: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
