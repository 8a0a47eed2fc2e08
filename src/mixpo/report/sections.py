"""Charts of the pages, made from the report's data. A function returns None or nothing where its part is absent."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from markupsafe import Markup

from mixpo.progress import duration
from mixpo.report.build import DROPPED
from mixpo.report.charts import Dot, Lane, bars, curves, histogram, lanes, stack
from mixpo.report.table import all_sets
from mixpo.report.words import (
    BALANCE,
    MODES,
    ORIGINS,
    OUTCOMES,
    accuracy,
    count,
    count_label,
    domain_name,
    model_name,
    percent,
    points,
    title_case,
)
from mixpo.train.metrics import KL_LIMIT

COLOURS = {"base": 0, "sft": 1, "dpo": 2, "mpo": 3}
MAX_BARS = 24
"""Domains in a chart of bars."""
CURVES = (2, 5, 3, 4, 0, 1)
"""Palette of the curves in one chart."""
SHAPES = {"cot": "full", "direct": "hollow", "sampled": "diamond"}
DIVERGENCE = "Divergence from the reference, nats per token"
METRICS = (
    ("Loss and weighted terms", re.compile("^(loss$|weighted_)")),
    ("Loss terms, unweighted", re.compile("^(preference|quality|generation|hold|replay)$")),
    ("Rewards", re.compile("^reward")),
    ("Reward margin", re.compile("margin")),
    (DIVERGENCE, re.compile("^kl$")),
    ("Degeneration guard", re.compile("^guard_")),
    ("In-training evaluation", re.compile("^watch_(accuracy|loops|cut)$")),
    ("Response length in in-training evaluation", re.compile("^watch_tokens$")),
    ("Reward accuracy", re.compile("accuracy")),
    ("Quality shift δ", re.compile("^delta$")),
    ("Response log-prob", re.compile("^logp_")),
    ("Gradient norm", re.compile("^grad_norm$")),
    ("Learning rate", re.compile("^learning_rate$")),
    ("Memory (GB)", re.compile("^memory$")),
)
"""Training metrics that share a chart, by the first matching pattern and in this order; others have a chart of their own."""
UNDRAWN = {"epoch", "pairs", "tokens", "seconds", "pairs_per_second", "seconds_left", "token_efficiency", "replay_rows", "replay_skipped"}
"""Metrics without a chart; report.json has them."""
LIMITS = {
    DIVERGENCE: {"warning threshold": KL_LIMIT},
    "Rewards": {"log-prob of the reference": 0.0},
}
"""Lines drawn into the charts of training metrics, by title."""
NOTES = {
    DIVERGENCE: "Above the dashed line the policy is far from the model whose responses it learns from.",
    "Rewards": "Below 0 a response is less likely than under the reference. If both curves fall below it, which is the known failure of "
    "preference training, raise train.loss.generation or lower train.learning_rate.",
    "Degeneration guard": "Training stops above the dashed lines (train.guard).",
}
"""A sentence below a chart of training metrics, by title."""
SCALES = {"memory": 1e-9}
"""Factors of drawn values."""


class Chart(NamedTuple):
    """A drawing with its heading and one sentence of explanation."""

    title: str
    drawing: Markup
    note: str = ""


def colour(model: str, models: list[str]) -> int:
    """The palette index of a model: fixed for the usual ones, by position for others."""
    return COLOURS.get(model, 4 + models.index(model) % 2)


# --- results -------------------------------------------------------------------------------------------------------------


def accuracy_chart(models: dict[str, Any]) -> Markup | None:
    """Every model with its modes, dot and interval."""
    rows = []
    for model, modes in models.items():
        tips = {mode: f"{model_name(model)}, {MODES.get(mode, mode)}: {_tip(scores)}" for mode, scores in modes.items()}
        shade = colour(model, list(models))
        dots = [_dot(scores, tips[mode], SHAPES.get(mode, "full"), shade) for mode, scores in modes.items()]
        rows.append(Lane(label=model_name(model), dots=dots))
    return lanes(rows, "Accuracy of each model with its 95 % interval; the table below has the numbers") if rows else None


def domain_chart(models: dict[str, Any], headline: dict[str, Any] | None) -> Markup | None:
    """The base model and the main model in each domain, largest gain first."""
    if headline is None:
        return None
    sides = [(name, models[name][headline["mode"]]["domains"]) for name in (headline["a"], headline["b"])]
    before, after = sides[0][1], sides[1][1]
    order = sorted(after, key=lambda name: before[name]["accuracy"] - after[name]["accuracy"])
    rows = [
        Lane(
            label=domain_name(name),
            note=f"{points(after[name]['accuracy'] - before[name]['accuracy'])}, n = {count(after[name]['n'])}",
            dots=[
                _dot(domains[name], f"{model_name(model)}, {domain_name(name)}: {_tip(domains[name])}", "full", colour(model, list(models)))
                for model, domains in sides
            ],
        )
        for name in order
    ]
    return lanes(rows, "Accuracy of both models in each domain; the table has the numbers") if rows else None


def all_gaps(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Chain of thought minus direct answers, for each set and model; `label` names them."""
    sets = all_sets(report)
    known = [(name, gap) for name, results in sets.items() for gap in results["gaps"]]
    one_set, one_model = len(sets) == 1, len({gap["model"] for _, gap in known}) == 1

    def label(name: str, model: str) -> str:
        return model_name(model) if one_set else name if one_model else f"{name}: {model_name(model)}"

    return [{**gap, "label": label(name, gap["model"])} for name, gap in known]


def gap_chart(gaps: list[dict[str, Any]]) -> Markup | None:
    """The gaps of `all_gaps` with their intervals."""
    names = list(dict.fromkeys(gap["model"] for gap in gaps))
    rows = [
        Lane(
            label=gap["label"],
            dots=[
                Dot(
                    value=gap["difference"],
                    low=gap["low"],
                    high=gap["high"],
                    text=points(gap["difference"]),
                    tip=f"{gap['label']}: {points(gap['difference'])} points ({points(gap['low'])} to {points(gap['high'])})",
                    colour=colour(gap["model"], names),
                )
            ],
        )
        for gap in gaps
    ]
    return lanes(rows, "Accuracy with chain of thought minus accuracy of direct answers, in points", percent_points=True) if rows else None


def _dot(scores: dict[str, Any], tip: str, shape: str, shade: int) -> Dot:
    value, low, high = scores["accuracy"], scores["low"], scores["high"]
    return Dot(value=value, low=low, high=high, text=accuracy(scores), tip=tip, shape=shape, colour=shade)


def _tip(scores: dict[str, Any]) -> str:
    text = f"{accuracy(scores)}, 95 % interval {scores['low'] * 100:.1f} to {scores['high'] * 100:.1f}"
    return f"{text} ({count(scores['correct'])} of {count(scores.get('samples', scores['n']))})" if "correct" in scores else text


# --- pairs ---------------------------------------------------------------------------------------------------------------


def share_charts(pairs: dict[str, Any]) -> list[Chart]:
    """Bars cut into shares: origins of the pairs, verdicts of the answers, balance of the questions."""
    charts = (
        _shares(
            "Origin of the pairs",
            {origin: number for origin, number in (pairs.get("origins") or {}).items() if number},
            ORIGINS,
            (2, 0, 4, 3, 1),
            "In a DropoutNTP pair the rejected response was completed without the image.",
        ),
        _shares(
            "Verdicts on the sampled responses",
            pairs.get("verdicts") or {},
            OUTCOMES,
            (3, 5, 1, 0),
            "Undecided responses are never used as rejected.",
        ),
        balance_chart(pairs),
    )
    return [chart for chart in charts if chart is not None]


def balance_chart(pairs: dict[str, Any]) -> Chart | None:
    """Questions by how many of their decided responses are right."""
    note = "By decided responses. Only questions with both right and wrong responses give correctness pairs."
    return _shares("Difficulty of the questions", pairs, BALANCE, (3, 2, 5, 0), note)


def _shares(title: str, counts: dict[str, Any], names: dict[str, str], colours: tuple[int, ...], note: str) -> Chart | None:
    if not any(counts.get(key) for key in names):
        return None
    parts = [(names[key], counts[key], c) for key, c in zip(names, colours, strict=True) if key in counts]
    return Chart(title, stack(parts, title), note)


def histograms(pairs: dict[str, Any]) -> list[Chart]:
    """Lengths of both sides, their ratio, and the length of their shared prefix."""
    lengths, ratio, shared = ((pairs.get(key) or {}) for key in ("lengths", "length_ratio", "shared_prefix"))
    sides = {side: lengths.get(side) for side in ("chosen", "rejected")}
    uneven = "A gap between both would teach length instead of quality."
    wanted = (
        ("Length of both sides", lengths, sides, "tokens", 2, uneven),
        (
            "Length ratio",
            ratio,
            {"pairs": ratio.get("counts")},
            "chosen tokens / rejected tokens",
            4,
            "Around 1, length does not tell the sides apart.",
        ),
        ("Shared-prefix length", shared, {"pairs": shared.get("counts")}, "share of the shorter side", 1, "Tokens both sides begin with."),
    )
    return [
        Chart(title, histogram(bins["edges"], series, unit, title, colour), note)
        for title, bins, given, unit, colour, note in wanted
        if (series := {name: counts for name, counts in given.items() if counts and any(counts)})
    ]


def sampled_domain_chart(pairs: dict[str, Any]) -> Chart | None:
    """Accuracy of the sampled responses, by domain."""
    accuracies = {domain_name(name): d["accuracy"] for name, d in (pairs.get("domains") or {}).items() if d.get("accuracy") is not None}
    return domain_bars(accuracies, "Accuracy of the sampled responses by domain")


def domain_bars(shares: dict[str, float], title: str) -> Chart | None:
    """Shares by domain, best first; of many domains only the best and the worst, and the note says so."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    note, half = "", MAX_BARS // 2
    if len(ranked) > MAX_BARS:
        note, ranked = f"The {half} best and the {half} worst of {count(len(ranked))} domains.", [*ranked[:half], *ranked[-half:]]
    return Chart(title, bars([(name, share, percent(share)) for name, share in ranked], title, colour=3), note) if ranked else None


def drop_chart(pairs: dict[str, Any]) -> Markup | None:
    """Filtered candidates, by reason."""
    drops = {reason: number for reason, number in (pairs.get("drops") or {}).items() if number}
    ranked = sorted(drops.items(), key=lambda item: -item[1])
    return bars([(reason, number, count(number)) for reason, number in ranked], "Filtered, by reason", colour=5) if ranked else None


def source_table(pairs: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the statistics of each source, those with most pairs first. Origins without any pair have no column."""
    ranked = sorted((pairs.get("sources") or {}).items(), key=lambda item: (-item[1]["pairs"], item[0]))
    origins = [origin for origin in ORIGINS if any(row.get(origin) for _, row in ranked)]
    columns = ("source", "questions", "with pairs", "accuracy", "pairs", *(ORIGINS[o] for o in origins), "chosen tokens", "rejected tokens")
    rows = [
        (
            name or "(none)",
            *(count(row[key]) for key in ("questions", "with_pairs")),
            percent(row["accuracy"]) if row["accuracy"] is not None else "–",
            *(count(row.get(key, 0)) for key in ("pairs", *origins)),
            *(f"{row[key]:.1f}" if row[key] is not None else "–" for key in ("chosen_mean", "rejected_mean")),
        )
        for name, row in ranked
    ]
    return columns, rows


def pairs_lead(pairs: dict[str, Any]) -> str:
    """Where the pairs come from, in one sentence."""
    origins = {origin for origin, number in (pairs.get("origins") or {}).items() if number}
    if origins == {"imported"}:
        return "Imported as they are; the model that is trained did not sample them, and nothing verified them here."
    made = "Made from sampled responses of the model itself, without human ranking"
    return f"{made}, and beside them pairs that were imported as they are." if "imported" in origins else f"{made}."


def pair_facts(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    """Single numbers about the pairs and the responses they were made from: (value, label)."""
    answers, rejected = ((pairs.get(key) or {}) for key in ("answers", "rejected"))
    facts = [
        (pairs.get("pairs"), count, "pairs"),
        (pairs.get("with_pairs"), count, f"of {count(pairs.get('questions') or 0)} questions have pairs"),
        (pairs.get("pairs_per_question"), lambda v: f"{v:.1f}", "pairs per such question"),
        (rejected.get("longer_share"), percent, "of pairs have a longer rejected side"),
        (answers.get("duplicate_share"), percent, "of responses are duplicates"),
        (answers.get("length_share"), percent, "of responses are truncated"),
        *((tokens, count, f"tokens generated per pair: {ORIGINS[kind]}") for kind, tokens in (pairs.get("tokens_per_pair") or {}).items()),
    ]
    return [(write(value), what) for value, write, what in facts if value is not None]


# --- training and time -----------------------------------------------------------------------------------------------------


def training_charts(run: dict[str, Any], guard: dict[str, Any] | None = None) -> list[Chart]:
    """The curves of one trained model, related metrics in one chart. Terms that an objective does not have (always 0) are omitted.

    guard: the settings of `train.guard`, for its limits.
    """
    guarded = {key: guard[key] for key in ("max_unparsable", "max_loops", "max_truncated")} if guard else {}
    limits = {**LIMITS, "Degeneration guard": guarded}
    groups: dict[str, dict[str, Any]] = {}
    for name, values in run["curves"].items():
        if name in UNDRAWN or not any(values):
            continue
        title = next((title for title, pattern in METRICS if pattern.search(name)), title_case(name))
        scale = SCALES.get(name)
        groups.setdefault(title, {})[name.replace("_", " ")] = [v if v is None or scale is None else v * scale for v in values]
    order = [title for title, _ in METRICS]
    ranked = sorted(groups.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    return [
        Chart(title, _curves(run["steps"], series, title, limits.get(title, {})), NOTES.get(title, ""))
        for title, series in ranked
        if run["steps"]
    ]


def _curves(steps: list[float], series: dict[str, Any], title: str, limits: dict[str, float]) -> Markup:
    return curves(*_known(steps, series), f"{title} by step", [CURVES[n % len(CURVES)] for n in range(len(series))], limits)


def _known(steps: list[float], series: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """Without the steps at which nothing was measured, so that rare measurements are still joined by a line."""
    kept = [number for number in range(len(steps)) if any(values[number] is not None for values in series.values())]
    return [steps[number] for number in kept], {name: [values[number] for number in kept] for name, values in series.items()}


def time_chart(timings: dict[str, float]) -> Markup | None:
    """Seconds of each stage as bars; the many parts of stages outside the rounds ("evaluate/set/model/mode") are added up."""
    sums: dict[str, float] = {}
    for name, seconds in timings.items():
        stage = name if name.startswith("round-") else name.partition("/")[0]
        sums[stage] = sums.get(stage, 0.0) + seconds
    return bars([(name, seconds, duration(seconds)) for name, seconds in sums.items()], "Time of each stage") if sums else None


def shown_counts(counts: dict[str, dict[str, int]]) -> dict[str, list[tuple[str, str]]]:
    """The output of each stage as text, without evaluations and filtered items, which have tables of their own."""
    return {
        stage: [(count_label(name, value), count(value)) for name, value in of_stage.items() if not name.startswith(DROPPED)]
        for stage, of_stage in counts.items()
        if of_stage and not stage.startswith(("answer/", "evaluate/"))
    }
