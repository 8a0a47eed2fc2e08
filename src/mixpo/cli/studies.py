"""The plan and the tables of a study on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixpo.cli.output import line
from mixpo.cli.tables import table
from mixpo.progress import Progress
from mixpo.study import tables
from mixpo.study.plan import KIND_COLUMNS, RUN_COLUMNS, kind_rows, plan_study, run_rows
from mixpo.study.schema import LoadedStudy


def planned(study: LoadedStudy, root: Path, progress: Progress) -> None:
    """Every run, and how often each kind of stage is made. Equal stages have the same settings and inputs."""
    runs = plan_study(study, root, progress)
    table(RUN_COLUMNS, run_rows(runs), title="nothing was done; runs and their stages before the test sets are opened")
    table(KIND_COLUMNS, kind_rows(runs), title="\nstages by kind")


def scores(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """The tables of scores in the compared mode, what the test sets saw, and where the files are."""
    for scored in report["sets"]:
        if scored["mode"] == report["mode"]:
            table(*tables.score_table(report, scored), title=f"\n{tables.heading(report, scored)}")
    line()
    for text in (tables.opening_text(report), tables.statistics_text(report), tables.sharing_text(report)):
        line(text)
    for path in paths:
        line(str(path))
