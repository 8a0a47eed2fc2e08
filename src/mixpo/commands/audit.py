"""Doubtful verdicts of a run: where the verifier, the extraction or the ground truth may be wrong. See `verify.second_opinion`."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixpo.pairs.provenance import judged_responses
from mixpo.pipeline import finished_stage
from mixpo.stages.job import Context, Plan
from mixpo.types import Question, Response, Verdict, content_id
from mixpo.verify.pool import FormulaPool
from mixpo.verify.second_opinion import doubts
from mixpo.verify.verifier import golds_of

ENDING = 200
"""Characters of a response that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """One verdict and why it is doubtful. gold: the right answers. by: the check. ending: the last characters of the response."""

    question: str
    index: int
    gold: str
    extracted: str | None
    outcome: str
    reason: str
    by: str
    why: str
    ending: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """verdicts: how many were checked. doubtful: how many of them to read, by the check that disagrees. rows: some of these."""

    verdicts: int
    doubtful: Mapping[str, int]
    rows: tuple[Doubtful, ...]


def audit(context: Context, count: int, number: int = 1) -> Audited:
    """Look for doubtful verdicts in all of a round; which `count` of them are returned is random, but always the same.

    Raises RunError when the verdicts are not there.
    """
    plan, name = finished_stage(context, number, "verify")
    seen, doubtful = 0, Counter[str]()
    kept: list[tuple[str, int, Doubtful]] = []
    context.progress.start("audit", sum(plan.planned[name].job.sizes), "questions")
    with FormulaPool(timeout_s=context.recipe.verify.timeout_s, workers=1, cache=context.run.verdicts) as pool:
        for question, responses, verdicts in _answers(context, plan, number):
            reasons = doubts(question, responses, verdicts, context.recipe.verify, pool)
            for response, verdict, doubt in zip(responses, verdicts, reasons, strict=True):
                seen += 1
                if doubt is None:
                    continue
                doubtful[doubt.by] += 1
                row = Doubtful(
                    question=question.id,
                    index=response.index,
                    gold=" | ".join(dict.fromkeys(golds_of(question))),
                    extracted=verdict.extracted,
                    outcome=verdict.outcome,
                    reason=verdict.reason,
                    by=doubt.by,
                    why=doubt.why,
                    ending=response.text.strip()[-ENDING:],
                )
                kept.append((content_id(context.recipe.seed, row.question, row.index), seen, row))
                if len(kept) > 2 * count:
                    kept = heapq.nsmallest(count, kept)
    context.progress.finish()
    rows = tuple(row for _, _, row in heapq.nsmallest(count, kept))
    return Audited(verdicts=seen, doubtful=dict(doubtful.most_common()), rows=rows)


def _answers(context: Context, plan: Plan, number: int) -> Iterator[tuple[Question, Sequence[Response], Sequence[Verdict]]]:
    """Every question with verdicts, with its responses."""
    names = ("source", f"round-{number}/sample", f"round-{number}/verify")
    for shard in range(len(plan.shards(names[2]))):
        for question, sampled, judged in zip(*(plan.rows(name, shard) for name in names), strict=True):
            context.progress.advance(1)
            if judged.verdicts:
                yield question, judged_responses(sampled, judged), judged.verdicts
