"""From a response to a prediction: by mixpo's verifier, by a benchmark's own rules, or by a judge. Pure functions over saved answers."""

from __future__ import annotations

from dataclasses import dataclass

from mixpo.evaluate.benchmarks import Benchmark, Marked, facts_of
from mixpo.evaluate.benchmarks.rules import EXTRACTORS
from mixpo.evaluate.judge import Mark
from mixpo.records import Prediction
from mixpo.types import Outcome, Question, Response, Verdict
from mixpo.verify.judgement import Options

UNREAD = "the judge's reply could not be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one extractor makes of a response."""

    outcome: Outcome
    said: str | None
    reason: str


def read_rule(benchmark: Benchmark, question: Question, response: Response, wording: str, extractor: str, options: Options) -> Reading:
    """By the rules of `extractor`. wording: "direct" or "cot", which decides what a marker-less answer means."""
    said = EXTRACTORS[extractor](response.text, wording)
    if said is None:
        return Reading(
            outcome="malformed", said=None, reason="cut at the length limit" if response.finish == "length" else "no clear final answer"
        )
    outcome, reason = benchmark.checks[extractor](said, question, facts_of(question), options)
    return Reading(outcome=outcome, said=said, reason=reason)


def by_rule(
    benchmark: Benchmark, question: Question, response: Response, mode: str, wording: str, extractor: str, options: Options
) -> Prediction:
    """A prediction by the recipe's extractor, with the outcome by the other one beside it."""
    second = next(name for name in benchmark.checks if name != extractor)
    first, other = (read_rule(benchmark, question, response, wording, name, options) for name in (extractor, second))
    return prediction(question, mode, response, first.outcome, first.said, first.reason, other=other.outcome)


def by_judge(benchmark: Benchmark, question: Question, response: Response, mode: str, mark: Mark) -> Prediction:
    """A prediction with a judge's mark. The outcome only says whether the mark passes; figures rest on the mark."""
    assert benchmark.rubric is not None
    if mark.marks is None:
        return prediction(question, mode, response, "undecided", None, UNREAD, reply=mark.reply, judge=mark.judge)
    score = benchmark.rubric.share(mark.marks)
    outcome: Outcome = "correct" if benchmark.rubric.passes(mark.marks) else "wrong"
    reason = f"marked {', '.join(f'{value:g}' for value in mark.marks)}"
    return prediction(question, mode, response, outcome, None, reason, score=score, reply=mark.reply, judge=mark.judge)


def by_verdict(question: Question, mode: str, response: Response, verdict: Verdict) -> Prediction:
    """A prediction from a verdict of mixpo's verifier, or of an answer that never came."""
    return prediction(question, mode, response, verdict.outcome, verdict.extracted, verdict.reason)


def prediction(
    question: Question,
    mode: str,
    response: Response,
    outcome: Outcome,
    extracted: str | None,
    reason: str,
    *,
    other: str = "",
    score: float | None = None,
    reply: str = "",
    judge: str = "",
) -> Prediction:
    """The record of one answer."""
    return Prediction(
        question=question.id, mode=mode, index=response.index, text=response.text, tokens=len(response.token_ids), finish=response.finish,
        outcome=outcome, extracted=extracted, reason=reason, domain=question.domain, other=other, score=score, reply=reply, judge=judge,
    )  # fmt: skip


def marked(row: Prediction, question: Question, *, other: bool = False) -> Marked:
    """A prediction as a benchmark's table sees it; `other` takes the outcome of the other extractor."""
    outcome: Outcome = row.other if other else row.outcome  # type: ignore[assignment]
    said = None if other else row.extracted
    failed = row.finish == "error"
    return Marked(question=question, facts=facts_of(question), outcome=outcome, said=said, reply=row.reply, failed=failed)
