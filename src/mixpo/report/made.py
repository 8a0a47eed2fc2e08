"""How the counts of a stage's manifest are written for people; the manifest and `--json` keep their short names."""

from __future__ import annotations

from collections.abc import Mapping

from mixpo.records import ANSWERED_BY
from mixpo.report.words import ORIGINS

ONE_AND_MORE = {
    "images": ("image", "images"),
    "questions": ("question", "questions"),
    "open": ("question without an answer", "questions without an answer"),
    "skipped": ("row left out", "rows left out"),
    "answers": ("answer", "answers"),
    "tokens": ("token", "tokens"),
    "ended: stop": ("ended by itself", "ended by themselves"),
    "judged": ("question judged", "questions judged"),
    "verdicts": ("verdict", "verdicts"),
    "all_right": ("question with all answers right", "questions with all answers right"),
    "all_wrong": ("question with all answers wrong", "questions with all answers wrong"),
    "pairs": ("pair", "pairs"),
    "with_pairs": ("question with pairs", "questions with pairs"),
    "marked": ("verdict set by a person", "verdicts set by a person"),
    "with_rationale": ("pair with a reference answer", "pairs with a reference answer"),
    "responses": ("different response", "different responses"),
    "steps": ("step", "steps"),
    "rows": ("record", "records"),
    "judge not readable": ("reply of the judge not readable", "replies of the judge not readable"),
}
"""What stands behind 1, and behind any other number."""
ALWAYS = {
    "ended: length": "cut at the length limit",
    "ended: error": "ended by an error",
    "malformed": "without a clear answer",
    **{f"origin: {origin}": text for origin, text in ORIGINS.items()},
}
"""What stands behind every number."""


def label(name: str, number: int) -> str:
    """What is counted under this name in a manifest; names that nobody has written down are words already."""
    if name in ONE_AND_MORE:
        return ONE_AND_MORE[name][number != 1]
    if name in ALWAYS:
        return ALWAYS[name]
    if name.startswith(ANSWERED_BY):
        return f"by {name.removeprefix(ANSWERED_BY)}"  # a name of a model stays as it is
    return name.replace("dropped: ", "left out: ").replace("_", " ")


def made(counts: Mapping[str, int]) -> list[str]:
    """ "40 answers", "1 cut at the length limit": everything there is any of, except what ended as it should.

    What is undecided is told by its reasons alone.
    """
    told = {"ended: stop", *(["undecided"] if any(name.startswith("undecided: ") for name in counts) else [])}
    shown = {name: number for name, number in counts.items() if number and name not in told}
    return [f"{number:,} {label(name, number)}" for name, number in shown.items()]
