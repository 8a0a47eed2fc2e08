"""Retrieval figures of yes/no questions, as POPE has them, for any source. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mixpo.errors import EvaluateError
from mixpo.evaluate.score import by_question
from mixpo.evaluate.statistics import Term, interval
from mixpo.records import Prediction
from mixpo.types import Question
from mixpo.verify.yes_no import read_yes_no


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """Figures with "yes" as the positive class; an answer that is neither counts as not "yes".

    low, high: 95 % interval of F1, None where there is none to give.
    """

    n: int
    precision: float
    recall: float
    f1: float
    low: float | None
    high: float | None
    yes_ratio: float
    domains: Mapping[str, YesNo] = field(default_factory=dict)


def yes_no(predictions: Iterable[Prediction], gold: Mapping[str, str], clusters: Mapping[str, str]) -> YesNo:
    """Figures for the questions in `gold` ("yes" or "no" by question id), and for each domain where there are several.

    clusters: by question id, what is resampled as a whole for the interval. Raises EvaluateError when none was answered.
    """
    rows = [row for row in by_question(predictions).values() if row.question in gold]
    if not rows:
        raise EvaluateError("no prediction answers a yes/no question", code="no-predictions")
    names = sorted({row.domain for row in rows})
    parts = {name: _retrieval([row for row in rows if row.domain == name], gold, clusters) for name in names} if len(names) > 1 else {}
    return replace(_retrieval(rows, gold, clusters), domains=parts)


def _retrieval(rows: Sequence[Prediction], gold: Mapping[str, str], clusters: Mapping[str, str]) -> YesNo:
    positives = [_says_yes(row, gold[row.question]) for row in rows]
    wanted = [gold[row.question] == "yes" for row in rows]
    hits = sum(positive and is_yes for positive, is_yes in zip(positives, wanted, strict=True))
    precision = hits / sum(positives) if any(positives) else 0.0
    recall = hits / sum(wanted) if any(wanted) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    terms = [
        Term(row.question, clusters[row.question], "", 2.0 * (positive and is_yes), float(positive) + is_yes)
        for row, positive, is_yes in zip(rows, positives, wanted, strict=True)
    ]
    low, high = interval(terms, 1.0)
    return YesNo(n=len(rows), precision=precision, recall=recall, f1=f1, low=low, high=high, yes_ratio=sum(positives) / len(rows))


def _says_yes(row: Prediction, gold: str) -> bool:
    """Right about a yes, or wrong about a no by saying yes ("Yes, there is a dog") and not something else ("7")."""
    if gold == "yes":
        return row.outcome == "correct"
    return row.outcome == "wrong" and read_yes_no(row.extracted or "") == {True}


def gold_of(question: Question) -> str | None:
    """What a yes/no question's answer says, "yes" or "no" ("True" and "是" are yes); None for other questions."""
    values = read_yes_no(question.answer or "") if question.kind == "yes_no" else frozenset()
    return ("yes" if True in values else "no") if len(values) == 1 else None
