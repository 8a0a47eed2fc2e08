"""Published metrics of benchmarks, and alarms about responses that are truncated, repetitive, missing or not scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixpo.evaluate.benchmarks import BENCHMARKS, facts_of
from mixpo.evaluate.benchmarks.metrics import differences, table
from mixpo.evaluate.grading import graded_row
from mixpo.plural import amount
from mixpo.records import Prediction
from mixpo.report.data import ReportData
from mixpo.report.table import TextTable, all_sets
from mixpo.report.words import MODES, UNIT, count, model_name, p_cell, percent, points

CUT_SHARE = 0.05
"""A larger share of truncated responses is an alarm."""
LOOP_SHARE = 0.01
"""A larger share of responses that end in a repeated phrase is an alarm."""

Modes = Mapping[str, Sequence[Prediction]]


Side = tuple[str, str]
"""A model and a mode."""


def benchmark_part(name: str, models: Mapping[str, Modes], pairs: Sequence[tuple[Side, Side]], data: ReportData) -> dict[str, Any]:
    """`benchmark`: its title, "" for other sets; `figures`: one entry for each metric, model and mode; `figure_differences`."""
    known = [
        data.questions[row.question]
        for modes in models.values()
        for rows in modes.values()
        for row in rows[:1]
        if row.question in data.questions
    ]
    names = {facts_of(question).get("benchmark", "") for question in known}
    if len(names) != 1 or not (benchmark := names.pop()):
        return {"benchmark": "", "figures": [], "figure_differences": []}
    return {
        "benchmark": BENCHMARKS[benchmark].title,
        "figures": list(_figures(name, benchmark, models, data)),
        "figure_differences": figure_differences(benchmark, models, pairs, data),
    }


def _figures(set_name: str, name: str, models: Mapping[str, Modes], data: ReportData) -> Iterator[dict[str, Any]]:
    """By the recipe's extractor or the judge, and by every other extractor that changes an outcome."""
    for model, mode, rows in _whole(models, data):
        manifest = data.manifests.get(f"evaluate/{set_name}/{model}/{mode}")
        chosen = str(manifest.settings.get("extractor", "robust")) if manifest else "robust"
        differing = {other.extractor for row in rows for other in row.others if other.outcome != row.outcome}
        for extractor in ["", *(rule for rule in BENCHMARKS[name].rules if rule in differing)]:
            answered = [graded_row(row, data.questions[row.question], extractor) for row in rows]
            if extractor == "paper" and BENCHMARKS[name].extraction and any(row.outcome == "malformed" for row in answered):
                continue  # responses that the released scripts give to a language model
            for figure in table(BENCHMARKS[name], answered):
                yield {"model": model, "mode": mode, "by": extractor or _reader(chosen, rows), **asdict(figure)}


def _whole(models: Mapping[str, Modes], data: ReportData) -> Iterator[tuple[str, str, Sequence[Prediction]]]:
    """Greedy responses whose questions are all known; a part of a benchmark does not give its metrics."""
    for model, modes in models.items():
        for mode, rows in modes.items():
            if mode != "sampled" and all(row.question in data.questions for row in rows):
                yield model, mode, rows


def _reader(extractor: str, rows: Sequence[Prediction]) -> str:
    """Who graded the responses: the extractor, or the judge with its version and the digest of its prompt."""
    judges = ", ".join(sorted({row.judge for row in rows if row.judge}))
    if extractor == "judge":
        return f"extracted by judge {judges}" if judges else "judge (not needed)"
    return f"judge {judges}" if judges else extractor


def figure_differences(
    name: str, models: Mapping[str, Modes], pairs: Sequence[tuple[Side, Side]], data: ReportData
) -> list[dict[str, Any]]:
    """Paired comparisons of the published metrics; pairs: which (model, mode) is compared with which."""
    known = {(model, mode): rows for model, mode, rows in _whole(models, data)}
    compared = []
    for a, b in pairs:
        if a in known and b in known:
            left, right = ([graded_row(row, data.questions[row.question]) for row in known[side]] for side in (a, b))
            compared += [
                {"model_a": a[0], "mode_a": a[1], "model_b": b[0], "mode_b": b[1], **asdict(row)}
                for row in differences(BENCHMARKS[name], left, right)
            ]
    return compared


CAUSES = {
    "truncated": "Responses truncated at the length limit: they have no final answer. Raise evaluate.max_new_tokens.",
    "repetition": "Responses that end in a repeated phrase: the model may have degenerated.",
    "failed": "Responses missing because the engine failed or an image is broken: run `mixpo retry RUN`.",
    "absent": "Responses missing in a predictions file: add them to the file.",
    "unread": "Responses not scored because the judge's reply could not be read: check the predictions, or run `mixpo retry RUN`.",
}
"""What is wrong and what to do, by cause of an alarm."""


def alarms(
    sets: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], absent: Collection[tuple[str, str, str]] = ()
) -> list[dict[str, Any]]:
    """For each set, model and mode: too many responses truncated or repetitive, any that failed or were not scored. By cause.

    absent: sets, models and modes with responses that a predictions file lacks.
    """
    rows = [
        {
            "set": name,
            "model": model,
            "mode": mode,
            "cause": "absent" if cause == "failed" and (name, model, mode) in absent else cause,
            "text": text,
        }
        for name, models in sets.items()
        for model, modes in models.items()
        for mode, scores in modes.items()
        for cause, text in _alarms(scores)
    ]
    return sorted(rows, key=lambda alarm: list(CAUSES).index(alarm["cause"]))


def _alarms(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    failed, unread, answers = scores["failed"], scores.get("unread", 0), scores.get("samples", scores["n"])
    for cause, key, limit in (("truncated", "cut", CUT_SHARE), ("repetition", "loops", LOOP_SHARE)):
        if scores[key] > limit * answers:
            yield cause, f"{percent(scores[key] / answers)} ({count(scores[key])} of {count(answers)})"
    if failed:
        best = min(1.0, scores["accuracy"] + failed / answers)
        counted = f"counted as not correct; accuracy would be at most {percent(best)} with {'it' if failed == 1 else 'them'}"
        yield "failed", f"{failed} of {amount(answers, 'response')}, {'not scored' if scores.get('excluded', 0) > unread else counted}"
    if unread:
        yield "unread", f"{unread} of {amount(answers, 'response')}"


def figure_table(results: Mapping[str, Any], *, whole: bool = False) -> TextTable:
    """The published metrics of a set; for `whole` with the breakdowns."""
    rows = [
        (
            model_name(row["model"]),
            MODES.get(row["mode"], row["mode"]),
            row["by"],
            *([row["group"]] if whole else []),
            row["name"],
            value_cell(row["value"], row["unit"]),
            _interval(row),
            count(row["n"]) + (f" ({count(row['excluded'])} not scored)" if row["excluded"] else ""),
        )
        for row in results["figures"]
        if whole or not row["group"]
    ]
    return ("model", "mode", "graded by", *(["subset"] if whole else []), "metric", "value", "95 % interval", "n"), rows


def main_difference_table(report: Mapping[str, Any]) -> TextTable:
    """Paired comparisons of the main metric of every benchmark."""
    tables = {name: difference_table(results)[1] for name, results in all_sets(report).items()}
    mains = {name: results["figures"][0]["name"] for name, results in all_sets(report).items() if results["figures"]}
    return ("set", *DIFFERENCE_COLUMNS), [(name, *row) for name, rows in tables.items() for row in rows if row[0] == mains[name]]


def sampled_difference_table(report: Mapping[str, Any]) -> TextTable:
    """Paired comparisons of the sampled responses on every set."""
    tables = {name: difference_table(results, "sampled_differences")[1] for name, results in all_sets(report).items()}
    return ("set", *DIFFERENCE_COLUMNS), [(name, *row) for name, rows in tables.items() for row in rows]


def difference_table(results: Mapping[str, Any], key: str = "figure_differences") -> TextTable:
    """Paired comparisons of the published metrics of a set; key "sampled_differences": of its sampled responses."""
    rows = [
        (
            row["name"],
            *(f"{model_name(row[f'model_{side}'])}, {MODES[row[f'mode_{side}']]}" for side in ("a", "b")),
            *(value_cell(row[side], row["unit"]) for side in ("a", "b")),
            *difference_cells(row),
        )
        for row in results[key]
    ]
    return DIFFERENCE_COLUMNS, rows


def difference_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Difference, interval, p and n of a metric of two models."""
    change, *ends = (None if row[name] is None else _signed(row[name], row["unit"]) for name in ("difference", "low", "high"))
    shown = "" if None in ends else " to ".join(map(str, ends))
    return str(change), shown, p_cell(row["p"]), count(row["n"])


def _signed(value: float, unit: str) -> str:
    return points(value / 100) if unit == "%" else f"{value:+.2f}".replace("-", "−")


DIFFERENCE_COLUMNS = ("metric", "A", "B", "A", "B", "Δ (B − A)", "95 % interval", "p", "n")


def value_cell(value: float | None, unit: str) -> str:
    """A metric for people: a percentage, or a score."""
    if value is None:
        return "none"
    return percent(value / 100) if unit == "%" else f"{value:.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"{value_cell(row['low'], row['unit']).removesuffix(UNIT)} to {value_cell(row['high'], row['unit'])}"
