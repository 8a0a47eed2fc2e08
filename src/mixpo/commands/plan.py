"""What each stage of a run would do, with an estimate of requests, tokens, time and disk. Makes nothing; no model is loaded.

Counts are exact where they follow from the recipe and the questions. The rest are estimates: figures of stages that have run
in this directory where there are any (a small run measures a large one), otherwise the constants below; each line says which.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mixpo.commands.rates import ASSUMED, Assumed, Rates, counts_of, rates_of
from mixpo.pipeline import build_plan
from mixpo.plural import amount
from mixpo.progress import Silent
from mixpo.recipe import STAGES, AnySource, EvaluationSource, is_listed
from mixpo.run import Run
from mixpo.sources.decontaminate import open_filter
from mixpo.stages.answer import source_name
from mixpo.stages.imported import STAGE, PairImport, sampled_part
from mixpo.stages.job import RESPONSE_KINDS, Context, Job, Planned
from mixpo.stages.names import first_forced
from mixpo.stages.prompting import open_requests
from mixpo.stages.question_index import REPLAY, QuestionIndex, index_of
from mixpo.stages.questions import Sources
from mixpo.stages.reading import SourceReading, reading_of
from mixpo.types import Question, Skipped

VERDICT_SECONDS = 5e-4
TOKEN_BYTES = 9
"""Bytes of one sampled token on disk: its text, id and log-prob, compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One stage. todo of total units would be made; basis: where tokens, seconds and bytes are from.

    requests: prompts that an engine or a judge gets, on a server as many as its answers take. seconds: on one device.
    """

    stage: str
    todo: int
    total: int
    unit: str
    why: str
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bytes: int = 0
    basis: str = ""


def dry_run(context: Context, assumed: Assumed | None = None, force: Sequence[str] = ()) -> list[Estimate]:
    """One estimate for each stage, in order. force: stages to do again, with all after them; RecipeError for an unknown one."""
    assumed, forced = assumed or Assumed(), STAGES[first_forced(force) :]
    left_out: dict[str, list[Skipped]] = {}
    listed: dict[str, Counter[bool]] = {}
    sources, imported = read_dry(context, left_out, listed)
    plan = build_plan(context, sources)
    sampled = sampled_part(sources.train, sources.pairs)
    rates = rates_of(context, sampled, assumed, imported.counts)
    rows = [
        Estimate(stage=name, todo=index.questions, total=index.questions, unit="questions", why=_read(left_out[name]), basis="exact count")
        for name, index in (("source", sources.train), *((source_name(n), i) for n, i in sources.sets.items()))
        if name in left_out
    ]
    if context.recipe.preferences:
        pairs = imported.counts["pairs"]
        rows.append(Estimate(stage=STAGE, todo=pairs, total=pairs, unit="pairs", why=_read(imported.skipped), basis="exact count"))
    scale = 1.0 if assumed.questions is None else assumed.questions / max(1, sampled.questions)
    return [
        *rows,
        *(
            _with_judge(context, planned.job, estimate, rates, listed, sampled)
            for planned in plan.planned.values()
            for estimate in [_estimate(context, planned, rates, sampled, scale, planned.job.kind in forced)]
        ),
    ]


def _read(left_out: Sequence[Skipped]) -> str:
    return "read at every start" + (f"; {amount(len(left_out), 'row')} skipped, `mixpo check` lists them" if left_out else "")


def read_dry(context: Context, left_out: dict[str, list[Skipped]], listed: dict[str, Counter[bool]]) -> tuple[Sources, PairImport]:
    """Questions and pairs as the next run would read them, with copies of images in a folder that goes away.

    left_out: gets the skipped rows. listed: gets the number of questions with an answer, by whether verify.judge decides all of their
    verdicts; both by the stage that holds the questions.
    """
    judge = context.recipe.verify.judge

    def counted(stage: str, blocks: Iterable[list[Question]]) -> Iterator[list[Question]]:
        counts = listed.setdefault(stage, Counter())
        for block in blocks:
            counts.update(judge is not None and is_listed(question, judge.sources) for question in block if question.answer is not None)
            yield block

    with TemporaryDirectory(prefix="mixpo-dry-") as folder:
        elsewhere, readings = replace(context, run=Run(Path(folder))), list[SourceReading]()

        def blocks_of(name: str, source: AnySource, **checks: Any) -> Iterator[list[Question]]:
            readings.append(reading_of(elsewhere, source, **checks))
            left_out[name] = readings[-1].skipped
            return readings[-1].blocks()

        kept = context.run.fingerprints if context.run.fingerprints.exists() else None
        contamination = open_filter(context.recipe.evaluate, kept)
        if contamination is not None and contamination.fingerprints is not None and kept is None:
            context.progress.say('decoding every image, because evaluate.decontaminate = "similar" asks what it looks like')

        def held_out(name: str, source: EvaluationSource) -> QuestionIndex:
            blocks = counted(source_name(name), blocks_of(source_name(name), source, evaluated=True))
            return index_of(blocks if contamination is None else contamination.watch(name, blocks))

        sets = {s.name: held_out(s.name, s.source) for s in context.recipe.evaluate.sets}
        recipe, imported = context.recipe, PairImport(replace(elsewhere, progress=Silent()), contamination)
        blocks: Iterable[list[Question]] = ()
        if recipe.source is not None:
            blocks = counted("source", blocks_of("source", recipe.source, contamination=contamination))
        train = index_of(chain(blocks, imported.blocks() if recipe.preferences else ()))
        for notice in (*(notice for reading in readings for notice in reading.notices), *imported.notices):
            context.progress.say(notice)
        table = recipe.train.replay
        rows = blocks_of(REPLAY, table.source, replayed=True, contamination=contamination) if table else ()
        return Sources(train=train, sets=sets, pairs=tuple(imported.shards), replay=index_of(rows)), imported


def _estimate(context: Context, planned: Planned, rates: Rates, index: QuestionIndex, scale: float, forced: bool) -> Estimate:
    """scale: by how much the source will be larger than what was read; other than 1, nothing of it counts as done.

    forced: nothing of the stage counts as done.
    """
    job, work, total = planned.job, planned.work(), sum(planned.job.sizes)
    if forced:
        work = replace(work, missing=work.shards, reasons=("--force",))
    missing = set(work.missing)
    todo = sum(size for shard, size in zip(work.shards, job.sizes, strict=True) if shard in missing)
    if rates.given.questions is not None:
        grows = job.name.startswith("round-") and job.unit == "questions"
        todo = total = round(total * scale) if grows else total
    estimate = Estimate(
        stage=job.name,
        todo=todo,
        total=total,
        unit=job.unit,
        why="; ".join(work.reasons) if missing else "done",
        basis=_basis(job.kind, rates),
    )
    if not todo:
        return replace(estimate, basis="")
    estimate = _ESTIMATES.get(job.kind, _instant)(context, estimate, rates, index, todo / max(1, sum(job.sizes)))
    return _as_measured(context, planned, estimate, rates)


def _with_judge(
    context: Context, job: Job, estimate: Estimate, rates: Rates, listed: Mapping[str, Counter[bool]], index: QuestionIndex
) -> Estimate:
    """With the requests that a stage sends to a judge; equal answers to a question are one request, so there may be fewer.

    listed: questions with an answer by whether verify.judge decides all of their verdicts, for each stage that holds questions.
    """
    recipe, answers = context.recipe, estimate.todo
    if judge := job.settings.get("judge"):
        return replace(estimate, requests=answers, basis=f"asked of judge {judge['model']}") if answers else estimate
    judge = recipe.verify.judge
    if judge is None or "judge_prompt" not in job.settings or not answers:
        return estimate
    counts, agreement = listed[job.needs[0]], 0.0
    share = counts[True] / max(1, counts.total())
    if job.kind == "value":
        answers = round(answers * (1 - sum(index.open) / index.questions) * rates.branches)
    if job.kind == "verify":
        answers = round(answers * (1 - sum(index.open) / index.questions)) * recipe.sample.n
        agreement = judge.agreement
    undecided = max(share, rates.undecided) if rates.judged else share + (1 - share) * rates.undecided
    asked = undecided + (1 - undecided) * agreement
    return replace(estimate, requests=math.ceil(answers * asked), basis=f"{asked:.0%} of the verdicts asked of judge {judge.model}")


def _basis(kind: str, rates: Rates) -> str:
    """Where the figures of a stage that has not run here are from."""
    if kind in RESPONSE_KINDS or rates.basis == ASSUMED:
        return rates.basis
    return "assumed from the rate of sampling" if kind in ("reference", "train") else "assumed"


def _as_measured(context: Context, planned: Planned, estimate: Estimate, rates: Rates) -> Estimate:
    """With the time and disk of each unit of a stage that has run here, unless the user gives a rate for it."""
    job, last = planned.job, planned.stage.manifest
    training = job.kind in ("train", "reference")
    given = rates.given.train_rate if training else rates.given.rate if job.kind in RESPONSE_KINDS else None
    if given is not None:
        return replace(estimate, basis="--train-rate" if training else "--rate")
    done = 0 if last is None or not last.finished else last.counts.get("tokens" if job.kind == "train" else "questions", 0)
    if job.kind == "reference":  # which counts only questions with pairs
        done = counts_of(context, "pair").get("questions", 0) if done else 0
    if last is None or not done:
        return estimate
    if job.kind == "train":
        # Its work grows with the pairs, and a group's tokens are known only once it is made.
        grown = rates.pairs / max(1, counts_of(context, "pair").get("pairs", 0))
        return replace(estimate, tokens=int(done * grown), seconds=last.seconds * grown, basis="measured in this run")
    size = sum(path.stat().st_size for shard in last.shards if (path := planned.stage.path(shard)).exists())
    return replace(
        estimate,
        tokens=int(last.counts.get("tokens", 0) / done * estimate.todo),
        seconds=last.seconds / done * estimate.todo,
        bytes=int(size / done * estimate.todo),
        basis="measured in this run",
    )


def _instant(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    return replace(estimate, seconds=estimate.todo * 1e-3, bytes=estimate.todo * 500)


def _sample(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    table = context.recipe.sample
    if table.engine == "file":
        return _instant(context, estimate, rates, index, share)
    more = open_requests(context.recipe.pairs, table.n)
    again = (estimate.todo - sum(index.open) * share) * (more > 0)
    per = rates.per_request
    requests = estimate.todo * math.ceil(table.n / per) + again * math.ceil(more / per) if per else estimate.todo + again
    answers = estimate.todo * table.n + again * more
    return _generated(replace(estimate, requests=round(requests)), rates, int(answers * rates.answer))


def _continue(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    table = context.recipe.pairs
    questions = sum(index.sizes if table.dropout_from == "all" else index.open) * share * table.dropout_ntp
    answers = questions * min(table.max_dropout_per_question, context.recipe.sample.n)
    # A server is asked for each continuation by itself.
    asked = replace(estimate, requests=int(answers if rates.per_request else questions))
    return _generated(asked, rates, int(answers * rates.answer * (1 - table.dropout_ratio)))


def _branch(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    known = (estimate.todo - sum(index.open) * share) / max(1, estimate.todo)
    continuations = estimate.todo * known * rates.branches
    table = context.recipe.pairs.branches
    each = table.continuations if table is not None else 1
    # One prompt for each question in process, one request for each place to a server.
    requests = continuations / each * math.ceil(each / rates.per_request) if rates.per_request else estimate.todo * known
    # On average half a response is left.
    return _generated(replace(estimate, requests=round(requests)), rates, int(continuations * rates.answer / 2))


def _value(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    answers = (estimate.todo - sum(index.open) * share) * rates.branches
    return replace(estimate, seconds=answers * VERDICT_SECONDS, bytes=int(answers * 20))


def _answer(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    count = context.recipe.evaluate.samples if estimate.stage.endswith("/sampled") else 1
    longest = 8 if estimate.stage.endswith("/direct") else rates.answer
    return _generated(replace(estimate, requests=estimate.todo), rates, int(estimate.todo * count * longest))


def _generated(estimate: Estimate, rates: Rates, tokens: int) -> Estimate:
    return replace(estimate, tokens=tokens, seconds=tokens / rates.generated, bytes=tokens * TOKEN_BYTES)


def _verify(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    answers = (estimate.todo - sum(index.open) * share) * context.recipe.sample.n
    return replace(estimate, seconds=answers * VERDICT_SECONDS, bytes=int(answers * 20))


def _reference(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    if context.recipe.train.reference == "online":
        return _instant(context, estimate, rates, index, share)
    tokens = int(rates.round_tokens * min(share, 1))
    return replace(estimate, tokens=tokens, seconds=tokens / (3 * rates.trained), bytes=int(rates.pairs * 2 * rates.answer * 2))


def _train(context: Context, estimate: Estimate, rates: Rates, index: QuestionIndex, share: float) -> Estimate:
    tokens = int(rates.round_tokens) * context.recipe.train.epochs
    # Weights, and a checkpoint with weights and two optimizer moments in float32 while it trains.
    size = rates.model_bytes + int(rates.parameters * 12)
    passes = 4 if context.recipe.train.reference == "online" else 3
    return replace(estimate, tokens=tokens, seconds=tokens * passes / (3 * rates.trained), bytes=size)


_ESTIMATES = {
    "sample": _sample,
    "continue": _continue,
    "verify": _verify,
    "branch": _branch,
    "value": _value,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
}


def totals(rows: Sequence[Estimate]) -> Estimate:
    """The sum of all stages."""
    return Estimate(
        stage="all",
        todo=0,
        total=0,
        unit="",
        why="",
        requests=sum(row.requests for row in rows),
        tokens=sum(row.tokens for row in rows),
        seconds=sum(row.seconds for row in rows),
        bytes=sum(row.bytes for row in rows),
    )
