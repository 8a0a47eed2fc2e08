"""The report of a run: `build` makes report.json's data, `render` the page, `summary_rows` the table for a terminal."""

from mixpo.report.benchmarks import DIFFERENCE_COLUMNS, FIGURE_COLUMNS, difference_rows, figure_rows
from mixpo.report.build import build
from mixpo.report.data import ReportData
from mixpo.report.render import render
from mixpo.report.table import (
    GAP_COLUMNS,
    SUMMARY_COLUMNS,
    TEXT_COLUMNS,
    YES_NO_COLUMNS,
    gap_rows,
    summary_rows,
    text_rows,
    yes_no_rows,
)

__all__ = [
    "DIFFERENCE_COLUMNS",
    "FIGURE_COLUMNS",
    "GAP_COLUMNS",
    "SUMMARY_COLUMNS",
    "TEXT_COLUMNS",
    "YES_NO_COLUMNS",
    "ReportData",
    "build",
    "difference_rows",
    "figure_rows",
    "gap_rows",
    "render",
    "summary_rows",
    "text_rows",
    "yes_no_rows",
]
