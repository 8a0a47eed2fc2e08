"""The page of a study: study.json in, one self-contained HTML text out, in the frame and style of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mixpo import sealed
from mixpo.records import write_text
from mixpo.report.charts import Dot, Lane, lanes
from mixpo.report.render import environment
from mixpo.report.words import MODES, points
from mixpo.study import tables
from mixpo.study.schema import BASE

NAME = "study"
"""Of the files with the results, without their ending."""


def write(root: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write study.json, the page, Markdown and LaTeX; returns their paths."""
    texts = {
        "html": render(report),
        "json": sealed.dumps(report, indent=2),
        "md": tables.markdown(report),
        "tex": tables.latex(report),
    }
    for ending, text in texts.items():
        write_text(root / f"{NAME}.{ending}", text)
    return [root / f"{NAME}.{ending}" for ending in texts]


def render(report: Mapping[str, Any]) -> str:
    """The page; everything in it is escaped."""
    baseline = tables.title_of(report, report["baseline"])
    return (
        environment("mixpo.study")
        .get_template("study.html")
        .render(
            report=report,
            title=f"Variants of {report['recipe']}, {MODES[report['mode']]}, against {baseline}",
            baseline=baseline,
            opening=tables.opening_text(report),
            statistics=tables.statistics_text(report),
            sharing=tables.sharing_text(report),
            failed=[run for run in report["runs"] if run["failed"]],
            scored=[_scored(report, scored) for scored in _test_first(report)],
            runs=tables.run_table(report),
            variants=tables.variant_table(report),
        )
    )


def _test_first(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The compared mode before the others, and test sets before validation sets."""
    return sorted(report["sets"], key=lambda scored: (scored["mode"] != report["mode"], scored["role"] != "test"))


def _scored(report: Mapping[str, Any], scored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "set": scored["set"],
        "anchor": f"{scored['set']}-{scored['mode']}",
        "compared": scored["mode"] == report["mode"],
        "heading": tables.heading(report, scored),
        "scores": tables.score_table(report, scored),
        "domains": tables.domain_table(report, scored),
        "chart": _chart(report, scored),
    }


def _chart(report: Mapping[str, Any], scored: Mapping[str, Any]) -> Markup | None:
    """The difference of every variant to the baseline, with its interval."""
    rows = []
    for name, scores in scored["variants"].items():
        difference = scores["difference"]
        if difference is None:
            continue
        label, text = tables.title_of(report, name), points(difference["mean"])
        tip = f"{label}: {text} points ({points(difference['low'])} to {points(difference['high'])})"
        dot = Dot(
            value=difference["mean"], low=difference["low"], high=difference["high"], text=text, tip=tip, colour=0 if name == BASE else 2
        )
        rows.append(Lane(label=label, dots=[dot]))
    summary = "Difference of each variant to the baseline with its 95 % interval; the table has the numbers"
    return lanes(rows, summary, percent_points=True) if rows else None
