"""The pairs of one question, by the route that suits it: known answer -> correctness and branches, none -> DropoutNTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mixpo.pairs.branches import branch_pairs
from mixpo.pairs.correctness import correctness_pairs, one_prompt
from mixpo.pairs.dropout_ntp import dropout_pairs
from mixpo.pairs.provenance import judged_responses, rebuild, same_question
from mixpo.recipe import PairsTable
from mixpo.records import Drop, Judged, Paired, Sampled, Valued
from mixpo.types import Pair, Question

__all__ = ["build", "rebuild"]


def build(
    question: Question,
    sampled: Sampled,
    judged: Judged | None,
    continued: Sampled | None,
    table: PairsTable,
    seed: int,
    asked: Callable[[int], int] = one_prompt,
    branches: tuple[Sampled, Valued] | None = None,
) -> Paired:
    """Pairs and drops of one question; depends on nothing but the arguments, and not on the order of the responses.

    judged: needed when the question has an answer. continued: what was written without the image; None when nothing was asked for.
    asked: from the index of a response to the number of the prompt it was sampled with. branches: the continuations of branches and their
    verdicts. Raises ValueError when the records do not belong together.
    """
    same_question(question.id, sampled, judged, continued, *(branches or ()))
    pairs, drops = _route(question, sampled, judged, continued, table, seed, asked)
    if branches is not None:
        more, more_drops = branch_pairs(question, *branches, table, seed)
        pairs, drops = [*pairs, *more], drops + more_drops
    dropped = tuple(Drop(reason=reason, count=count) for reason, count in sorted(drops.items()))
    return Paired(question=question.id, pairs=tuple(pairs), dropped=dropped)


def _route(
    question: Question,
    sampled: Sampled,
    judged: Judged | None,
    continued: Sampled | None,
    table: PairsTable,
    seed: int,
    asked: Callable[[int], int],
) -> tuple[list[Pair], Counter[str]]:
    if sampled.error:
        return [], Counter(failed=1)
    if question.answer is None:
        if not table.dropout_ntp:
            return [], Counter(dropout_ntp_off=1)
        return dropout_pairs(question, sampled.responses, continued.responses if continued else (), table, seed)
    if judged is None:
        raise ValueError(f"question {question.id} has an answer but no verdicts were given")
    # With dropout_from = "all" some responses were not asked for an answer, and so have no verdict.
    both = table.dropout_ntp and table.dropout_from == "all"
    answered = judged_responses(sampled, judged) if both else sampled.responses
    pairs, drops = list[Pair](), Counter(correctness_off=1)
    if table.correctness:
        pairs, drops = correctness_pairs(question, answered, judged.verdicts, table, seed, asked)
    if both:
        others = [response for response in sampled.responses if response not in answered]
        more, more_drops = dropout_pairs(question, others, continued.responses if continued else (), table, seed)
        return [*pairs, *more], drops + more_drops
    return pairs, drops
