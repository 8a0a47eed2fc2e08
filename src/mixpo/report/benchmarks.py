"""The parts of the report that concern benchmarks: their own figures, and alarms about answers that are cut, in circles or missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixpo.evaluate.benchmarks import BENCHMARKS, facts_of
from mixpo.evaluate.benchmarks.metrics import differences, table
from mixpo.evaluate.grading import marked
from mixpo.plural import amount
from mixpo.records import Prediction
from mixpo.report.data import ReportData
from mixpo.report.words import MODES, UNIT, count, model_name, p_cell, percent, points

CUT_SHARE = 0.05
"""A larger share of answers cut at the length limit is an alarm: what is cut has no final answer."""
LOOP_SHARE = 0.01
"""A larger share of answers that end in a repeated phrase is an alarm."""

Modes = Mapping[str, Sequence[Prediction]]


Side = tuple[str, str]
"""A model and a mode."""


def benchmark_part(name: str, models: Mapping[str, Modes], pairs: Sequence[tuple[Side, Side]], data: ReportData) -> dict[str, Any]:
    """`benchmark`: its title, "" for other sets; `figures`: one entry for each figure of each model and mode; `figure_differences`."""
    known = [
        data.questions[row.question]
        for modes in models.values()
        for rows in modes.values()
        for row in rows[:1]
        if row.question in data.questions
    ]
    names = {facts_of(question).get("benchmark", "") for question in known}
    if len(names) != 1 or not (found := names.pop()):
        return {"benchmark": "", "figures": [], "figure_differences": []}
    return {
        "benchmark": BENCHMARKS[found].title,
        "figures": list(_figures(name, found, models, data)),
        "figure_differences": figure_differences(found, models, pairs, data),
    }


def _figures(set_name: str, name: str, models: Mapping[str, Modes], data: ReportData) -> Iterator[dict[str, Any]]:
    """By the recipe's extractor, and by each other one where that changes an outcome; or by the judge."""
    for model, mode, rows in _whole(models, data):
        manifest = data.manifests.get(f"evaluate/{set_name}/{model}/{mode}")
        chosen = str(manifest.settings.get("extractor", "robust")) if manifest else "robust"
        differing = {other.extractor for row in rows for other in row.others if other.outcome != row.outcome}
        for extractor in ["", *(rule for rule in BENCHMARKS[name].rules if rule in differing)]:
            answered = [marked(row, data.questions[row.question], extractor) for row in rows]
            for figure in table(BENCHMARKS[name], answered):
                yield {"model": model, "mode": mode, "by": extractor or _reader(chosen, rows), **asdict(figure)}


def _whole(models: Mapping[str, Modes], data: ReportData) -> Iterator[tuple[str, str, Sequence[Prediction]]]:
    """Greedy answers whose questions are all known: figures over a part of a benchmark would not be its figures."""
    for model, modes in models.items():
        for mode, rows in modes.items():
            if mode != "sampled" and all(row.question in data.questions for row in rows):
                yield model, mode, rows


def _reader(extractor: str, rows: Sequence[Prediction]) -> str:
    """Who read or marked the answers: the extractor, or the judge with its version and the digest of its prompt."""
    judges = ", ".join(sorted({row.judge for row in rows if row.judge}))
    if extractor == "judge":
        return f"extracted by judge {judges}" if judges else "judge (no answer needed it)"
    return f"judge {judges}" if judges else extractor


def figure_differences(
    name: str, models: Mapping[str, Modes], pairs: Sequence[tuple[Side, Side]], data: ReportData
) -> list[dict[str, Any]]:
    """Paired comparisons of the published figures; pairs: which (model, mode) is compared with which."""
    known = {(model, mode): rows for model, mode, rows in _whole(models, data)}
    found = []
    for a, b in pairs:
        if a in known and b in known:
            left, right = ([marked(row, data.questions[row.question]) for row in known[side]] for side in (a, b))
            found += [
                {"model_a": a[0], "mode_a": a[1], "model_b": b[0], "mode_b": b[1], **asdict(row)}
                for row in differences(BENCHMARKS[name], left, right)
            ]
    return found


def alarms(sets: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """One entry for each set, model and mode with too many answers cut or in circles, or with any that never came or has no mark."""
    return [
        {"set": name, "model": model, "mode": mode, "text": text}
        for name, models in sets.items()
        for model, modes in models.items()
        for mode, scores in modes.items()
        for text in _alarms(scores)
    ]


def _alarms(scores: Mapping[str, Any]) -> Iterator[str]:
    n = scores["n"]
    if scores.get("cut", 0) > CUT_SHARE * n:
        yield f"{percent(scores['cut'] / n)} of the answers were cut at the length limit; raise evaluate.max_new_tokens, or look at them"
    if scores.get("loops", 0) > LOOP_SHARE * n:
        yield f"{percent(scores['loops'] / n)} of the answers end in a phrase repeated over and over; the model may have degenerated"
    failed, unread, answers = scores["failed"], scores.get("unread", 0), scores.get("samples", n)
    if failed:
        best = min(1.0, scores["accuracy"] + failed / answers)
        once, they = ("s", "it") if failed == 1 else ("", "they")
        counted = f"count{once} as not correct (were {they} right, accuracy would be {percent(best)})"
        how = f"count{once} nowhere" if scores.get("excluded", 0) > unread else counted
        why = "because the engine failed or an image is broken"
        yield f"{failed} of {amount(answers, 'answer')} never came, {why}, and {how}; `mixpo retry RUN` asks again"
    if unread:
        said = "reply" if unread == 1 else "replies"
        counts = amount(unread, "answer counts", "answers count")
        look = "look in the predictions, or ask the judge again with `mixpo retry RUN`"
        yield f"{counts} nowhere, because the judge's {said} could not be read; {look}"


def figure_rows(found: Mapping[str, Any], *, whole: bool) -> list[tuple[str, ...]]:
    """Text cells under FIGURE_COLUMNS, or with the breakdowns under BREAKDOWN_COLUMNS for `whole`."""
    return [
        (
            model_name(row["model"]),
            MODES.get(row["mode"], row["mode"]),
            row["by"],
            *([row["group"]] if whole else []),
            row["name"],
            value_cell(row["value"], row["unit"]),
            _interval(row),
            count(row["n"]) + (f" ({count(row['excluded'])} left out)" if row["excluded"] else ""),
        )
        for row in found["figures"]
        if whole or not row["group"]
    ]


def main_difference_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Text cells under MAIN_DIFFERENCE_COLUMNS: the main published figure of every benchmark."""
    return [
        (name, *cells)
        for name, found in {report["set"]: report, **report["sets"]}.items()
        for cells in difference_rows(found)
        if cells[0] == found["figures"][0]["name"]
    ]


def difference_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Text cells under DIFFERENCE_COLUMNS."""
    return [
        (
            row["name"],
            *(f"{model_name(row[f'model_{side}'])}, {MODES[row[f'mode_{side}']]}" for side in ("a", "b")),
            *(value_cell(row[side], row["unit"]) for side in ("a", "b")),
            *difference_cells(row),
        )
        for row in found["figure_differences"]
    ]


def difference_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Difference, interval, p and n of a figure of two models."""
    change, *ends = (None if row[name] is None else _signed(row[name], row["unit"]) for name in ("difference", "low", "high"))
    shown = "" if None in ends else " to ".join(map(str, ends))
    return str(change), shown, p_cell(row["p"]), count(row["n"])


def _signed(value: float, unit: str) -> str:
    return points(value / 100) if unit == "%" else f"{value:+.2f}".replace("-", "−")


DIFFERENCE_COLUMNS = ("figure", "A", "B", "of A", "of B", "B minus A", "95 % interval", "p", "n")
MAIN_DIFFERENCE_COLUMNS = ("set", *DIFFERENCE_COLUMNS)
FIGURE_COLUMNS = ("model", "answers", "read by", "figure", "value", "95 % interval", "n")
BREAKDOWN_COLUMNS = ("model", "answers", "read by", "part", "figure", "value", "95 % interval", "n")


def value_cell(value: float | None, unit: str) -> str:
    """A figure for people: a percentage, or a mark."""
    if value is None:
        return "none"
    return percent(value / 100) if unit == "%" else f"{value:.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"{value_cell(row['low'], row['unit']).removesuffix(UNIT)} to {value_cell(row['high'], row['unit'])}"
