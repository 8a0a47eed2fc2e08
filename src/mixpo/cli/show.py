"""What commands print to standard output: tables for people. Decides nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mixpo.cli.bars import clock, printable
from mixpo.commands.audit import Audited
from mixpo.commands.check import Checked
from mixpo.commands.plan import Estimate, totals
from mixpo.commands.status import models as read_models
from mixpo.commands.status import status as read_status
from mixpo.pipeline import kind_of
from mixpo.plural import amount
from mixpo.report import (
    FIGURE_COLUMNS,
    GAP_COLUMNS,
    MAIN_DIFFERENCE_COLUMNS,
    SUMMARY_COLUMNS,
    TEXT_COLUMNS,
    YES_NO_COLUMNS,
    describe_counts,
    figure_rows,
    gap_rows,
    main_difference_rows,
    summary_rows,
    text_rows,
    yes_no_rows,
)
from mixpo.stages.job import Context
from mixpo.stages.report import DATA, PAGE, load_report

NAMED = 6
"""Unfinished stages that are named."""
SHORT = 32
"""Cells up to this width are never broken into lines."""
GAP = 2
"""Spaces between columns."""
LONGEST = 200
"""Characters of an answer that are shown; a model can write anything where its final answer should stand."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print rows of text under headings. What is too wide for the terminal goes on in a second table that names the rows again.

    In a terminal so narrow that a column has no room beside these names, each row is a paragraph of its own.
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
            # Text, not str: what stands in brackets is no markup here.
            drawn.add_row(*(Text(row[column]) for column in columns))
        if number:
            line()
        _print(screen, drawn)


def _print(screen: Console, drawn: Table) -> None:
    """The table, for files and pipes without the blanks that fill its lines."""
    if screen.is_terminal:
        screen.print(drawn)
        return
    with screen.capture() as captured:
        screen.print(drawn)
    screen.file.write("".join(f"{row.rstrip()}\n" for row in captured.get().splitlines()))
    screen.file.flush()


def _paragraphs(screen: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], naming: int) -> None:
    """Each row as its name, and below it a line for each of its other cells that is not empty."""
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
    """How many of the first columns tell the rows apart: all but the last at most."""
    columns = len(rows[0]) if rows else 1
    return next((n for n in range(1, columns) if len({tuple(row[:n]) for row in rows}) == len(rows)), max(1, columns - 1))


def _parts(widths: Sequence[int], naming: int, room: int) -> list[list[int]]:
    """The columns of each table: as many as fit with their short cells unbroken, each time after those that name the rows."""
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


def shortened(text: str) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def console() -> Console:
    """Standard output; wide enough for whole lines where it is no terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=160)


def line(text: str = "") -> None:
    """Print one line as it is."""
    print(printable(text), flush=True)


def document(value: object) -> None:
    """Print one JSON document; other characters than ASCII stand for themselves where the output can hold them."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=plain, indent=2), flush=True)


def results(root: Path) -> None:
    """The result table of a run's report, the time of each stage, and where the page is."""
    report = load_report(root)
    if report is None:
        return
    scores(report)
    timings(report["timings"])
    line()
    for name, folder in report.get("trained", {}).items():
        line(f"model:  {root / folder} ({name})")
    line(f"report: {root / PAGE}\ndata:   {root / DATA}")


def scores(report: Mapping[str, Any]) -> None:
    """The tables of a report: every set, the figures of benchmarks, text-only tasks, and what is alarming."""
    whole = dict(report)
    if whole["models"]:
        table(SUMMARY_COLUMNS, summary_rows(whole), title=f"\n{whole['title']} (set {whole['set']})")
        for name in whole["sets"]:
            table(SUMMARY_COLUMNS, summary_rows(whole, name), title=f"\nset {name}")
    for name, found in {whole["set"]: whole, **whole["sets"]}.items():
        if found.get("figures"):
            table(FIGURE_COLUMNS, figure_rows(found, whole=False), title=f"\n{found['benchmark']} (set {name})")
    if whole["models"] and (differences := main_difference_rows(whole)):
        table(MAIN_DIFFERENCE_COLUMNS, differences, title="\npublished figures compared, on the same questions")
    if whole["models"] and (yes_no := yes_no_rows(whole)):
        table(YES_NO_COLUMNS, yes_no, title="\nyes/no questions")
    if whole["models"] and (gaps := gap_rows(whole)):
        table(GAP_COLUMNS, gaps, title="\nwhat chain of thought adds to direct answers")
    if whole.get("text"):
        table(TEXT_COLUMNS, text_rows(whole), title="\ntext without images")
    if unfinished := whole.get("unfinished"):
        more = f" and {len(unfinished) - NAMED} more" if len(unfinished) > NAMED else ""
        line(f"! not finished, and missing here: {', '.join(unfinished[:NAMED])}{more}")
    for alarm in whole.get("alarms", ()):
        line(f"! {alarm['set']}, {alarm['model']}, {alarm['mode']}: {alarm['text']}")


def timings(seconds: Mapping[str, float]) -> None:
    """How long each stage took."""
    shown = [(name, clock(value)) for name, value in seconds.items() if value >= 0.05]
    table(("stage", "time"), [*shown, ("all", clock(sum(seconds.values())))], title="\ntime")


def status(rows: Sequence[Mapping[str, Any]], models: Mapping[str, str] | None = None) -> None:
    """The state of each stage of a run, and where its trained models are."""
    cells = [
        (
            row["stage"],
            row["state"],
            f"{row['done']}/{row['total']}",
            clock(row["seconds"]) if row["seconds"] else "",
            ", ".join(describe_counts(row["counts"])),
            "; ".join(row["why"]),
        )
        for row in rows
    ]
    table(("stage", "state", "shards", "time", "made", "why"), cells)
    for name, folder in (models or {}).items():
        line(f"model: {folder} ({name})")


def stages(context: Context, kinds: Sequence[str]) -> None:
    """The state of the stages of some kinds after a stage command."""
    rows = [row for row in read_status(context) if kind_of(row["stage"]) in kinds]
    status(rows, read_models(context) if "train" in kinds else None)


def estimates(rows: list[Estimate]) -> None:
    """The dry run."""
    cells = [
        (
            row.stage,
            f"{row.todo:,} of {amount(row.total, row.unit[:-1])}",
            f"{row.tokens:,}" if row.tokens else "",
            clock(row.seconds) if row.todo else "",
            _size(row.bytes),
            row.basis,
            row.why,
        )
        for row in rows
    ]
    total = totals(rows)
    cells.append(("all", "", f"{total.tokens:,}", clock(total.seconds), _size(total.bytes), "", ""))
    table(
        ("stage", "to do", "tokens", "time", "disk", "rates", "why"),
        cells,
        title="dry run: nothing was done; tokens, time and disk are estimates",
    )


def audited(result: Audited) -> None:
    """Doubtful verdicts with what speaks against them."""
    rows = [
        (f"{row.question}[{row.index}]", row.gold, shortened(row.extracted or ""), f"{row.outcome}: {row.reason}", row.why, row.ending)
        for row in result.rows
    ]
    if rows:
        table(("answer", "right", "found", "verdict", "why it deserves a look", "end of the text"), rows)
    doubtful, by = sum(result.doubtful.values()), ", ".join(f"{name} {count:,}" for name, count in result.doubtful.items())
    line(
        f"{doubtful:,} of {amount(result.verdicts, 'verdict')} {'deserves' if doubtful == 1 else 'deserve'} a look"
        + (f": {by}" if by else "")
    )


def planned(rows: list[Estimate], devices: int) -> None:
    """What a run will take. devices: how many share the work; some stages cannot be shared, so the time is a lower bound."""
    cells = [
        (
            row.stage,
            amount(row.todo, row.unit[:-1]),
            *(f"{number:,}" if number else "" for number in (row.requests, row.tokens)),
            f"{row.seconds / 3600:,.2f}" if row.todo else "",
            clock(row.seconds / devices) if row.todo else "",
            _size(row.bytes),
            row.basis,
        )
        for row in rows
    ]
    total = totals(rows)
    hours = f"{total.seconds / 3600:,.2f}"
    cells.append(("all", "", f"{total.requests:,}", f"{total.tokens:,}", hours, clock(total.seconds / devices), _size(total.bytes), ""))
    on = f"on {amount(devices, 'device')}"
    table(
        ("stage", "to do", "requests", "tokens", "device hours", f"time {on}", "disk", "rates"),
        cells,
        title="plan: nothing was done; all but the counts are estimates",
    )


def _size(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def checked(result: Checked) -> None:
    """What `mixpo check` found."""
    for finding in result.findings:
        # A problem that begins with its own key need not be told where it is.
        line(finding.problem if finding.problem.startswith(finding.where) else f"{finding.where}: {finding.problem}")
    for row in result.left_out:
        line(f"{row.where}: left out of training: {row.problem}")
    if result.left_out:
        line(f"source: {amount(len(result.left_out), 'row')} kept out by evaluation sets")
    for name, count in {**result.counts, **result.notes}.items():
        where, _, what = name.rpartition(": ")
        line(f"{where}: {amount(count, what.removesuffix('s'))}")
    found = len(result.findings)
    line(f"{amount(found, 'problem')} found" if found else "nothing to correct")
