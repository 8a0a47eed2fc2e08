"""Thin out the classes of pairs that are larger than their share. What is kept depends on a pair and on the sizes, never on an order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mixpo.recipe import BalanceBy
from mixpo.records import Drop, Judged, Paired
from mixpo.types import Pair, Question, content_id

Class = tuple[str, ...]


def class_of(question: Question, judged: Judged, pair: Pair, by: Sequence[BalanceBy]) -> Class:
    """The values of one pair that are balanced, in the order of `by`."""
    values = {"origin": pair.origin, "domain": question.domain, "source": question.source, "difficulty": difficulty(judged)}
    return tuple(values[name] for name in by)


def difficulty(judged: Judged) -> str:
    """How many of a question's decided answers are right: "hard" below a third, "easy" above two thirds; "open" without verdicts."""
    decided = [verdict for verdict in judged.verdicts if verdict.outcome != "undecided"]
    if not decided:
        return "open"
    share = sum(verdict.outcome == "correct" for verdict in decided) / len(decided)
    return "hard" if share < 1 / 3 else "easy" if share > 2 / 3 else "medium"


def rates(sizes: Counter[Class], to: float) -> dict[Class, float]:
    """The share of each class that is kept: all of one with at most `to` times the mean size, and of a larger one about that many."""
    if not sizes:
        return {}
    most = to * sizes.total() / len(sizes)
    return {name: min(1.0, most / size) for name, size in sizes.items()}


def thin(question: Question, judged: Judged, paired: Paired, by: Sequence[BalanceBy], kept: dict[Class, float], seed: int) -> Paired:
    """The pairs of one question that are kept, and how many were not. A pair's lot is drawn by seed and id alone."""
    pairs = tuple(pair for pair in paired.pairs if lot(seed, pair) < kept[class_of(question, judged, pair, by)])
    if len(pairs) == len(paired.pairs):
        return paired
    dropped = (*paired.dropped, Drop(reason="balance", count=len(paired.pairs) - len(pairs)))
    return replace(paired, pairs=pairs, dropped=tuple(sorted(dropped, key=lambda drop: drop.reason)))


def lot(seed: int, pair: Pair) -> float:
    """A number in [0, 1) that depends on the run's seed and the pair alone."""
    return int(content_id(seed, "balance", pair.id), 16) / 2.0**64
