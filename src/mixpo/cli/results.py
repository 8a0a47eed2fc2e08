"""The results of a run on standard output: the tables of its report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from mixpo.cli.output import line
from mixpo.cli.tables import table
from mixpo.progress import duration
from mixpo.report.benchmarks import CAUSES, figure_table, main_difference_table
from mixpo.report.table import all_sets, filled_table, gap_table, sampled_table, text_table, yes_no_table
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
        for name, results_of_set in all_sets(whole).items():
            if results_of_set.get("figures"):
                table(*figure_table(results_of_set), title=f"\n{results_of_set['benchmark']} (set {name})")
        for title, (headings, rows) in {
            "published metrics, paired comparisons": main_difference_table(whole),
            "sampled responses": sampled_table(whole),
            "yes/no questions": yes_no_table(whole),
            "chain of thought vs. direct": gap_table(whole),
        }.items():
            if rows:
                table(headings, rows, title=f"\n{title}")
    if whole.get("text"):
        table(*text_table(whole), title="\ntext-only tasks")
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
