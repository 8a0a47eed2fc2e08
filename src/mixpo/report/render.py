"""The page: report.json in, one self-contained HTML text out. No script, no network; everything from data and models is escaped.

The template escapes by default, and the page's own policy forbids whatever is not in it: default-src 'none'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mixpo.plural import amount
from mixpo.progress import duration
from mixpo.report import sections, words
from mixpo.report.benchmarks import CAUSES, difference_table, figure_table, sampled_difference_table
from mixpo.report.images import EmbeddedImage, picture
from mixpo.report.table import all_sets, filled_table, gap_table, sampled_table, text_table, yes_no_table
from mixpo.report.text_diff import difference
from mixpo.types import IMAGE_TOKEN, ImageRef

MAX_LISTED = 100
"""Filtered rows that are listed; report.json has all."""

MAX_ALARMS = 4
"""Alarms of one cause that are not folded."""


FILTERS = (
    "percent", "points", "p_value", "p_cell", "interval", "count", "moment", "model_name", "title_case", "domain_name", "sides",
)  # fmt: skip
"""Functions of `mixpo.report.words` that the page uses."""


def render(report: dict[str, Any]) -> str:
    """The page of a report made by `build`. Images of the examples are read from their files; a missing one is shown as such."""
    return environment().get_template("page.html").render(report=report, words=words, **_context(report))


@cache
def environment(*packages: str) -> Environment:
    """Templates of mixpo.report and of other packages, with its filters and style; they escape by default."""
    loader = ChoiceLoader([PackageLoader(package, ".") for package in ("mixpo.report", *packages)])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {name: getattr(words, name) for name in FILTERS}
    made.filters |= {"groups": _groups, "amount": amount, "duration": duration}
    made.globals["style"] = Markup(loader.get_source(made, "page.css")[0])
    return made


def _groups(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[Any, list[Mapping[str, Any]]]]:
    """Rows in groups of equal values of a key, in their order."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())


def _context(report: dict[str, Any]) -> dict[str, Any]:
    models, headline = report["models"], report["headline"]
    guard = (report["settings"].get("train") or {}).get("guard")
    return {
        "summary": filled_table(report),
        "tables": {name: filled_table(report, name) for name in report["sets"]},
        "accuracy_chart": sections.accuracy_chart(models),
        "set_charts": {name: sections.accuracy_chart(results["models"]) for name, results in report["sets"].items()},
        "domain_chart": sections.domain_chart(models, headline),
        "domain_rows": _domain_rows(models, headline),
        "comparisons": report["comparisons"],
        "causes": CAUSES,
        "has_places": any(row["where"] for row in report["dropped"]),
        "gap_chart": sections.gap_chart(sections.all_gaps(report)),
        "gaps": gap_table(report),
        "figures": _figures(report),
        "sampled": sampled_table(report),
        "sampled_differences": sampled_difference_table(report),
        "yes_no": yes_no_table(report),
        "text": text_table(report),
        "changes": [_change(change) for change in report["changes"]],
        "pair_facts": sections.pair_facts(report["pairs"]),
        "share_charts": sections.share_charts(report["pairs"]),
        "histograms": sections.histograms(report["pairs"]),
        "sampled_domain_chart": sections.sampled_domain_chart(report["pairs"]),
        "pairs_lead": sections.pairs_lead(report["pairs"]),
        "sources": sections.source_table(report["pairs"]),
        "drop_chart": sections.drop_chart(report["pairs"]),
        "examples": [_example(example) for example in report["examples"]],
        "training": {arm: (run, sections.training_charts(run, guard)) for arm, run in report["training"].items()},
        "time_chart": sections.time_chart(report["timings"]),
        "counts": sections.shown_counts(report["counts"]),
        "total_time": sum(report["timings"].values()),
        "settings": list(_flat(report["settings"])),
        "max_listed": MAX_LISTED,
        "max_alarms": MAX_ALARMS,
        "colour": sections.colour,
    }


def _figures(report: dict[str, Any]) -> list[tuple[str, str, Any, Any, Any]]:
    """(set, benchmark, published metrics, with breakdowns, comparisons) of every set that is a benchmark."""
    return [
        (name, results["benchmark"], figure_table(results), figure_table(results, whole=True), difference_table(results))
        for name, results in all_sets(report).items()
        if results.get("figures")
    ]


def _domain_rows(models: dict[str, Any], headline: dict[str, Any] | None) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    if headline is None:
        return []
    before, after = (models[headline[side]][headline["mode"]]["domains"] for side in ("a", "b"))
    return [(name, before[name], after[name]) for name in after]


# --- examples ------------------------------------------------------------------------------------------------------------


def _example(example: dict[str, Any]) -> dict[str, Any]:
    kept = bool(example["cut"])
    chosen, rejected = difference(example["chosen"]["text"], example["rejected"]["text"], kept=kept)
    return {**example, **_shown(example["question"]), "chosen_pieces": chosen, "rejected_pieces": rejected}


def _change(change: dict[str, Any]) -> dict[str, Any]:
    before, after = difference(change["before"]["text"], change["after"]["text"])
    return {**change, **_shown(change["question"]), "before_pieces": before, "after_pieces": after}


def _shown(question: dict[str, Any]) -> dict[str, Any]:
    pictures: list[EmbeddedImage] = [picture(ImageRef(**image)) for image in question["images"]]
    history = question.get("history", ())
    texts = [turn["text"] for turn in history]
    return {
        "pictures": pictures,
        "turns": [{"role": turn["role"], "asked": asked(turn["text"], texts[:number])} for number, turn in enumerate(history)],
        "asked": asked(question["text"], texts),
        "choices": unlisted(question["choices"], question["text"]),
    }


def asked(text: str, earlier: Sequence[str] = ()) -> str:
    """The text of a question without the token of a single image; several tokens become "[image 1]" and so on.

    earlier: the texts before it in its conversation, whose images come first.
    """
    before = sum(other.count(IMAGE_TOKEN) for other in earlier)
    if text.count(IMAGE_TOKEN) == 1 and not before:
        return text.replace(IMAGE_TOKEN, "").strip()
    parts = text.split(IMAGE_TOKEN)
    return parts[0] + "".join(f"[image {number}]{part}" for number, part in enumerate(parts[1:], start=before + 1))


def unlisted(choices: Sequence[str], text: str) -> Sequence[str]:
    """The choices of a question; none where its text lists them already."""
    return () if all(choice in text for choice in choices) else choices


def _flat(settings: dict[str, Any], prefix: str = "") -> Any:
    """(dotted key, text) for every setting."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{key}[{number}].")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "(none)" if value in (None, "", {}) else f"{value:g}" if isinstance(value, float) else str(value)
