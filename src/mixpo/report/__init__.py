"""The report of a run: `build` makes report.json's data, `render` the page, `summary_rows` the table for a terminal."""

from mixpo.report.benchmarks import FIGURE_COLUMNS, figure_rows
from mixpo.report.build import build
from mixpo.report.data import ReportData
from mixpo.report.render import render
from mixpo.report.table import SUMMARY_COLUMNS, TEXT_COLUMNS, summary_rows, text_rows

__all__ = [
    "FIGURE_COLUMNS",
    "SUMMARY_COLUMNS",
    "TEXT_COLUMNS",
    "ReportData",
    "build",
    "figure_rows",
    "render",
    "summary_rows",
    "text_rows",
]
