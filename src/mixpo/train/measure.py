"""Metrics of a step: sums over its pairs on all ranks, the logged row, the progress line, in-training evaluation."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixpo.train.batch import Batch, Chunk, accumulation_dtype, footprint
from mixpo.train.guards import policy_metrics
from mixpo.train.losses import LossTerms
from mixpo.train.metrics import StepMetrics
from mixpo.train.schedule import Step
from mixpo.train.session import Session

REPETITION_WARNING = 0.1
"""A larger share of answers with repetition in the in-training evaluation is logged as a warning."""


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over the pairs, and the replay rows, of one optimizer step on all ranks. First those of `LossTerms`, in its order.

    total: of the pairs. drift: (reference - policy) log-prob per token, mean of both sides. replay: NLL per token of the rows.
    tokens: without padding. computed: with padding and dummy chunks. minimum: see `minimum_tokens`.
    """

    total: float
    preference: float
    quality: float
    generation: float
    hold: float
    reward_chosen: float
    reward_rejected: float
    logp_chosen: float
    logp_rejected: float
    wins: float
    drift: float
    replay: float
    replay_rows: float
    tokens: float
    computed: float
    minimum: float


def zero_sums(minimum: int, device: torch.device) -> Tensor:
    """(fields of StepSums,) zeros, but for the minimum of tokens."""
    sums = torch.zeros(len(dataclasses.fields(StepSums)), dtype=accumulation_dtype(device), device=device)
    sums[-1] = minimum
    return sums


def batch_sums(session: Session, terms: LossTerms, logps: Tensor, replay: Tensor, chunks: Sequence[Chunk], batch: Batch) -> Tensor:
    """(fields of StepSums,) of one micro-batch. logps: (R,) summed log-probs. replay: (M,) losses of its replay rows."""
    wins = (terms.reward_chosen > terms.reward_rejected).float()
    columns = [getattr(terms, field.name) for field in dataclasses.fields(LossTerms)]
    drifts = (batch.reference - logps.detach()) / batch.lengths.clamp(min=1)
    drift = (drifts[batch.chosen] + drifts[batch.rejected]) / 2
    pair_sums = torch.stack([column.detach().to(accumulation_dtype(wins.device)) for column in [*columns, wins, drift]]).sum(-1)
    unpaired = sum(footprint(chunk, session.prompts.length(chunk.group)).tokens for chunk in chunks if _is_dummy(chunk))
    rows = [float(replay.detach().sum()), len(replay)]
    return torch.cat([pair_sums, pair_sums.new_tensor([*rows, batch.tokens - unpaired, batch.inputs["input_ids"].numel(), 0])])


def _is_dummy(chunk: Chunk) -> bool:
    return not chunk.pairs and not chunk.replay


def minimum_tokens(session: Session, batches: Sequence[Sequence[Chunk]]) -> int:
    """Tokens of these micro-batches if every prompt and shared prefix were computed once."""
    whole: dict[tuple[str, str, bool], Chunk] = {}
    for chunk in (chunk for chunks in batches for chunk in chunks if not _is_dummy(chunk)):
        key = chunk.group.question.id, chunk.group.prompt, chunk.replay
        known = whole[key].responses if key in whole else ()
        whole[key] = Chunk(chunk.group, tuple(sorted({*known, *chunk.responses})), ())
    return sum(footprint(chunk, session.prompts.length(chunk.group)).tokens for chunk in whole.values())


def measure(session: Session, step: Step, sums: StepSums, grad_norm: float, rate: float, seconds: float) -> StepMetrics:
    """The row of the step just taken; `session.state` does not count it yet."""
    pairs = sum(len(part.pairs) for part in step)
    weights = session.weights
    done = session.state.step + 1
    epoch, within = divmod(done - 1, session.schedule.steps_per_epoch)
    spent = session.state.seconds + seconds
    replay = sums.replay / sums.replay_rows if sums.replay_rows else 0.0
    weighted_replay = session.job.table.replay.weight * replay if session.job.table.replay else 0.0
    seen = min((within + 1) * session.schedule.batch_size, session.schedule.pairs)
    return StepMetrics(
        step=done,
        epoch=epoch + seen / session.schedule.pairs,
        loss=sums.total / pairs + weighted_replay,
        preference=sums.preference / pairs,
        quality=sums.quality / pairs,
        generation=sums.generation / pairs,
        weighted_preference=weights.preference * sums.preference / pairs,
        weighted_quality=weights.quality * sums.quality / pairs,
        weighted_generation=weights.generation * sums.generation / pairs,
        reward_chosen=sums.reward_chosen / pairs,
        reward_rejected=sums.reward_rejected / pairs,
        margin=(sums.reward_chosen - sums.reward_rejected) / pairs,
        accuracy=sums.wins / pairs,
        delta=session.state.delta,
        logp_chosen=sums.logp_chosen / pairs,
        logp_rejected=sums.logp_rejected / pairs,
        learning_rate=rate,
        grad_norm=grad_norm,
        pairs=pairs,
        tokens=int(sums.tokens),
        seconds=seconds,
        tokens_per_second=sums.tokens / seconds,
        pairs_per_second=pairs / seconds,
        token_efficiency=sums.minimum / sums.computed,
        memory=peak_memory(session.accelerator.device),
        seconds_left=spent / done * (session.schedule.total - done),
        replay=replay,
        weighted_replay=weighted_replay,
        replay_rows=session.state.replay_rows,
        replay_skipped=session.state.replay_skipped,
        kl=sums.drift / pairs,
        hold=sums.hold / pairs,
        weighted_hold=weights.hold * sums.hold / pairs,
    )


def evaluate_policy(session: Session, row: StepMetrics) -> StepMetrics:
    """The row of a step, with metrics of the in-training evaluation where due (every `train.watch.every` steps and after the last)."""
    table, watch = session.job.table.watch, session.job.watch
    if table is None or watch is None or (row.step % table.every and row.step != session.schedule.total):
        return row
    metrics = policy_metrics(session, watch)
    figures = (
        f"{metrics.accuracy:.1%} correct, {metrics.tokens:.0f} tokens, {metrics.cut:.0%} truncated, {metrics.loops:.0%} with repetition"
    )
    session.progress.say(f"step {row.step}: in-training evaluation: {figures}")
    if metrics.loops > REPETITION_WARNING:
        session.progress.say(
            f"step {row.step}: {metrics.loops:.0%} of the answers repeat a phrase over and over; the model may be degenerating, "
            "lower train.learning_rate or raise train.loss.generation"
        )
    return dataclasses.replace(
        row, watch_accuracy=metrics.accuracy, watch_tokens=metrics.tokens, watch_loops=metrics.loops, watch_cut=metrics.cut
    )  # fmt: skip


def live_line(row: StepMetrics) -> str:
    """A step in one line for the progress display, which adds its number and the time left."""
    parts = (
        (row.weighted_preference, "preference"), (row.weighted_quality, "quality"), (row.weighted_generation, "generation"),
        (row.weighted_hold, "hold"), (row.weighted_replay, "replay"),
    )  # fmt: skip
    terms = " + ".join(f"{name} {value:.3f}" for value, name in parts if value)
    return (
        f"loss {row.loss:.3f}{f' ({terms})' if terms else ''}, margin {row.margin:.3f}, accuracy {row.accuracy:.2f}, "
        f"{row.tokens_per_second:,.0f} tokens/s, {row.pairs_per_second:,.1f} pairs/s, {row.token_efficiency:.0%} of the token limit, "
        f"{row.memory / 2**30:.1f} GiB"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: peak of tensors on the GPU, or of the process without one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    # KiB on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
