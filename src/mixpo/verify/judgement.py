"""What every check takes and gives. Pure values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mixpo.types import Outcome

OUTCOMES: dict[str, Outcome] = {"correct": "correct", "wrong": "wrong", "undecided": "undecided"}
"""What a check may say, by name."""


class Judgement(NamedTuple):
    """An outcome and a short reason for people; a check never says "malformed"."""

    outcome: Outcome
    reason: str


UNSURE = Judgement("undecided", "says that it cannot tell")
"""Of an answer that refuses, or does not know."""
Algebra = Callable[[str, str], Judgement]
"""Compares two formulas (predicted, gold) with computer algebra; may take seconds, never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """choices: the texts of the options in letter order, empty when unknown. tolerance: relative, for numbers."""

    tolerance: float
    algebra: Algebra
    choices: tuple[str, ...] = ()


def decide(equal: bool | None, what: str) -> Judgement:
    """True: correct, False: wrong, None: could not tell."""
    if equal is None:
        return Judgement("undecided", f"{what} cannot be compared")
    return Judgement("correct", f"{what} agree") if equal else Judgement("wrong", f"{what} differ")
