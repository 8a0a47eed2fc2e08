"""Text tables on standard output, laid out by rich for the width of the terminal. Imported only by commands that print one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mixpo.cli.output import line, printable

GAP = 2
"""Spaces between columns."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print rows of text under headings; cells wrap between words. Where words would not fit, each row becomes a list of its cells."""
    screen = console()
    shown = {cell: printable(cell) for cell in {cell for row in rows for cell in row}}  # many cells are equal
    texts = [[shown[cell] for cell in row] for row in rows]
    if title:
        line(title)
    columns = [*zip(headings, *texts, strict=True)]
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    if sum(words) + GAP * (len(words) - 1) > screen.width:
        _records(screen, headings, texts)
        return
    drawn = Table.grid(padding=(0, GAP, 0, 0))
    drawn.show_header, drawn.header_style = any(headings), "bold"
    for heading, column, longest in zip(headings, columns, words, strict=True):
        drawn.add_column(heading, overflow="fold", no_wrap=max(map(cell_len, column)) == longest)
    for row in texts:
        drawn.add_row(*map(Text, row))  # Text, not str: brackets are not markup here
    _print(screen, drawn)


def _records(screen: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as its first cell, followed by one line per other non-empty cell."""
    for name, *cells in rows:
        line(name)
        drawn = Table.grid(padding=(0, GAP, 0, 0))
        for heading, cell in zip(headings[1:], cells, strict=True):
            if cell:
                drawn.add_row(heading, Text(cell, overflow="fold"))
        _print(screen, Padding(drawn, (0, 0, 0, GAP)))


def _print(screen: Console, drawn: Table | Padding) -> None:
    """Print a table; without trailing blanks where the output is a file or a pipe."""
    if screen.is_terminal:
        screen.print(drawn)
        return
    with screen.capture() as captured:
        screen.print(drawn)
    screen.file.write("".join(f"{row.rstrip()}\n" for row in captured.get().splitlines()))
    screen.file.flush()


def console() -> Console:
    """Standard output; 160 columns where it is not a terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=160)
