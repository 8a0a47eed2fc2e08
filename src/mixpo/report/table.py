"""Tables of a report as text cells, for both the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixpo.report.words import MODES, UNIT, accuracy, count, interval, model_name, no_answer, p_cell, percent, points

TextTable = tuple[Sequence[str], Sequence[tuple[str, ...]]]
"""Headings and rows of text cells."""

SUMMARY_COLUMNS = (
    "model",
    "mode",
    "accuracy",
    "95 % interval",
    "Δ vs. base",
    "p",
    "no final answer",
    "undecided",
    "truncated",
    "tokens",
    "questions",
)
"""Headings of `summary_rows`. Δ is in percentage points."""


def all_sets(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The results of every evaluation set by its name, those of the main one first."""
    return {report["set"]: report, **report["sets"]}


def summary_rows(report: dict[str, Any], name: str | None = None) -> list[tuple[str, ...]]:
    """One row of text cells for each model and mode, under SUMMARY_COLUMNS; `name` picks another evaluation set than the main one."""
    chosen = report if name is None else report["sets"][name]
    against = {(c["b"], c["mode"]): c for c in chosen["comparisons"] if c["a"] == "base"}
    rows = []
    for model, modes in chosen["models"].items():
        for mode, scores in modes.items():
            rows.append(_row(model, mode, scores, against.get((model, mode))))
    return rows


def filled_table(report: dict[str, Any], name: str | None = None) -> TextTable:
    """The summary without columns that are empty throughout: responses of other tools have no base model."""
    rows = summary_rows(report, name)
    filled = [column for column, _ in enumerate(SUMMARY_COLUMNS) if any(row[column] for row in rows)]
    return tuple(SUMMARY_COLUMNS[column] for column in filled), [tuple(row[column] for column in filled) for row in rows]


def _row(model: str, mode: str, scores: dict[str, Any], against: dict[str, Any] | None) -> tuple[str, ...]:
    return (
        model_name(model),
        MODES.get(mode, mode),
        accuracy(scores),
        interval(scores),
        points(against["difference"]) if against else "",
        p_cell(against["p"]) if against else "",
        no_answer(scores),
        *(count(scores[key]) if key in scores else "" for key in ("undecided", "cut")),
        f"{scores['mean_tokens']:.1f}" if scores["mean_tokens"] else "",  # unknown for responses of other tools
        count(scores["n"]),
    )


def sampled_table(report: dict[str, Any]) -> TextTable:
    """mean@k, pass@k and maj@k of sampled responses, for every set and model."""
    rows = [
        (name, model_name(model), row["name"], accuracy(scores) if row is mean else percent(row["value"]), _ends(row), count(row["n"]))
        for name, chosen in all_sets(report).items()
        for model, modes in chosen["models"].items()
        if (scores := modes.get("sampled")) and scores.get("figures")
        for mean in [{**scores, "name": f"mean@{scores['per_question']}"}]
        for row in (mean, *scores["figures"])
    ]
    return ("set", "model", "metric", "value", "95 % interval", "questions"), rows


def _ends(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else interval(row).replace(UNIT, "")


def text_table(report: dict[str, Any]) -> TextTable:
    """The results of text-only tasks."""
    known = [row for row in report["text"] if row["value"] is not None]
    errors = [f"{row['error']:.2g}" if row["error"] else "" for row in known]
    rows = [
        (model_name(row["model"]), row["task"], row["metric"], f"{row['value']:.4g}", error, count(row["n"]))
        for row, error in zip(known, errors, strict=True)
    ]
    return ("model", "task", "metric", "value", "standard error", "questions"), rows


def yes_no_table(report: dict[str, Any]) -> TextTable:
    """Precision, recall and F1 of yes/no questions, for every set that is not a benchmark."""
    rows = [
        (name, model_name(model), MODES.get(mode, mode), *(percent(result[key]) for key in ("precision", "recall", "f1")),
         "" if result["low"] is None else interval(result), percent(result["yes_ratio"]), count(result["n"]))
        for name, chosen in all_sets(report).items()
        if not chosen["benchmark"]
        for model, modes in chosen["models"].items()
        for mode, scores in modes.items()
        if (result := scores.get("yes_no"))
    ]  # fmt: skip
    return ("set", "model", "mode", "precision", "recall", "F1", "95 % interval of F1", "yes", "questions"), rows


def gap_table(report: dict[str, Any]) -> TextTable:
    """Accuracy with chain of thought minus accuracy of direct answers, for every set and model.

    Δ is over the n questions scored in both modes: fewer than all where a reply of the judge could not be read.
    """
    rows = [
        (name, model_name(gap["model"]), *(percent(chosen["models"][gap["model"]][mode]["accuracy"]) for mode in ("direct", "cot")),
         points(gap["difference"]), f"{points(gap['low'])} to {points(gap['high'])}", p_cell(gap["p"]), count(gap["n"]))
        for name, chosen in all_sets(report).items()
        for gap in chosen["gaps"]
    ]  # fmt: skip
    return ("set", "model", "direct", "chain of thought", "Δ", "95 % interval", "p", "n"), rows
