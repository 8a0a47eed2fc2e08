"""Text tables on standard output, laid out by rich for the width of the terminal. Imported only by commands that print one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mixpo.cli.output import line, printable

SHORT = 32
"""Cells up to this width are never broken into lines."""
GAP = 2
"""Spaces between columns."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print rows of text under headings. Columns that do not fit the terminal follow in a second table that repeats the row names.

    Where the terminal is too narrow for one column beside the row names, each row becomes a paragraph.
    """
    screen = console()
    texts = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headings, *texts, strict=True)]
    naming = _naming(texts)
    if title:
        line(title)
    if sum(width + GAP for width in widths[:naming]) + max(min(width, SHORT) for width in widths) > screen.width:
        _paragraphs(screen, headings, texts, naming)
        return
    for number, columns in enumerate(_parts(widths, naming, screen.width)):
        if number and not any(row[column] for row in texts for column in columns[naming:]):
            continue
        drawn = Table(pad_edge=False, box=None, header_style="bold", show_header=any(headings))
        for column in columns:
            justify: JustifyMethod = "left" if column == 0 else "default"
            drawn.add_column(headings[column], justify=justify, overflow="fold", no_wrap=widths[column] <= SHORT)
        for row in texts:
            # Text, not str: brackets are not markup here.
            drawn.add_row(*(Text(row[column]) for column in columns))
        if number:
            line()
        _print(screen, drawn)


def _print(screen: Console, drawn: Table) -> None:
    """Print a table; without trailing blanks where the output is a file or a pipe."""
    if screen.is_terminal:
        screen.print(drawn)
        return
    with screen.capture() as captured:
        screen.print(drawn)
    screen.file.write("".join(f"{row.rstrip()}\n" for row in captured.get().splitlines()))
    screen.file.flush()


def _paragraphs(screen: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], naming: int) -> None:
    """Each row as its name, followed by one line per non-empty cell."""
    for row in rows:
        line("  ".join(filter(None, row[:naming])))
        drawn = Table(pad_edge=False, box=None, show_header=False)
        drawn.add_column(no_wrap=True)
        drawn.add_column(overflow="fold")
        for heading, cell in zip(headings[naming:], row[naming:], strict=True):
            if cell:
                drawn.add_row(f"  {heading}", Text(cell))
        if drawn.row_count:
            _print(screen, drawn)


def _naming(rows: Sequence[Sequence[str]]) -> int:
    """How many leading columns identify a row uniquely; at most all but the last."""
    columns = len(rows[0]) if rows else 1
    return next((n for n in range(1, columns) if len({tuple(row[:n]) for row in rows}) == len(rows)), max(1, columns - 1))


def _parts(widths: Sequence[int], naming: int, room: int) -> list[list[int]]:
    """The columns of each table: the naming columns, then as many others as fit with their short cells unbroken."""
    names = list(range(min(naming, len(widths) - 1)))
    parts, taken = [list(names)], sum(min(widths[n], SHORT) + GAP for n in names)
    used = taken
    for column in range(len(names), len(widths)):
        least = min(widths[column], SHORT)
        if used + least > room and len(parts[-1]) > len(names):
            parts.append(list(names))
            used = taken
        parts[-1].append(column)
        used += least + GAP
    return parts


def console() -> Console:
    """Standard output; 160 columns where it is not a terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=160)
