"""From a response to a prediction: by mixpo's verifier, by a benchmark's own rules, or by a judge. Pure functions over saved answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixpo.evaluate.benchmarks import Benchmark, GradedRow, facts_of
from mixpo.evaluate.benchmarks.rules import EXTRACTORS, has_marker
from mixpo.evaluate.judge import JudgeReply
from mixpo.records import OtherReading, Prediction
from mixpo.types import Outcome, Question, Response, Verdict
from mixpo.verify.judgement import Options

NEEDS_JUDGE = 'no final-answer marker, where the released scripts ask a language model; use extractor = "judge"'
SHORT = 8
"""Words of a one-line response that counts as a short answer, for which the released scripts need no language model."""
UNREAD = "the judge's reply could not be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of one extractor."""

    outcome: Outcome
    extracted: str | None
    reason: str


def read_rule(benchmark: Benchmark, question: Question, response: Response, wording: str, extractor: str, options: Options) -> Reading:
    """By the rules of `extractor`. wording: "direct" or "cot", which decides what a marker-less answer means."""
    # Where the authors let a language model find the answer, of direct ones too, the scripts' marker replaces it.
    sought = "cot" if extractor == "paper" and benchmark.extraction is not None else wording
    answer = EXTRACTORS[extractor](response.text, sought, question.choices)
    if extractor == "paper" and benchmark.extraction is not None and not has_marker(response.text) and not _is_short(response.text):
        short = benchmark.extraction.quick(response.text, question, facts_of(question))
        if short is None:
            return Reading(outcome="malformed", extracted=None, reason=NEEDS_JUDGE)
        answer = short
    if answer is None:
        return Reading(
            outcome="malformed",
            extracted=None,
            reason="cut at the length limit" if response.finish == "length" else "no clear final answer",
        )
    outcome, reason = benchmark.checks[extractor](answer, question, facts_of(question), options)
    return Reading(outcome=outcome, extracted=answer, reason=reason)


def _is_short(text: str) -> bool:
    return "\n" not in text.strip() and len(text.split()) <= SHORT


def read_others(
    benchmark: Benchmark, question: Question, response: Response, wording: str, extractor: str, options: Options
) -> tuple[OtherReading, ...]:
    """By every other extractor of the benchmark that needs no judge."""
    names = [name for name in benchmark.rules if name != extractor]
    return tuple(
        OtherReading(extractor=name, outcome=read_rule(benchmark, question, response, wording, name, options).outcome) for name in names
    )


def by_rule(
    benchmark: Benchmark, question: Question, response: Response, mode: str, wording: str, extractor: str, options: Options
) -> Prediction:
    """A prediction by the rules of the recipe's extractor, with the outcomes by the others as well."""
    first = read_rule(benchmark, question, response, wording, extractor, options)
    others = read_others(benchmark, question, response, wording, extractor, options)
    return prediction(question, mode, response, first.outcome, first.extracted, first.reason, others=others)


def by_extraction(
    benchmark: Benchmark,
    question: Question,
    response: Response,
    mode: str,
    wording: str,
    short: str | JudgeReply[str],
    options: Options,
    extractor: str = "judge",
) -> Prediction:
    """A prediction from a short answer, graded by the authors' own rule: one that needed no judge, one that a judge extracted, or for
    extractor "given" one that came with the predictions."""
    rule = next(name for name in (extractor, "judge", "official", "paper") if name in benchmark.checks)
    others = read_others(benchmark, question, response, wording, extractor, options)
    answer, reply, judge = (short, "", "") if isinstance(short, str) else (short.value, short.reply, short.judge)
    if answer is None:
        return prediction(question, mode, response, "undecided", None, UNREAD, others=others, reply=reply, judge=judge, unread=True)
    if not answer:
        return prediction(question, mode, response, "malformed", None, "no answer in the response", others=others, reply=reply, judge=judge)
    outcome, reason = benchmark.checks[rule](answer, question, facts_of(question), options)
    return prediction(question, mode, response, outcome, answer, reason, others=others, reply=reply, judge=judge)


def by_judge(benchmark: Benchmark, question: Question, response: Response, mode: str, judged: JudgeReply[tuple[float, ...]]) -> Prediction:
    """A prediction with a judge's score. The outcome only says whether the score passes; metrics use the score itself."""
    assert benchmark.rubric is not None
    if judged.value is None:
        return prediction(question, mode, response, "undecided", None, UNREAD, reply=judged.reply, judge=judged.judge, unread=True)
    score = benchmark.rubric.share(judged.value)
    outcome: Outcome = "correct" if benchmark.rubric.passes(judged.value) else "wrong"
    reason = f"score {', '.join(f'{value:g}' for value in judged.value)}"
    return prediction(question, mode, response, outcome, None, reason, score=score, reply=judged.reply, judge=judged.judge)


def by_verdict(
    question: Question, mode: str, response: Response, verdict: Verdict, judged: JudgeReply[Outcome] | None = None
) -> Prediction:
    """A prediction from a verdict of mixpo's verifier, or of a response that failed. judged: where a judge was asked for the verdict."""
    logged = {} if judged is None else {"reply": judged.reply, "judge": judged.judge, "unread": judged.value is None}
    return prediction(question, mode, response, verdict.outcome, verdict.extracted, verdict.reason, **logged)  # type: ignore[arg-type]


def prediction(
    question: Question,
    mode: str,
    response: Response,
    outcome: Outcome,
    extracted: str | None,
    reason: str,
    *,
    others: Sequence[OtherReading] = (),
    score: float | None = None,
    reply: str = "",
    judge: str = "",
    unread: bool = False,
) -> Prediction:
    """The record of one answer."""
    return Prediction(
        question=question.id, mode=mode, index=response.index, text=response.text, tokens=len(response.token_ids), finish=response.finish,
        outcome=outcome, extracted=extracted, reason=reason, domain=question.domain, others=tuple(others), score=score, reply=reply,
        judge=judge, unread=unread,
    )  # fmt: skip


def graded_row(row: Prediction, question: Question, extractor: str = "") -> GradedRow:
    """A prediction as the metrics read it. extractor: grade by this one instead of the recipe's."""
    facts = facts_of(question)
    if extractor:
        outcome = next((other.outcome for other in row.others if other.extractor == extractor), row.outcome)
        return GradedRow(question=question, facts=facts, outcome=outcome)
    return GradedRow(question=question, facts=facts, outcome=row.outcome, extracted=row.extracted, reply=row.reply, unread=row.unread)
