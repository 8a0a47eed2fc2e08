"""Verdicts of a run that an independent check contradicts: where the checker, the extraction or the ground truth may be wrong."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from mixpo.errors import RunError
from mixpo.pipeline import build_plan, known_sources
from mixpo.stages.base import Context, Plan
from mixpo.types import Question, Response, Verdict, content_id
from mixpo.verify.pool import FormulaPool
from mixpo.verify.second import contradiction, opinions
from mixpo.verify.verifier import golds_of

ENDING = 200
"""Characters of a response that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One verdict and the opinion against it. gold: the right answers. ending: the last characters of the response."""

    question: str
    index: int
    gold: str
    extracted: str | None
    outcome: str
    reason: str
    second: str
    by: str
    ending: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """verdicts: looked at. compared: those with a second opinion. disagree: those of them that it contradicts. rows: some of these."""

    verdicts: int
    compared: int
    disagree: int
    rows: tuple[Disagreement, ...]


def audit(context: Context, count: int, number: int = 1) -> Audited:
    """Compare every verdict of a round with second opinions; which `count` disagreements are returned is random, but always the same.

    Raises RunError when the verdicts are not there.
    """
    plan = build_plan(context, known_sources(context.run, context.recipe))
    name = f"round-{number}/verify"
    planned = plan.planned.get(name)
    if planned is None or not planned.finished():
        raise RunError(f"{context.run.root}: round {number} has no finished verdicts; run the recipe, or `mixpo verify`, first")
    seen = compared = disagree = 0
    kept: list[tuple[str, int, Disagreement]] = []
    context.progress.start("audit", sum(planned.job.sizes), "questions")
    with FormulaPool(timeout_s=context.recipe.verify.timeout_s, workers=1, cache=context.run.verdicts) as pool:
        for question, response, verdict in _answers(context, plan, number):
            others = opinions(question, response, verdict, context.recipe.verify, pool)
            against = contradiction(verdict, others)
            seen, compared, disagree = seen + 1, compared + bool(others), disagree + (against is not None)
            if against is None:
                continue
            row = Disagreement(
                question=question.id,
                index=response.index,
                gold=" | ".join(dict.fromkeys(golds_of(question))),
                extracted=verdict.extracted,
                outcome=verdict.outcome,
                reason=verdict.reason,
                second=against.outcome,
                by=against.by,
                ending=response.text.strip()[-ENDING:],
            )
            kept.append((content_id(context.recipe.seed, row.question, row.index), seen, row))
            if len(kept) > 2 * count:
                kept = heapq.nsmallest(count, kept)
    context.progress.finish()
    rows = tuple(row for _, _, row in heapq.nsmallest(count, kept))
    return Audited(verdicts=seen, compared=compared, disagree=disagree, rows=rows)


def _answers(context: Context, plan: Plan, number: int) -> Iterator[tuple[Question, Response, Verdict]]:
    names = ("source", f"round-{number}/sample", f"round-{number}/verify")
    for shard in range(len(plan.shards("source"))):
        for question, sampled, judged in zip(*(plan.rows(name, shard) for name in names), strict=True):
            context.progress.advance(1)
            if judged.verdicts:
                yield from ((question, response, verdict) for response, verdict in zip(sampled.responses, judged.verdicts, strict=True))
