"""The training loop, to be read from top to bottom. Devices, ranks and trackers are Accelerate's; the maths is in `losses`.

One optimizer step: all micro-batches forward and backward, gradients divided by the step's number of pairs on all ranks, guards, update.
The reward shift delta is the mean of the rewards of all past optimizer steps (chosen and rejected together, all ranks); it is 0 in the
first step and stays the same within a step, so that dividing a step into micro-batches or ranks changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixpo.errors import TrainError
from mixpo.progress import Progress
from mixpo.train.adapters import merge_checked
from mixpo.train.batch import Batch, Piece, micro_batches, piece_of, pieces_of, wide
from mixpo.train.checkpoint import save_checkpoint
from mixpo.train.collate import collate
from mixpo.train.guards import KEPT, Seen, check_first_loss, check_reference, check_zero, culprit, warn_too_easy
from mixpo.train.losses import LossTerms, ResponseLogps, combine
from mixpo.train.metrics import StepMetrics
from mixpo.train.model import PartSize, checkpoint_activations, learning_rate, restore_types
from mixpo.train.plan import Step, share
from mixpo.train.session import Session, TrainJob, open_session
from mixpo.train.shifts import step_shifts
from mixpo.train.watch import watched
from mixpo.vlm.adapter import set_dropout
from mixpo.vlm.load import save


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training. folder: the model, for `mixpo.vlm.load`. steps: the logged ones. parts: what was trained."""

    folder: Path
    steps: tuple[StepMetrics, ...]
    parts: tuple[PartSize, ...]
    seconds: float


def train(job: TrainJob, progress: Progress) -> TrainResult:
    """Train `job.vlm` on its groups and save it to `job.output`; goes on from the newest checkpoint in `job.folder`.

    Raises TrainError when training cannot start or has to stop; the last good checkpoint is kept.
    """
    session = open_session(job, progress)
    state, total = session.state, session.schedule.total
    session.progress.start(f"train {job.objective}", total, "steps", state.step)
    for step in session.schedule.steps(state.step):
        begun = time.monotonic()
        _set_dropout(session)
        rate = learning_rate(job.table, state.step, total)
        sums = _forward_backward(session, step)
        grad_norm = _optimise(session, sums, rate)
        row = watched(session, _measure(session, step, sums, grad_norm, rate, time.monotonic() - begun))
        _advance(session, row)
        _log(session, row)
        if state.step % job.table.save_every == 0 or state.step == total:
            _save(session)
    session.progress.finish()
    if session.features is not None:
        session.progress.say(f"{job.objective}: {session.features}")
    return _finish(session)


def _set_dropout(session: Session) -> None:
    """The first step has none, because policy and reference are compared in it."""
    table = session.job.table.lora
    if table is not None and table.dropout:
        set_dropout(session.job.vlm.model, table.dropout if session.state.step else 0.0)


# --- one step ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the pairs of one optimizer step on all ranks. tokens: without padding."""

    total: float
    preference: float
    quality: float
    generation: float
    reward_chosen: float
    reward_rejected: float
    logp_chosen: float
    logp_rejected: float
    wins: float
    tokens: float


def _forward_backward(session: Session, step: Step) -> Sums:
    """Gradients of the step's mean loss, left in the parameters. Raises TrainError, before any update, for a bad start or a bad loss."""
    accelerator, state = session.accelerator, session.state
    pairs = sum(len(part.pairs) for part in step)
    # Ranks average their gradients, so that the factor `ranks` makes of their mean the sum over all pairs.
    scale = accelerator.num_processes / pairs
    batches = _batches(session, step)
    seen: list[Seen] = []
    sums = torch.zeros(len(dataclasses.fields(Sums)), dtype=wide(accelerator.device), device=accelerator.device)
    shifts = step_shifts(session, [pieces for pieces, counts in batches if counts])
    for number, (pieces, counts) in enumerate(batches, start=1):
        batch = session.complete(collate(session.job.vlm, pieces, session.prompts.get, session.layout), pieces)
        with accelerator.no_sync(session.scorer) if number < len(batches) else nullcontext():
            logps: ResponseLogps = session.scorer(batch)
            shift = next(shifts) if counts else 0.0
            beta, places = session.job.table.loss.beta, (batch.reference, batch.chosen, batch.rejected)
            terms = combine(session.weights, beta, logps, *places, state.delta, shift)
            accelerator.backward(terms.total.sum() * (scale * counts))
        if counts:
            sums += _add_up(terms, batch)
            seen.append(Seen(batch.names, logps.sums.detach(), batch.reference, batch.lengths, batch.chosen, batch.rejected))
    if state.step == 0:
        check_reference(session, seen)
    reduced = Sums(*accelerator.reduce(sums, "sum").tolist())
    if not math.isfinite(reduced.total):
        raise TrainError(f"step {state.step + 1}: the loss is {reduced.total}{culprit(seen)}; {KEPT}")
    if state.step == 0:
        check_first_loss(session, seen, reduced.total / pairs)
    return reduced


def _batches(session: Session, step: Step) -> list[tuple[tuple[Piece, ...], bool]]:
    """This rank's micro-batches, the same number on every rank; those that only fill up are marked False and count nothing."""
    accelerator, job = session.accelerator, session.job
    mine = share(step, accelerator.process_index, accelerator.num_processes, lambda group: sum(map(len, job.groups[group].responses)))
    batches = micro_batches(pieces_of(mine, job.groups), session.prompts.length, job.table.tokens_per_batch, session.layout)
    most = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    group = job.groups[step[0].group]
    filler = (piece_of(group, group.pairs[:1]),)
    # The fillers go first: the last micro-batch, whose backward pass synchronises, is then a real one wherever there is one.
    return [(filler, False)] * (most - len(batches)) + [(pieces, True) for pieces in batches]


def _add_up(terms: LossTerms, batch: Batch) -> Tensor:
    """One number for each field of Sums."""
    wins = (terms.reward_chosen > terms.reward_rejected).float()
    columns = [getattr(terms, field.name) for field in dataclasses.fields(Sums)[:8]]
    pair_sums = torch.stack([column.detach().to(wide(wins.device)) for column in [*columns, wins]]).sum(-1)
    return torch.cat([pair_sums, pair_sums.new_tensor([batch.tokens])])


def _optimise(session: Session, sums: Sums, rate: float) -> float:
    """Clip, check, update. Returns the norm of the gradients before clipping."""
    state, model = session.state, session.job.vlm.model
    grad_norm = float(session.accelerator.clip_grad_norm_(model.parameters(), session.job.table.max_grad_norm))
    if not math.isfinite(grad_norm):
        raise TrainError(f"step {state.step + 1}: the gradients are not finite (norm {grad_norm}); {KEPT}")
    check_zero(state, sums.total)
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    return grad_norm


def _measure(session: Session, step: Step, sums: Sums, grad_norm: float, rate: float, seconds: float) -> StepMetrics:
    pairs = sum(len(part.pairs) for part in step)
    weights = session.weights
    done = session.state.step + 1
    epoch, within = divmod(done - 1, session.schedule.steps_per_epoch)
    seen = min((within + 1) * session.schedule.batch_size, session.schedule.pairs)
    return StepMetrics(
        step=done,
        epoch=epoch + seen / session.schedule.pairs,
        loss=sums.total / pairs,
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
    )


def _advance(session: Session, row: StepMetrics) -> None:
    """The step is done: count it, and let its rewards into the shift of the steps to come."""
    state = session.state
    state.reward_sum += (row.reward_chosen + row.reward_rejected) * row.pairs
    state.reward_count += 2 * row.pairs
    state.step, state.seconds = row.step, state.seconds + row.seconds
    if session.online is not None:
        session.online.follow(state.step)
    warn_too_easy(session, row)


def _log(session: Session, row: StepMetrics) -> None:
    session.progress.advance(1, f"loss {row.loss:.3f}, accuracy {row.accuracy:.2f}")
    if row.step % session.job.table.log_every and row.step not in (1, session.schedule.total) and row.watch_accuracy is None:
        return
    session.metrics.append(row)
    if session.job.table.trackers:
        session.accelerator.log(
            {name: value for name, value in dataclasses.asdict(row).items() if name != "step" and value is not None}, step=row.step
        )


# --- saving ------------------------------------------------------------------------------------------------------------


def _save(session: Session) -> None:
    if session.main:
        moved = session.online.moved if session.online else {}
        save_checkpoint(session.job.folder / "checkpoints", session.state, session.job.vlm.model, session.optimizer, moved)
    session.accelerator.wait_for_everyone()


def _finish(session: Session) -> TrainResult:
    """Save the model as a plain folder of transformers, read it back, and compare."""
    job, model = session.job, session.job.vlm.model
    if job.table.gradient_checkpointing:
        checkpoint_activations(model, on=False)
    model.eval()
    if job.table.lora is None:
        restore_types(model, dict(session.had))
    group = next(group for group in job.groups if group.pairs)
    batch = collate(job.vlm, [piece_of(group, group.pairs[:1])], session.prompts.get, "plain")
    beside = None if job.table.lora is None else merge_checked(job.vlm, batch, session.precision)
    if session.main:
        save(job.vlm, job.output, batch.inputs, beside)
    session.accelerator.wait_for_everyone()
    for tracker in session.accelerator.trackers:
        tracker.finish()
    return TrainResult(folder=job.output, steps=tuple(session.metrics.rows), parts=tuple(session.parts), seconds=session.state.seconds)
