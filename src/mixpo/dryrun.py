"""What each stage of a run would do, with an estimate of tokens, time and disk. Makes nothing; no model is loaded.

Counts are exact where they follow from the recipe and the questions. The rest are estimates: figures of stages that have run
in this directory where there are any, otherwise the constants below; each line says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mixpo.pipeline import Sources, build_plan
from mixpo.recipe import EvaluationSource
from mixpo.run import Run
from mixpo.stages.answer import source_name
from mixpo.stages.base import Context, Planned
from mixpo.stages.source import Index, blocks_of, index_of
from mixpo.types import Skipped
from mixpo.vlm.folder import find

PROMPT_TOKENS = 400
"""Tokens of a question with its picture and instruction, where none was measured."""
ANSWER_SHARE = 0.5
"""Length of an answer as a share of max_new_tokens, where none was measured."""
MULTIPLY_ADDS = 2e10
"""Floating-point operations each second that two CPU cores reach in practice; a GPU reaches some hundred times that."""
VERDICT_SECONDS = 5e-4
PAIRS_SHARE = 0.5
"""Share of questions that give pairs, where none was measured."""
TOKEN_BYTES = 12
"""Bytes of one sampled token on disk: its text, id and log-prob, compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One stage. todo of total units would be made; tokens, seconds and bytes are about that much; basis: where they are from."""

    stage: str
    todo: int
    total: int
    unit: str
    why: str
    tokens: int = 0
    seconds: float = 0.0
    bytes: int = 0
    basis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the estimates are made with.

    answer: tokens of one answer. generated: tokens each second while sampling. pairs: preference pairs of one round.
    """

    answer: float
    generated: float
    parameters: float
    model_bytes: int
    pairs: float
    basis: str


def dry_run(context: Context, rate: float | None = None) -> list[Estimate]:
    """One estimate for each stage, in order. rate: generated tokens each second to assume instead."""
    left_out: dict[str, list[Skipped]] = {}
    sources = _sources(context, left_out)
    plan = build_plan(context, sources)
    rates = _rates(context, sources, rate)
    rows = [
        Estimate(stage=name, todo=index.questions, total=index.questions, unit="questions", why=_read(left_out[name]), basis="exact count")
        for name, index in (("source", sources.train), *((source_name(n), i) for n, i in sources.sets.items()))
    ]
    return [*rows, *(_estimate(context, planned, rates, sources.train) for planned in plan.planned.values())]


def _read(left_out: Sequence[Skipped]) -> str:
    return "read at every start" + (
        f"; {len(left_out)} row{'s' * (len(left_out) != 1)} left out, `mixpo check` lists them" if left_out else ""
    )


def _sources(context: Context, left_out: dict[str, list[Skipped]]) -> Sources:
    """The questions as the next run would read them, with copies of images in a folder that goes away. Fills in what is left out."""
    with TemporaryDirectory(prefix="mixpo-dry-") as folder:
        elsewhere = replace(context, run=Run(Path(folder)))

        def index(name: str, source: EvaluationSource, evaluated: bool) -> Index:
            return index_of(blocks_of(elsewhere, source, left_out.setdefault(name, []), evaluated=evaluated))

        sets = {s.name: index(source_name(s.name), s.source, True) for s in context.recipe.evaluate.sets}
        return Sources(train=index("source", context.recipe.source, False), sets=sets)


def _rates(context: Context, sources: Sources, rate: float | None) -> Rates:
    recipe = context.recipe
    weights = sum(path.stat().st_size for path in find(recipe.model, context.base).glob("*.safetensors"))
    parameters = weights / (4 if recipe.model.dtype == "float32" else 2)
    sampled, paired = (context.run.stage(f"round-1/{kind}").manifest for kind in ("sample", "pair"))
    generated, basis = MULTIPLY_ADDS / (2 * max(parameters, 1)), "assumed: 2 CPU cores"
    answer = recipe.sample.max_new_tokens * ANSWER_SHARE
    if sampled is not None and sampled.counts.get("tokens") and sampled.seconds:
        generated, basis = sampled.counts["tokens"] / sampled.seconds, "measured in this run"
        answer = sampled.counts["tokens"] / sampled.counts["answers"]
    if rate is not None:
        generated, basis = rate, "--rate"
    pairs = sources.train.questions * PAIRS_SHARE * min(recipe.pairs.max_per_question, (recipe.sample.n / 2) ** 2)
    if paired is not None and paired.counts.get("pairs"):
        pairs = paired.counts["pairs"] / max(1, paired.counts["questions"]) * sources.train.questions
    return Rates(answer=answer, generated=generated, parameters=parameters, model_bytes=weights, pairs=pairs, basis=basis)


def _estimate(context: Context, planned: Planned, rates: Rates, index: Index) -> Estimate:
    job, work = planned.job, planned.work()
    missing = set(work.missing)
    todo = sum(size for shard, size in zip(work.shards, job.sizes, strict=True) if shard in missing)
    estimate = Estimate(
        stage=job.name,
        todo=todo,
        total=sum(job.sizes),
        unit=job.unit,
        why="; ".join(work.reasons) if missing else "done",
        basis=rates.basis,
    )
    if not todo:
        return replace(estimate, basis="")
    share = todo / max(1, sum(job.sizes))
    return _ESTIMATES.get(job.kind, _instant)(context, estimate, rates, index, share)


def _instant(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    return replace(estimate, seconds=estimate.todo * 1e-3, bytes=estimate.todo * 500)


def _sample(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    return _generated(estimate, rates, int(estimate.todo * context.recipe.sample.n * rates.answer))


def _continue(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    table = context.recipe.pairs
    answers = sum(index.open) * share * min(table.max_dropout_per_question, context.recipe.sample.n) * table.dropout_ntp
    return _generated(estimate, rates, int(answers * rates.answer * (1 - table.dropout_ratio)))


def _answer(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    count = context.recipe.evaluate.samples if estimate.stage.endswith("/sampled") else 1
    longest = 8 if estimate.stage.endswith("/direct") else rates.answer
    return _generated(estimate, rates, int(estimate.todo * count * longest))


def _generated(estimate: Estimate, rates: Rates, tokens: int) -> Estimate:
    return replace(estimate, tokens=tokens, seconds=tokens / rates.generated, bytes=tokens * TOKEN_BYTES)


def _verify(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    answers = (estimate.todo - sum(index.open) * share) * context.recipe.sample.n
    return replace(estimate, seconds=answers * VERDICT_SECONDS, bytes=int(answers * 20))


def _reference(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    tokens = int(rates.pairs * share * 2 * (PROMPT_TOKENS + rates.answer))
    return replace(estimate, tokens=tokens, seconds=_passes(tokens, rates, 1), bytes=int(rates.pairs * 2 * rates.answer * 2))


def _train(context: Context, estimate: Estimate, rates: Rates, index: Index, share: float) -> Estimate:
    tokens = int(rates.pairs * 2 * (PROMPT_TOKENS + rates.answer)) * context.recipe.train.epochs
    # Weights, and a checkpoint with weights and two optimizer moments in float32 while it trains.
    size = rates.model_bytes + int(rates.parameters * 12)
    return replace(estimate, tokens=tokens, seconds=_passes(tokens, rates, 3), bytes=size)


def _passes(tokens: int, rates: Rates, passes: int) -> float:
    """Seconds to read tokens: forward is one pass, forward and backward are three. Reading is some five times faster than writing."""
    return tokens * passes / (rates.generated * 5)


_ESTIMATES = {
    "sample": _sample,
    "continue": _continue,
    "verify": _verify,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
}


def totals(rows: list[Estimate]) -> Estimate:
    """The sum of all stages."""
    return Estimate(
        stage="all",
        todo=0,
        total=0,
        unit="",
        why="",
        tokens=sum(row.tokens for row in rows),
        seconds=sum(row.seconds for row in rows),
        bytes=sum(row.bytes for row in rows),
    )
