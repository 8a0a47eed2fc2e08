"""The report of a run: `build` makes report.json's data, `render` the page, `summary_rows` the table for a terminal."""

from mixpo.report.benchmarks import FIGURE_COLUMNS, MAIN_DIFFERENCE_COLUMNS, figure_rows, main_difference_rows
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
from mixpo.report.words import describe_counts

__all__ = [
    "FIGURE_COLUMNS",
    "GAP_COLUMNS",
    "MAIN_DIFFERENCE_COLUMNS",
    "SUMMARY_COLUMNS",
    "TEXT_COLUMNS",
    "YES_NO_COLUMNS",
    "ReportData",
    "build",
    "describe_counts",
    "figure_rows",
    "gap_rows",
    "main_difference_rows",
    "render",
    "summary_rows",
    "text_rows",
    "yes_no_rows",
]
