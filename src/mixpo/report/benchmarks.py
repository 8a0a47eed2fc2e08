"""The parts of the report that concern benchmarks: their own figures, and alarms about answers that are cut, in circles or missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixpo.evaluate.benchmarks import BENCHMARKS, facts_of
from mixpo.evaluate.marking import marked
from mixpo.records import Prediction
from mixpo.report.data import ReportData
from mixpo.report.words import MODES, model_name, percent

CUT_SHARE = 0.05
"""A larger share of answers cut at the length limit is an alarm: what is cut has no final answer."""
LOOP_SHARE = 0.01
"""A larger share of answers that end in a repeated phrase is an alarm."""

Modes = Mapping[str, Sequence[Prediction]]


def benchmark_part(name: str, models: Mapping[str, Modes], data: ReportData) -> dict[str, Any]:
    """`benchmark`: its title, "" for other sets; `figures`: one entry for each figure of each model and mode."""
    known = [
        data.questions[row.question]
        for modes in models.values()
        for rows in modes.values()
        for row in rows[:1]
        if row.question in data.questions
    ]
    names = {facts_of(question).get("benchmark", "") for question in known}
    if len(names) != 1 or not (found := names.pop()):
        return {"benchmark": "", "figures": []}
    return {"benchmark": BENCHMARKS[found].title, "figures": list(_figures(name, found, models, data))}


def _figures(set_name: str, name: str, models: Mapping[str, Modes], data: ReportData) -> Iterator[dict[str, Any]]:
    """By the recipe's extractor, and by the other one where that changes an outcome; or by the judge."""
    for model, modes in models.items():
        for mode, rows in modes.items():
            # Figures over a part of a benchmark would not be its figures.
            if mode == "sampled" or any(row.question not in data.questions for row in rows):
                continue
            manifest = data.manifests.get(f"evaluate/{set_name}/{model}/{mode}")
            chosen = str(manifest.settings.get("extractor", "robust")) if manifest else "robust"
            others = ["paper" if chosen == "robust" else "robust"] if any(row.other and row.other != row.outcome for row in rows) else []
            judges = ", ".join(sorted({row.judge for row in rows if row.judge}))
            for number, by in enumerate([f"judge {judges}" if judges else chosen, *others]):
                answered = [marked(row, data.questions[row.question], other=number == 1) for row in rows]
                for figure in BENCHMARKS[name].table(answered):
                    yield {"model": model, "mode": mode, "by": by, **asdict(figure)}


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
    failed, answers = scores["failed"], scores.get("samples", n)
    if failed:
        best = min(1.0, scores["accuracy"] + failed / answers)
        how = "count nowhere" if "excluded" in scores else f"count as not correct (were they right, accuracy would be {percent(best)})"
        yield f"{failed} of {answers} answers never came, because the engine failed, and {how}; `mixpo retry RUN` asks for them again"
    if unread := scores.get("excluded", 0) - (failed if "excluded" in scores else 0):
        yield f"{unread} answers have no mark, because the judge's replies could not be read, and count nowhere"


def figure_rows(found: Mapping[str, Any], *, whole: bool) -> list[tuple[str, ...]]:
    """Text cells under FIGURE_COLUMNS; `whole` includes the breakdowns."""
    return [
        (model_name(row["model"]), MODES.get(row["mode"], row["mode"]), row["by"], *([row["group"]] if whole else []), row["name"],
         _value(row["value"], row["unit"]), _interval(row), f"{row['n']:,}" + (f" ({row['excluded']} left out)" if row["excluded"] else ""))
        for row in found["figures"]
        if whole or not row["group"]
    ]  # fmt: skip


FIGURE_COLUMNS = ("model", "answers", "read by", "figure", "value", "95 % interval", "n")
BREAKDOWN_COLUMNS = ("model", "answers", "read by", "part", "figure", "value", "95 % interval", "n")


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    return percent(value / 100) if unit == "%" else f"{value:.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"{_value(row['low'], row['unit']).removesuffix(' %')} to {_value(row['high'], row['unit'])}"
