"""Tables of a report as text cells, for both the page and the terminal."""

from __future__ import annotations

from typing import Any

from mixpo.report.words import MODES, UNIT, accuracy, count, interval, model_name, no_answer, p_cell, percent, points

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


def summary_rows(report: dict[str, Any], name: str | None = None) -> list[tuple[str, ...]]:
    """One row of text cells for each model and mode, under SUMMARY_COLUMNS; `name` picks another evaluation set than the main one."""
    chosen = report if name is None else report["sets"][name]
    against = {(c["b"], c["mode"]): c for c in chosen["comparisons"] if c["a"] == "base"}
    rows = []
    for model, modes in chosen["models"].items():
        for mode, scores in modes.items():
            rows.append(_row(model, mode, scores, against.get((model, mode))))
    return rows


def filled_table(report: dict[str, Any], name: str | None = None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the summary without columns that are empty throughout: responses of other tools have no base model."""
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


SAMPLED_COLUMNS = ("set", "model", "metric", "value", "95 % interval", "questions")


def sampled_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """mean@k, pass@k and maj@k of sampled responses as text cells, under SAMPLED_COLUMNS, for every set and model."""
    return [
        (name, model_name(model), row["name"], accuracy(scores) if row is mean else percent(row["value"]), _ends(row), count(row["n"]))
        for name, chosen in {report["set"]: report, **report["sets"]}.items()
        for model, modes in chosen["models"].items()
        if (scores := modes.get("sampled")) and scores.get("figures")
        for mean in [{**scores, "name": f"mean@{scores['per_question']}"}]
        for row in (mean, *scores["figures"])
    ]


def _ends(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else interval(row).replace(UNIT, "")


TEXT_COLUMNS = ("model", "task", "metric", "value", "standard error", "questions")


def text_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The results of text-only tasks as text cells, under TEXT_COLUMNS."""
    return [
        (
            model_name(row["model"]),
            row["task"],
            row["metric"],
            f"{row['value']:.4g}",
            f"{row['error']:.2g}" if row["error"] else "",
            count(row["n"]),
        )
        for row in report["text"]
        if row["value"] is not None
    ]


YES_NO_COLUMNS = ("set", "model", "mode", "precision", "recall", "F1", "95 % interval of F1", "yes", "questions")


def yes_no_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Precision, recall and F1 of yes/no questions as text cells, under YES_NO_COLUMNS, for every set that is not a benchmark."""
    return [
        (name, model_name(model), MODES.get(mode, mode), *(percent(result[key]) for key in ("precision", "recall", "f1")),
         "" if result["low"] is None else interval(result), percent(result["yes_ratio"]), count(result["n"]))
        for name, chosen in {report["set"]: report, **report["sets"]}.items()
        if not chosen["benchmark"]
        for model, modes in chosen["models"].items()
        for mode, scores in modes.items()
        if (result := scores.get("yes_no"))
    ]  # fmt: skip


GAP_COLUMNS = ("set", "model", "direct", "chain of thought", "Δ", "95 % interval", "p", "n")


def gap_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Accuracy with chain of thought minus accuracy of direct answers, as text cells under GAP_COLUMNS, for every set and model.

    Δ is over the n questions scored in both modes: fewer than all where a reply of the judge could not be read.
    """
    return [
        (name, model_name(gap["model"]), *(percent(chosen["models"][gap["model"]][mode]["accuracy"]) for mode in ("direct", "cot")),
         points(gap["difference"]), f"{points(gap['low'])} to {points(gap['high'])}", p_cell(gap["p"]), count(gap["n"]))
        for name, chosen in {report["set"]: report, **report["sets"]}.items()
        for gap in chosen["gaps"]
    ]  # fmt: skip
