"""How a stage says how far it is. Stages only know this protocol; the command line draws the bars."""

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


class Silent:
    """A Progress that prints nothing and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None: ...

    def advance(self, count: int, note: str = "") -> None: ...

    def finish(self) -> None: ...

    def say(self, text: str) -> None:
        self.lines.append(text)
