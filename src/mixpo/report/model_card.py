"""The model card of a trained model: from what, with what data, how, and with what result. Plain data in, Markdown out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mixpo.report.table import SUMMARY_COLUMNS, summary_rows
from mixpo.report.words import count, model_name, points

_SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|api_?key|authorization|credentials?)$")
_SECRET_VALUE = re.compile(r"hf_\w{8,}|sk-[\w-]{8,}|://[^/\s:@]+:[^/\s@]+@")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
REMOVED = "(removed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSubject:
    """What a card is about. base: hub id of the model that was trained, "" if it has none. licence: of the trained weights."""

    name: str
    base: str
    licence: str


def card(subject: CardSubject, report: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The whole card. report: the content of report.json. recipe: the resolved recipe, as it was run."""
    objective = subject.name.partition("-round-")[0]
    parts = [
        _front(subject, objective),
        f"# {_plain(report['title'])}: {model_name(subject.name)}\n",
        f"{f'`{subject.base}`' if subject.base else 'A vision-language model'} trained with {objective.upper()} by "
        f"mixpo {report['versions'].get('mixpo', '')}, on preference pairs made of its own answers.\n",
        "## Data\n",
        _table(("stage", "count", "number"), _counts(report["counts"])),
        "Left out, and why:\n" if report["dropped"] else "Nothing was left out.\n",
        "".join(f"- {count(row['count'])}: {_plain(row['reason'])}\n" for row in report["dropped"]),
        "## Results\n",
        *_results(report),
        "## Recipe\n",
        f"```json\n{json.dumps(without_secrets(recipe), indent=2, ensure_ascii=False)}\n```\n",
        "## Versions\n",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "\n",
        "## Licence\n",
        f"`{subject.licence}`. The licences of the base model, of the questions and of the images apply as well.\n",
    ]
    return "\n".join(part for part in parts if part)


def without_secrets(value: Any, name: str = "") -> Any:
    """The same data without what looks like a secret, and with the last part only of paths of this machine."""
    if isinstance(value, dict):
        return {key: without_secrets(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        return REMOVED
    path = PurePath(value)
    return path.name if path.is_absolute() or value.startswith("~") else value


def is_hub_id(path: str) -> bool:
    """Whether this can be a model on the hub."""
    return bool(_HUB_ID.fullmatch(path))


def _front(subject: CardSubject, objective: str) -> str:
    fields = {"license": subject.licence, "library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if subject.base:
        fields["base_model"] = subject.base
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "tags:", "- mixpo", "- preference-optimization", f"- {json.dumps(objective)}", "---\n"])


def _counts(counts: dict[str, dict[str, int]]) -> Iterator[tuple[str, str, str]]:
    for stage, numbers in counts.items():
        if not stage.startswith("evaluate/"):
            yield from ((stage, name, count(number)) for name, number in numbers.items())


def _results(report: dict[str, Any]) -> Iterator[str]:
    if not report["models"]:
        yield "Not evaluated.\n"
        return
    yield f"Evaluation set: {_plain(report['set'])}. Intervals are at 95 %.\n"
    yield _table(SUMMARY_COLUMNS, summary_rows(report))
    for found in report["comparisons"]:
        low, high = points(found["low"]), points(found["high"])
        yield (
            f"- {model_name(found['b'])} against {model_name(found['a'])} ({found['mode']}): {points(found['difference'])} points, "
            f"{low} to {high}, p = {found['p']:.3f}"
        )
    yield ""
    for name in report["sets"]:
        yield f"Evaluation set: {_plain(name)}.\n"
        yield _table(SUMMARY_COLUMNS, summary_rows(report, name))


def _table(columns: Sequence[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(_plain(cell) for cell in line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """Text of data inside Markdown: one line, and no markup of its own."""
    flat = " ".join(str(text).split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[").replace("`", "'")
