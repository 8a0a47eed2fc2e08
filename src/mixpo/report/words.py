"""How numbers, names and counts are written for people, on the pages and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mixpo.pairs.provenance import REASONS
from mixpo.records import ANSWERED_BY

NAMES = {"base": "Base model", "sft": "SFT", "dpo": "DPO", "mpo": "MPO"}
MODES = {"cot": "chain of thought", "direct": "direct", "sampled": "sampled mean"}
ORIGINS = {
    "correctness": "correct vs. wrong",
    "format": "correct vs. no final answer",
    "dropout_ntp": "DropoutNTP",
    "branch": "branches",
    "imported": "imported",
}
BALANCE = {"all_right": "all right", "mixed": "right and wrong", "all_wrong": "all wrong", "all_undecided": "all undecided"}
REASON_TEXTS = {name: reason.text for name, reason in REASONS.items()}
OUTCOMES = {"correct": "correct", "wrong": "wrong", "malformed": "no final answer", "undecided": "undecided"}


def model_name(name: str) -> str:
    """SFT for "sft", "MPO of round 1" for "mpo-round-1", others as they are."""
    objective, apart, number = name.partition("-round-")
    return f"{NAMES.get(objective, objective)} of round {number}" if apart else NAMES.get(name, name)


def domain_name(name: str) -> str:
    """The name of a domain, or what is shown for questions without one."""
    return name or "(no domain)"


_MARKUP = re.compile(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)")
"""What Markdown reads otherwise than it is written."""


def markdown(text: object) -> str:
    """Text of data inside Markdown: one line, and no markup of its own."""
    flat = " ".join(str(text).split())
    return _MARKUP.sub(r"\\\g<0>", flat).replace("&", "&amp;").replace("<", "&lt;")


_NUMBER = re.compile(r"[+\N{MINUS SIGN}]?\d|< \d|none$|$")
"""The beginning of a number; an empty cell does not make its column one of text."""
UNIT = "\u00a0%"
"""A per cent sign that is not separated from its number."""


def percent(share: float) -> str:
    """0.6123 -> 61.2 %"""
    return f"{share * 100:.1f}{UNIT}"


def points(difference: float) -> str:
    """0.137 -> +13.7; a real minus sign for losses, no sign for a rounded zero."""
    text = f"{difference * 100:+.1f}"
    return text[1:] if text[1:] == "0.0" else text.replace("-", "−")


def p_value(p: float) -> str:
    """p = 0.031, or p < 0.001"""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def p_cell(p: float) -> str:
    """For a column headed p: 0.031, or < 0.001"""
    return p_value(p).removeprefix("p ").removeprefix("= ")


def accuracy(scores: dict[str, Any]) -> str:
    """The accuracy; "none" where no reply of the judge could be read, which is not zero."""
    return "none" if scores.get("excluded") == scores.get("samples", scores["n"]) else percent(scores["accuracy"])


def interval(scores: dict[str, Any]) -> str:
    """The 95 % interval of an accuracy: 58.2 to 64.1 %"""
    return f"{scores['low'] * 100:.1f} to {percent(scores['high'])}"


def moment(text: str) -> str:
    """2026-11-27T15:35:59Z -> 2026-11-27, 15:35 UTC; other texts as they are."""
    day, apart, time = text.removesuffix("Z").partition("T")
    return f"{day}, {time[:5]} UTC" if apart and text.endswith("Z") else text


def sides(rows: Sequence[Sequence[str]]) -> list[str]:
    """For each column of a table "right" where it holds numbers, else "left"."""
    return ["right" if all(_NUMBER.match(cell) for cell in column) else "left" for column in zip(*rows, strict=True)]


def count(value: float) -> str:
    """12345 -> 12,345"""
    return f"{value:,.0f}"


def title_case(name: str) -> str:
    """length_ratio -> Length ratio"""
    text = name.replace("_", " ").replace("/", " / ")
    return text[:1].upper() + text[1:]


def drop_text(name: str) -> str:
    """The sentence for a filter reason counted by name; other reasons are sentences already."""
    return REASONS[name].text if name in REASONS else name


def drop_unit(name: str) -> str:
    """What a filter reason counts: questions, answers or pairs; rows by default."""
    return REASONS[name].unit if name in REASONS else "rows"


# --- counts of a manifest; the manifest and `--json` keep their short names ---------------------------------------------

ONE_AND_MORE = {
    "images": ("image", "images"),
    "questions": ("question", "questions"),
    "open": ("question without an answer", "questions without an answer"),
    "skipped": ("row filtered", "rows filtered"),
    "answers": ("answer", "answers"),
    "tokens": ("token", "tokens"),
    "ended: stop": ("finished", "finished"),
    "branched": ("question with branches", "questions with branches"),
    "places": ("place", "places"),
    "mixed_places": ("place with right and wrong continuations", "places with right and wrong continuations"),
    "judged": ("question verified", "questions verified"),
    "verdicts": ("verdict", "verdicts"),
    "all_right": ("question with all answers right", "questions with all answers right"),
    "all_wrong": ("question with all answers wrong", "questions with all answers wrong"),
    "pairs": ("pair", "pairs"),
    "with_pairs": ("question with pairs", "questions with pairs"),
    "marked": ("human label", "human labels"),
    "with_rationale": ("pair with a reference answer", "pairs with a reference answer"),
    "responses": ("different response", "different responses"),
    "steps": ("step", "steps"),
    "rows": ("record", "records"),
    "judge not readable": ("unreadable reply of the judge", "unreadable replies of the judge"),
}
"""Singular and plural."""
ALWAYS = {
    "ended: length": "truncated at the length limit",
    "ended: error": "failed",
    "malformed": "without a final answer",
    **{f"origin: {origin}": text for origin, text in ORIGINS.items()},
}
"""Words that follow any number."""


def count_label(name: str, number: int) -> str:
    """What a count of a manifest is called; names that are not listed are words already."""
    if name in ONE_AND_MORE:
        return ONE_AND_MORE[name][number != 1]
    if name in ALWAYS:
        return ALWAYS[name]
    if name.startswith(ANSWERED_BY):
        return f"by {name.removeprefix(ANSWERED_BY)}"  # a name of a model stays as it is
    return name.replace("dropped: ", "filtered: ").replace("_", " ")


def no_answer(scores: Mapping[str, Any]) -> str:
    """Responses without a final answer, with their share: 12 (4.0 %); "" where a judge grades whole responses."""
    share = scores.get("no_answer")
    return "" if share is None else f"{count(scores['malformed'])} ({percent(share)})" if share else "0"


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """The counts that are not zero: "40 answers", "1 truncated at the length limit"; undecided verdicts by their reasons.

    Of graded responses also the share without a final answer.
    """
    implied = {"ended: stop", *(["undecided"] if any(name.startswith("undecided: ") for name in counts) else [])}
    received = counts.get("answers", 0) - counts.get("failed", 0)
    shares = {"malformed": f" ({percent(counts['malformed'] / received)})"} if counts.get("malformed") and received > 0 else {}
    return [
        f"{number:,} {count_label(name, number)}{shares.get(name, '')}" for name, number in counts.items() if number and name not in implied
    ]
