"""The report of a run: `build` makes report.json's data, `render` the page, `summary_rows` the table for a terminal."""

from mixpo.report.build import build
from mixpo.report.data import ReportData
from mixpo.report.render import render
from mixpo.report.table import SUMMARY_COLUMNS, summary_rows

__all__ = ["SUMMARY_COLUMNS", "ReportData", "build", "render", "summary_rows"]
