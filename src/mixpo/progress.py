"""Progress of a stage, and durations as text. Stages only know this protocol; the command line draws the bars."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a stage has to say while it works."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """A new bar: `total` units of work, of which `done` were there before."""

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` is a short live figure such as a loss."""

    def finish(self) -> None:
        """The bar is complete."""

    def say(self, text: str) -> None:
        """One line for the user."""


def duration(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Silent:
    """A Progress that prints nothing and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None: ...

    def advance(self, count: int, note: str = "") -> None: ...

    def finish(self) -> None: ...

    def say(self, text: str) -> None:
        self.lines.append(text)
