"""The model card of a trained model, in Markdown: what it is, data, results, recipe."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mixpo.plural import amount
from mixpo.report.table import SUMMARY_COLUMNS, summary_rows
from mixpo.report.words import ORIGINS, count, markdown, model_name, p_value, percent, points

_SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|api_?key|authorization|credentials?)$")
_SECRET_VALUE = re.compile(r"hf_\w{8,}|sk-[\w-]{8,}|://[^/\s:@]+:[^/\s@]+@")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
REMOVED = "(removed)"
RESULT_COLUMNS = ("model", "mode", "accuracy", "95 % interval", "Δ vs. base", "p", "questions")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSubject:
    """The model of a card. base: hub id of its base model, or "". licence: of the trained weights."""

    name: str
    base: str
    licence: str


def card(subject: CardSubject, report: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The whole card. report: the content of report.json. recipe: the resolved recipe."""
    objective = subject.name.partition("-round-")[0]
    parts = [
        _front(subject, objective),
        f"# {markdown(report['title'])}: {model_name(subject.name)}\n",
        f"{f'`{subject.base}`' if subject.base else 'A vision-language model'}, trained with {objective.upper()} by "
        f"mixpo {report['versions'].get('mixpo', '')} on {_pairs(report, recipe)}.\n",
        _headline(report, subject.name),
        "## Training data\n",
        "".join(f"- {line}\n" for line in _data(report, recipe)),
        "## Results\n",
        *_results(report),
        "## Recipe\n",
        "<details><summary>All settings</summary>\n",
        f"```json\n{json.dumps(without_secrets(recipe), indent=2, ensure_ascii=False)}\n```\n",
        "</details>\n",
        f"Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}.\n",
        "## License\n",
        f"`{subject.licence}`. The licenses of the base model, the questions and the images apply as well.\n",
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


def _headline(report: dict[str, Any], name: str) -> str:
    headline = report["headline"]
    if headline is None or headline["b"] != name:
        return ""
    mode = {"cot": "with chain of thought", "direct": "of direct answers"}[headline["mode"]]
    sure = {"gain": "a significant gain", "loss": "a significant loss", "unclear": "not a significant change"}[headline["verdict"]]
    return (
        f"Accuracy {mode} on {amount(headline['n'], 'held-out question')} of {markdown(report['set'])}: **{percent(headline['before'])} → "
        f"{percent(headline['after'])}** ({points(headline['difference'])} points, 95 % interval {points(headline['low'])} to "
        f"{points(headline['high'])}, {p_value(headline['p'])}): {sure}.\n"
    )


def _pairs(report: dict[str, Any], recipe: dict[str, Any]) -> str:
    """What kind of pairs the model was trained on."""
    origins = {name for name, number in report["pairs"]["origins"].items() if number} if report["pairs"] else set()
    saved = recipe.get("sample", {}).get("engine") == "file"
    made = f"preference pairs made of {'saved' if saved else 'its own'} responses"
    if "imported" not in origins:
        return made
    return "ready-made preference pairs" if origins == {"imported"} else f"{made} and on ready-made ones"


def _data(report: dict[str, Any], recipe: dict[str, Any]) -> Iterator[str]:
    """Questions, responses, verdicts, pairs, replayed rows and what was filtered: a line for each that the run has."""
    pairs = report["pairs"]
    if not pairs:
        yield "The report has no statistics of the pairs."
        return
    sources = [markdown(name) for name in pairs["sources"] if name]
    origin = f" from {', '.join(sources)}" if sources else ""
    yield f"{amount(pairs['questions'], 'question')}{origin}, {count(pairs['with_answer'])} with an answer key"
    answers, verdicts = pairs["answers"], pairs["verdicts"]
    if answers["total"]:
        yield f"{amount(answers['total'], 'sampled response')}, mean length {answers['tokens_mean'] or 0:.0f} tokens"
    if verdicts["accuracy"] is not None:
        undecided = f"{count(verdicts['undecided'])} undecided, never used as rejected"
        yield f"{percent(verdicts['accuracy'])} of the verified responses are correct; {undecided}"
    origins = ", ".join(f"{count(number)} {ORIGINS[name]}" for name, number in pairs["origins"].items() if number)
    yield f"{amount(pairs['pairs'], 'preference pair')} from {amount(pairs['with_pairs'], 'question')}: {origins or 'none'}"
    if replay := recipe.get("train", {}).get("replay"):
        yield f"SFT rows mixed in with the generation loss only: {percent(replay['share'])} of the pairs"
    dropped: Counter[str] = Counter()
    for row in report["dropped"]:
        dropped[row["unit"]] += row["count"]
    yield f"Filtered: {', '.join(f'{count(number)} {unit}' for unit, number in dropped.items()) or 'nothing'}"


def _results(report: dict[str, Any]) -> Iterator[str]:
    if not report["models"]:
        yield "Not evaluated.\n"
        return
    yield "Accuracy with 95 % intervals; Δ vs. base in percentage points.\n"
    for name in (None, *report["sets"]):
        yield f"### {markdown(name or report['set'])}\n"
        columns = [SUMMARY_COLUMNS.index(column) for column in RESULT_COLUMNS]
        yield _table(RESULT_COLUMNS, [[row[column] for column in columns] for row in summary_rows(report, name)])


def _table(columns: Sequence[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(markdown(cell) for cell in line)} |\n" for line in lines)
