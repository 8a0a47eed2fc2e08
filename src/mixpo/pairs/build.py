"""The pairs of one question, by the route that suits it: known answer -> correctness, none -> DropoutNTP."""

from __future__ import annotations

from collections import Counter

from mixpo.pairs.correctness import correctness_pairs
from mixpo.pairs.dropout_ntp import dropout_pairs
from mixpo.pairs.provenance import rebuild, same_question
from mixpo.recipe import PairsTable
from mixpo.records import Drop, Judged, Paired, Sampled
from mixpo.types import Pair, Question

__all__ = ["build", "rebuild"]


def build(question: Question, sampled: Sampled, judged: Judged | None, continued: Sampled | None, table: PairsTable, seed: int) -> Paired:
    """Pairs and drops of one question; depends on nothing but the arguments, and not on the order of the responses.

    judged: needed when the question has an answer. continued: what was written without the image; None when nothing was asked for.
    Raises ValueError when the records do not belong together.
    """
    same_question(question.id, sampled, judged, continued)
    pairs, drops = _route(question, sampled, judged, continued, table, seed)
    dropped = tuple(Drop(reason=reason, count=count) for reason, count in sorted(drops.items()))
    return Paired(question=question.id, pairs=tuple(pairs), dropped=dropped)


def _route(
    question: Question, sampled: Sampled, judged: Judged | None, continued: Sampled | None, table: PairsTable, seed: int
) -> tuple[list[Pair], Counter[str]]:
    if sampled.error:
        return [], Counter(failed=1)
    if question.answer is None:
        if not table.dropout_ntp:
            return [], Counter(dropout_ntp_off=1)
        return dropout_pairs(question, sampled.responses, continued.responses if continued else (), table, seed)
    if not table.correctness:
        return [], Counter(correctness_off=1)
    if judged is None:
        raise ValueError(f"question {question.id} has an answer but no verdicts were given")
    return correctness_pairs(question, sampled.responses, judged.verdicts, table, seed)
