"""What several benchmarks share: the released scripts' way to find an answer, and figures over rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from mixpo.evaluate.benchmarks.base import Figure, Marked
from mixpo.evaluate.score import Z95, wilson
from mixpo.types import Question
from mixpo.verify import extract
from mixpo.verify.choice import check_choice
from mixpo.verify.judgement import Judgement, Options

_MARKER = re.compile(r"(Final answer:|Answer:)\s*(.*)", re.IGNORECASE)


def extract_paper(text: str) -> str:
    """What stands behind the first "Final answer:" or "Answer:", to the end of that line; without one, the whole text.

    Source: the extraction of InternVL's evaluation scripts and of VLMEvalKit for MPO models. Emphasis and boxes stay.
    """
    found = _MARKER.search(text)
    return found.group(2).strip() if found else text


def extract_robust(text: str, mode: str) -> str | None:
    """The final answer behind the last marker, free of emphasis and boxes; None when there is none (mixpo's own rule).

    A direct answer without a marker is taken whole.
    """
    found = extract(text, "auto")
    return extract(text, "whole") if found is None and mode == "direct" else found


EXTRACTORS: dict[str, Callable[[str, str], str | None]] = {"robust": extract_robust, "paper": lambda text, mode: extract_paper(text)}
"""(response, mode) -> extracted answer, by the recipe's name."""


def same(equal: bool, what: str) -> Judgement:
    """A judgement that is one or the other."""
    return Judgement("correct", f"{what} agree") if equal else Judgement("wrong", f"{what} differ")


def option_robust(said: str, question: Question, options: Options) -> Judgement:
    """mixpo's own reading of a multiple-choice answer: by letter or by text."""
    asked = Options(tolerance=options.tolerance, algebra=options.algebra, choices=question.choices)
    return check_choice(said, question.answer or "", asked)


def letters(count: int) -> list[str]:
    """A, B, C, ..."""
    return [chr(ord("A") + number) for number in range(count)]


def lettered(choices: Sequence[str], form: str = "{letter}. {text}") -> str:
    """One line for each option."""
    return "\n".join(form.format(letter=letter, text=text) for letter, text in zip(letters(len(choices)), choices, strict=True))


# --- figures ------------------------------------------------------------------------------------------------------------


def share(name: str, right: Sequence[bool], group: str = "") -> Figure:
    """A percentage of rows with its Wilson interval."""
    low, high = wilson(sum(right), len(right))
    return Figure(
        name=name, value=100 * sum(right) / len(right) if right else math.nan, n=len(right), low=100 * low, high=100 * high, group=group
    )


def accuracy(rows: Sequence[Marked], name: str = "accuracy", group: str = "") -> Figure:
    """Correct of all rows asked; what could not be read is not correct."""
    return share(name, [row.right for row in rows], group)


def mean(name: str, values: Sequence[float], *, scale: float = 1.0, unit: str = "%", group: str = "", excluded: int = 0) -> Figure:
    """A mean of marks with its normal interval."""
    if not values:
        return Figure(name=name, value=math.nan, n=0, unit=unit, group=group, excluded=excluded)
    middle = math.fsum(values) / len(values)
    low = high = None
    if len(values) > 1:
        half = Z95 * math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))
        low, high = (middle - half) * scale, (middle + half) * scale
    return Figure(name=name, value=middle * scale, n=len(values), low=low, high=high, unit=unit, group=group, excluded=excluded)


def grouped(
    rows: Sequence[Marked],
    group: str,
    names_of: Callable[[Marked], Iterable[str]],
    figure: Callable[[Sequence[Marked], str, str], Figure] = accuracy,
) -> list[Figure]:
    """One figure for each name, in alphabetical order; a row counts under each of its names."""
    found: dict[str, list[Marked]] = {}
    for row in rows:
        for name in names_of(row):
            if name:
                found.setdefault(name, []).append(row)
    return [figure(found[name], name, group) for name in sorted(found)]


def one(key: str) -> Callable[[Marked], Iterable[str]]:
    """Rows by one of their facts."""
    return lambda row: (str(row.facts.get(key) or ""),)


def edit_distance(left: str, right: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of single characters."""
    row = list(range(len(right) + 1))
    for number, letter in enumerate(left, start=1):
        steps = [number]
        for (corner, above), other in zip(pairwise(row), right, strict=True):
            steps.append(min(above + 1, steps[-1] + 1, corner + (letter != other)))
        row = steps
    return row[-1]
