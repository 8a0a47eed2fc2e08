"""The report as data: `build` turns the results of a run into the content of report.json (see docs/report.md); the page only formats it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixpo.evaluate.predictions import NO_ROW
from mixpo.evaluate.sampled import Questions, sample_differences, score_samples
from mixpo.evaluate.score import Clusters, comparable, compare, score
from mixpo.evaluate.statistics import cluster_of
from mixpo.evaluate.yes_no import gold_of, yes_no
from mixpo.records import ANSWERED_BY, Prediction
from mixpo.report.benchmarks import Side, alarms, benchmark_part
from mixpo.report.data import ReportData
from mixpo.report.words import drop_text, drop_unit
from mixpo.run import Manifest
from mixpo.types import Pair, Question, Skipped

VERSION = 1
"""Version of report.json; it rises when a key changes its meaning or goes away."""
GAINED, LOST = 4, 2
"""Questions shown that the main model newly answers right, and newly wrong."""
PLACES = 3
"""Places named for rows that were filtered for the same reason."""

DROPPED = "dropped: "
"""Prefix of the counts of filtered items in a manifest."""
ALPHA = 0.05
"""A difference is called a gain or a loss when its interval excludes zero and p is below this."""

Modes = Mapping[str, Sequence[Prediction]]


def build(data: ReportData) -> dict[str, Any]:
    """Score, compare and gather. The result is plain JSON (no NaN). Raises EvaluateError where models answered different questions."""
    sets = _by_set(data)
    first = next(iter(sets), "")
    own = [name for name in sets.get(first, {}) if name not in data.served]
    main = data.main if data.main in own else next(reversed(own), "")
    clusters = {question.id: cluster_of(question) for question in data.questions.values()}
    built = {
        name: _set(models, main, data, clusters) | benchmark_part(name, models, _sides(models, main), data) for name, models in sets.items()
    }
    report_sets = {name: results["models"] for name, results in built.items()}
    report = {
        "version": VERSION,
        "title": data.title,
        "created": data.created,
        "seed": data.seed,
        "set": first,
        **built.pop(first, _set({}, "", data, {}) | benchmark_part("", {}, [], data)),
        "sets": built,
        "headline": _headline(sets.get(first, {}), main, clusters),
        "alarms": alarms(report_sets, {key for key, rows in data.predictions.items() if any(row.reason == NO_ROW for row in rows)}),
        "unfinished": list(data.unfinished),
        "served": {name: _versions(name, data.manifests) for name in data.served},
        "text": [dict(row) for row in data.text],
        "counts": {name: dict(manifest.counts) for name, manifest in data.manifests.items()},
        "timings": {name: round(manifest.seconds, 3) for name, manifest in data.manifests.items()},
        "pairs": dict(data.statistics),
        "trained": dict(data.models),
        "training": {arm: metric_curves(rows) for arm, rows in data.training.items()},
        "dropped": [*skipped_rows(data.skipped), *filtered_counts(data.manifests)],
        "examples": [_example(question, pair) for question, pair in data.examples],
        "changes": _changes(sets.get(first, {}), main, data.questions),
        "settings": dict(data.recipe),
        "versions": dict(data.versions),
    }
    result: dict[str, Any] = plain(report)
    return result


def _by_set(data: ReportData) -> dict[str, dict[str, dict[str, Sequence[Prediction]]]]:
    """set -> model -> mode -> predictions, without the empty ones, in the order given."""
    sets: dict[str, dict[str, dict[str, Sequence[Prediction]]]] = {}
    for (name, model, mode), rows in data.predictions.items():
        if rows:
            sets.setdefault(name, {}).setdefault(model, {})[mode] = rows
    return sets


# --- scores --------------------------------------------------------------------------------------------------------------


def _set(models: Mapping[str, Modes], main: str, data: ReportData, clusters: Clusters) -> dict[str, Any]:
    # A benchmark has figures of its own, by its own rules for what is no clear yes or no.
    own = [question for question in data.questions.values() if not question.facts]
    gold = {question.id: answer for question in own if (answer := gold_of(question)) is not None}
    return {
        "models": {
            name: {mode: _scores(mode, rows, gold, clusters, data.questions) for mode, rows in modes.items()}
            for name, modes in models.items()
        },
        "comparisons": [
            {"a": a, "b": b, "mode": mode, **_compared(models[a][mode], models[b][mode], clusters)}
            for (a, mode), (b, _) in _pairs(models, main)
        ],
        "gaps": [{"model": name, **_compared(models[name]["direct"], models[name]["cot"], clusters)} for (name, _), _ in _gaps(models)],
        "sampled_differences": [
            {"model_a": a, "mode_a": mode, "model_b": b, "mode_b": mode, **asdict(row)}
            for (a, mode), (b, _) in _pairs(models, main, ("sampled",))
            for row in sample_differences(models[a][mode], models[b][mode], clusters, data.questions)
        ],
    }


def _scores(mode: str, rows: Sequence[Prediction], gold: Mapping[str, str], clusters: Clusters, questions: Questions) -> dict[str, Any]:
    result = asdict(score_samples(rows, clusters, questions) if mode == "sampled" else score(rows, clusters))
    for domain in result.get("domains", {}).values():
        del domain["domains"], domain["excluded"], domain["unread"]
    if not any(row.judge for row in rows):
        del result["excluded"], result["unread"]
    if mode == "sampled":
        return result
    asked = {row.question: gold[row.question] for row in rows if row.question in gold}
    return {**result, "yes_no": _yes_no(rows, asked, clusters)} if asked else result


def _yes_no(rows: Sequence[Prediction], gold: Mapping[str, str], clusters: Clusters) -> dict[str, Any]:
    result = asdict(yes_no(rows, gold, clusters))
    for domain in result["domains"].values():
        del domain["domains"]
    return result


def _sides(models: Mapping[str, Modes], main: str) -> list[tuple[Side, Side]]:
    """What is compared with what: models in the same mode, and the two modes of a model."""
    return [*_pairs(models, main), *_gaps(models)]


def _gaps(models: Mapping[str, Modes]) -> Iterator[tuple[Side, Side]]:
    """Direct answers and chains of thought of each model that has both."""
    for name, modes in models.items():
        if {"direct", "cot"} <= modes.keys() and comparable(modes["direct"], modes["cot"]):
            yield (name, "direct"), (name, "cot")


def _pairs(models: Mapping[str, Modes], main: str, modes: Sequence[str] = ("cot", "direct")) -> Iterator[tuple[Side, Side]]:
    """The base model and every other one, then every other model and the main one, in each mode."""
    others = [name for name in models if name != "base"]
    pairs = [("base", name) for name in others if "base" in models]
    pairs += [(name, main) for name in others if name != main and main in others]
    for a, b in pairs:
        for mode in modes:
            if mode in models[a] and mode in models[b] and comparable(models[a][mode], models[b][mode]):
                yield (a, mode), (b, mode)


def _compared(a: Sequence[Prediction], b: Sequence[Prediction], clusters: Clusters) -> dict[str, Any]:
    """A comparison with its verdict: a difference counts only when interval and test agree on it."""
    result = compare(a, b, clusters)
    sure = result.p < ALPHA
    return {**asdict(result), "verdict": "gain" if sure and result.low > 0 else "loss" if sure and result.high < 0 else "unclear"}


def _headline(models: Mapping[str, Modes], main: str, clusters: Clusters) -> dict[str, Any] | None:
    """The main model vs. the base model, with chain of thought where both have it."""
    mode = _headline_mode(models, main)
    if mode is None:
        return None
    before, after = score(models["base"][mode]), score(models[main][mode])
    result = _compared(models["base"][mode], models[main][mode], clusters)
    return {"a": "base", "b": main, "mode": mode, "before": before.accuracy, "after": after.accuracy, **result}


def _headline_mode(models: Mapping[str, Modes], main: str) -> str | None:
    if main == "base" or main not in models or "base" not in models:
        return None
    both = [mode for mode in ("cot", "direct") if mode in models["base"] and mode in models[main]]
    return next((mode for mode in both if comparable(models["base"][mode], models[main][mode])), None)


def _versions(model: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """Names that the servers of `model` report for it."""
    counts = [m.counts for stage, m in manifests.items() if stage.startswith("answer/") and stage.split("/")[2] == model]
    return sorted({key.removeprefix(ANSWERED_BY) for of_stage in counts for key in of_stage if key.startswith(ANSWERED_BY)})


# --- what is shown ---------------------------------------------------------------------------------------------------------


def _example(question: Question, pair: Pair) -> dict[str, Any]:
    """A pair with its question; of the token ids only their number."""
    return {
        "question": _question(question),
        "id": pair.id,
        "origin": pair.origin,
        "cut": pair.cut,
        "provenance": pair.provenance,
        "chosen": _side(pair.chosen, pair.chosen_answer, pair.chosen_index, len(pair.chosen_ids)),
        "rejected": _side(pair.rejected, pair.rejected_answer, pair.rejected_index, len(pair.rejected_ids)),
    }


def _side(text: str, answer: str | None, index: int, tokens: int) -> dict[str, Any]:
    return {"text": text, "answer": answer, "index": index, "tokens": tokens}


def _question(question: Question) -> dict[str, Any]:
    kept = ("id", "text", "answer", "choices", "kind", "domain", "source")
    history = {"history": [asdict(turn) for turn in question.history]} if question.history else {}
    return {**{key: getattr(question, key) for key in kept}, "images": [asdict(image) for image in question.images], **history}


def _changes(models: Mapping[str, Modes], main: str, questions: Mapping[str, Question]) -> list[dict[str, Any]]:
    """Questions on which the base model and the main model differ: a few newly right, fewer newly wrong, spread over the domains."""
    mode = _headline_mode(models, main)
    if mode is None:
        return []
    before = {row.question: row for row in models["base"][mode]}
    after = {row.question: row for row in models[main][mode]}
    known = [q for q in sorted(before) if q in questions and before[q].outcome != after[q].outcome]
    gained = _by_turns([q for q in known if after[q].outcome == "correct"], questions, GAINED)
    lost = _by_turns([q for q in known if before[q].outcome == "correct"], questions, LOST)
    return [
        {"change": change, "question": _question(questions[q]), "before": _answer(before[q]), "after": _answer(after[q])}
        for change, names in (("gained", gained), ("lost", lost))
        for q in names
    ]


def _by_turns(names: Sequence[str], questions: Mapping[str, Question], count: int) -> list[str]:
    """The first `count` names, taking one from each domain in turn."""
    turn: dict[str, int] = defaultdict(int)
    ranked: list[tuple[int, int, str]] = []
    for name in names:
        domain = questions[name].domain
        ranked.append((turn[domain], len(ranked), name))
        turn[domain] += 1
    return [name for _, _, name in sorted(ranked)[:count]]


def _answer(row: Prediction) -> dict[str, Any]:
    return {"text": row.text, "outcome": row.outcome, "extracted": row.extracted, "reason": row.reason}


# --- the rest ---------------------------------------------------------------------------------------------------------------


def metric_curves(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Columns from logged rows; a metric that a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    steps = [row.get("step", number) for number, row in enumerate(rows, start=1)]
    return {"steps": steps, "curves": {name: [row.get(name) for row in rows] for name in names}}


def skipped_rows(skipped: Iterable[Skipped]) -> list[dict[str, Any]]:
    """Filtered rows and failed questions, grouped by stage and reason: their number, and the first places."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in skipped:
        groups[row.stage, row.reason].append(row.where)
    return [
        {"stage": stage, "where": ", ".join(filter(None, places[:PLACES])), "reason": reason, "count": len(places), "unit": _unit(stage)}
        for (stage, reason), places in groups.items()
    ]


def _unit(stage: str) -> str:
    """What a stage filters: sources rows, others questions."""
    if stage.rpartition("/")[2] in ("source", "preferences"):
        return "rows"
    return "questions"


def filtered_counts(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """What later stages filtered: their counts named "dropped: reason"."""
    return [
        {"stage": stage, "where": "", "reason": drop_text(name), "name": name, "count": number, "unit": drop_unit(name)}
        for stage, manifest in manifests.items()
        for key, number in manifest.counts.items()
        if number and (name := key.removeprefix(DROPPED)) != key
    ]


def plain(value: Any) -> Any:
    """JSON types only: tuples become lists, numbers that JSON cannot hold become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
