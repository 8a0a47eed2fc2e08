"""The training loop. Devices, ranks and trackers are Accelerate's; the losses are in `mixpo.train.losses`.

One optimizer step: forward and backward of all micro-batches, gradients averaged over the step's pairs on all ranks, guards, update.
The reward shift delta (MPO, arXiv 2411.10442) is the mean reward of all past steps (chosen and rejected, all ranks); it is 0 in the
first step and constant within a step, so that splitting a step into micro-batches or ranks does not change it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mixpo.errors import TrainError
from mixpo.progress import Progress
from mixpo.train.adapters import merge_checked
from mixpo.train.aot_shift import step_shifts
from mixpo.train.batch import Batch, Chunk, find_dummy, make_chunk, with_dummy
from mixpo.train.collate import collate
from mixpo.train.guards import (
    SENTINEL_EVERY,
    STEP_DISCARDED,
    BatchLogps,
    check_base_model,
    check_degeneration,
    check_first_loss,
    check_layout,
    check_reference,
    check_weights,
    check_zero_loss,
    first_nonfinite,
    warn_too_easy,
)
from mixpo.train.inputs import PlannedStep, StepInputs
from mixpo.train.losses import ResponseLogps, combine
from mixpo.train.measure import StepSums, batch_sums, evaluate_policy, live_line, measure, minimum_tokens, zero_sums
from mixpo.train.metrics import StepMetrics
from mixpo.train.model import PartSize, checkpoint_activations, learning_rate
from mixpo.train.replay import pictured_dummy, replay_losses, step_replay
from mixpo.train.schedule import share_of_batch
from mixpo.train.session import Session, TrainJob, open_session
from mixpo.types import seed_of
from mixpo.vlm.adapter import set_dropout
from mixpo.vlm.save import save


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training. folder: the saved model. steps: the logged ones. parts: parameter counts of the model's parts."""

    folder: Path
    steps: tuple[StepMetrics, ...]
    parts: tuple[PartSize, ...]
    seconds: float


def train(job: TrainJob, progress: Progress) -> TrainResult:
    """Train `job.vlm` on its groups and save it to `job.output`; resumes from the newest checkpoint in `job.folder`.

    Raises TrainError when training cannot start or has to stop; the last checkpoint is kept.
    """
    session = open_session(job, progress)
    state, total = session.state, session.schedule.total
    session.progress.start(f"train {job.objective}", total, "steps", state.step)
    check_base_model(session)
    begun = time.monotonic()
    with session.checkpoints, StepInputs(session) as inputs:
        for plan in inputs:
            session.checkpoints.check()
            _set_random(session)
            rate = learning_rate(job.table, state.step, total) * share_of_batch(plan.step, job.table.batch_size)
            sums = _forward_backward(session, plan, inputs)
            grad_norm = _optimise(session, sums, rate)
            row = evaluate_policy(session, measure(session, plan.step, sums, grad_norm, rate, time.monotonic() - begun))
            saving = row.step % job.table.save_every == 0 or row.step == total
            row = check_degeneration(session, row, saving=saving)
            _advance(session, row)
            _log(session, row)
            if session.scorer.compiled is not None and (news := session.scorer.compiled.news()):
                session.progress.say(f"{job.objective}: step {row.step}: {news}")
            if saving:
                _save(session)
            begun = time.monotonic()
    session.progress.finish()
    if session.vision_cache is not None:
        session.progress.say(f"{job.objective}: {session.vision_cache}")
    return _finish(session)


def _set_random(session: Session) -> None:
    """Key the step's random numbers by what decides them, so that no earlier training, evaluation or resuming can change them.

    Only adapter dropout uses any; it is disabled in the first step, which compares policy and reference.
    """
    job, step = session.job, session.state.step
    key = f"{job.seed}/{job.objective}/{job.round}/{session.accelerator.process_index}/{step}"
    torch.manual_seed(seed_of(key))
    table = session.job.table.lora
    if table is not None and table.dropout:
        set_dropout(session.job.vlm.model, table.dropout if session.state.step else 0.0)


# --- one step ----------------------------------------------------------------------------------------------------------


def _forward_backward(session: Session, plan: PlannedStep, inputs: StepInputs) -> StepSums:
    """Accumulate the gradients of the step's mean loss. Raises TrainError before the update if a guard fails."""
    accelerator, state = session.accelerator, session.state
    pairs = sum(len(part.pairs) for part in plan.step)
    replay = step_replay(session, plan.replay, plan.skipped)
    # Gradients are averaged over ranks; the factor of the world size turns that into the sum over all pairs, and over all replay rows.
    scale = accelerator.num_processes / pairs
    batches = _batches(session, plan)
    if state.step and state.step % SENTINEL_EVERY == 0:
        check_layout(session, batches[0])
    seen: list[BatchLogps] = []
    sums = zero_sums(minimum_tokens(session, batches), accelerator.device)
    shifts = step_shifts(session, batches)
    for number, chunks in enumerate(batches):
        batch = session.complete(inputs.batch(plan, number, chunks), chunks)
        with session.parallel.accumulate(last=number == len(batches) - 1):
            logps: ResponseLogps = session.parallel.scorer(batch)
            beta, places = session.job.table.loss.beta, (batch.reference, batch.chosen, batch.rejected)
            terms = combine(session.weights, beta, logps, *places, state.delta, next(shifts), batch.held)
            replayed = replay_losses(logps, batch)
            session.parallel.backward(terms.total.sum() * scale + replayed.sum() * replay.scale)
        sums += batch_sums(session, terms, logps.sums, replayed, chunks, batch)
        seen.append(_seen(batch, logps.sums.detach()))
    if state.step == 0:
        check_reference(session, seen)
    reduced = StepSums(*accelerator.reduce(sums, "sum").tolist())
    if not math.isfinite(reduced.total + reduced.replay):
        raise TrainError(
            f"step {state.step + 1}: the loss is {reduced.total + reduced.replay}{first_nonfinite(seen)}; {STEP_DISCARDED}",
            code="loss-not-finite",
        )
    if state.step == 0:
        check_first_loss(session, seen, reduced.total / pairs)
    state.replay_rows, state.replay_skipped = state.replay_rows + replay.used, state.replay_skipped + replay.skipped
    return reduced


def _seen(batch: Batch, sums: Tensor) -> BatchLogps:
    """What the guards compare. Replay rows have no reference, so theirs is what the policy gives."""
    reference = batch.reference.index_copy(0, batch.replayed, sums[batch.replayed])
    return BatchLogps(batch.question_ids, sums, reference, batch.lengths, batch.chosen, batch.rejected)


def _batches(session: Session, plan: PlannedStep) -> list[tuple[Chunk, ...]]:
    """This rank's micro-batches. With several ranks: the same number on each, all with images if any rank has some.

    A step without images has no dummy with one: with a gradient of 0 the optimizer would move the vision tower by its momentum.
    """
    accelerator, batches = session.accelerator, plan.batches
    if accelerator.num_processes == 1:
        return batches
    pictured = any(chunk.group.question.images for chunks in batches for chunk in chunks)
    counts = accelerator.gather(torch.tensor([[len(batches), int(pictured)]], device=accelerator.device))
    most, anywhere = counts.amax(0).tolist()
    if not anywhere:
        dummy = find_dummy([session.job.groups[part.group] for part in plan.step], session.prompts.length)
    else:
        dummy = session.dummy if session.dummy.group.question.images else pictured_dummy(session)
    return [with_dummy(chunks, dummy) for chunks in [*batches, *[()] * (most - len(batches))]]


def _optimise(session: Session, sums: StepSums, rate: float) -> float:
    """Check the loss, clip, update. Returns the gradient norm before clipping."""
    state = session.state
    check_zero_loss(state, sums.total)
    for group in session.parallel.optimizer.param_groups:
        group["lr"] = rate
    grad_norm = session.parallel.update(session.job.table.max_grad_norm)
    if not math.isfinite(grad_norm):
        raise TrainError(
            f"step {state.step + 1}: the gradients are not finite (norm {grad_norm}); {STEP_DISCARDED}", code="gradients-not-finite"
        )
    return grad_norm


def _advance(session: Session, row: StepMetrics) -> None:
    """Count the step and add its rewards to the running reward shift."""
    state = session.state
    state.reward_sum += (row.reward_chosen + row.reward_rejected) * row.pairs
    state.reward_count += 2 * row.pairs
    state.step, state.seconds = row.step, state.seconds + row.seconds
    if session.online is not None:
        session.online.update(state.step)
    warn_too_easy(session, row)


def _log(session: Session, row: StepMetrics) -> None:
    checked = (row.watch_accuracy, row.guard_loops) != (None, None)
    if row.step % session.job.table.log_every and row.step not in (1, session.schedule.total) and not checked:
        session.progress.advance(1)
        return
    session.progress.advance(1, live_line(row))
    session.metrics.append(row)
    if session.job.table.trackers:
        session.accelerator.log(
            {name: value for name, value in dataclasses.asdict(row).items() if name != "step" and value is not None}, step=row.step
        )


# --- saving ------------------------------------------------------------------------------------------------------------


def _save(session: Session) -> None:
    moving_values = session.online.moving_values if session.online else {}
    check_weights(session)
    session.checkpoints.save(session.state, moving_values)


def _finish(session: Session) -> TrainResult:
    """Save the model as a transformers folder; `save` reloads and compares it."""
    job, model = session.job, session.parallel.full_model(session.dtypes)
    if model is not None:
        if job.table.gradient_checkpointing:
            checkpoint_activations(model, on=False)
        model.eval()
        vlm = replace(job.vlm, model=model, device=next(model.parameters()).device)
        group = job.groups[int(job.groups.sizes["pairs"].nonzero()[0][0])]
        chunk = make_chunk(group, group.pairs[:1])

        def batch() -> Batch:
            return collate(vlm, [chunk], session.prompts.get, "single")

        write_adapter = None if job.table.lora is None else merge_checked(vlm, batch, session.precision)
        save(vlm, job.output, batch().singles[0], write_adapter)
    session.parallel.wait()
    for tracker in session.accelerator.trackers:
        tracker.finish()
    return TrainResult(folder=job.output, steps=tuple(session.metrics.rows), parts=tuple(session.parts), seconds=session.state.seconds)
