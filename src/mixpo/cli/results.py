"""The results of a run on standard output: the tables of its report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from mixpo.cli.output import line
from mixpo.cli.tables import table
from mixpo.progress import duration
from mixpo.report.benchmarks import CAUSES, FIGURE_COLUMNS, MAIN_DIFFERENCE_COLUMNS, figure_rows, main_difference_rows
from mixpo.report.table import (
    GAP_COLUMNS,
    SAMPLED_COLUMNS,
    TEXT_COLUMNS,
    YES_NO_COLUMNS,
    filled_table,
    gap_rows,
    sampled_rows,
    text_rows,
    yes_no_rows,
)
from mixpo.stages.report import DATA, PAGE, load_report

UNFINISHED_SHOWN = 6
"""Unfinished stages that are named."""


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
    """The tables of a report: every set, benchmarks, text-only tasks, and alarms by cause."""
    whole = dict(report)
    if whole["models"]:
        table(*filled_table(whole), title=f"\n{whole['title']} (set {whole['set']})")
        for name in whole["sets"]:
            table(*filled_table(whole, name), title=f"\nset {name}")
    for name, scores_of_set in {whole["set"]: whole, **whole["sets"]}.items():
        if scores_of_set.get("figures"):
            table(FIGURE_COLUMNS, figure_rows(scores_of_set, whole=False), title=f"\n{scores_of_set['benchmark']} (set {name})")
    if whole["models"] and (differences := main_difference_rows(whole)):
        table(MAIN_DIFFERENCE_COLUMNS, differences, title="\npublished metrics, paired comparisons")
    if whole["models"] and (sampled := sampled_rows(whole)):
        table(SAMPLED_COLUMNS, sampled, title="\nsampled responses")
    if whole["models"] and (yes_no := yes_no_rows(whole)):
        table(YES_NO_COLUMNS, yes_no, title="\nyes/no questions")
    if whole["models"] and (gaps := gap_rows(whole)):
        table(GAP_COLUMNS, gaps, title="\nchain of thought vs. direct")
    if whole.get("text"):
        table(TEXT_COLUMNS, text_rows(whole), title="\ntext-only tasks")
    if unfinished := whole.get("unfinished"):
        more = f" and {len(unfinished) - UNFINISHED_SHOWN} more" if len(unfinished) > UNFINISHED_SHOWN else ""
        line(f"! not finished, and missing here: {', '.join(unfinished[:UNFINISHED_SHOWN])}{more}")
    for cause, alarms in groupby(whole.get("alarms", ()), key=lambda alarm: alarm["cause"]):
        line(f"! {CAUSES[cause]}")
        for alarm in alarms:
            line(f"  {alarm['set']}, {alarm['model']}, {alarm['mode']}: {alarm['text']}")


def timings(seconds: Mapping[str, float]) -> None:
    """How long each stage took."""
    shown = [(name, duration(value)) for name, value in seconds.items() if value >= 0.05]
    table(("stage", "time"), [*shown, ("all", duration(sum(seconds.values())))], title="\ntime")
