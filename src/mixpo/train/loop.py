"""The training loop, to be read from top to bottom. Devices, ranks and trackers are Accelerate's; the maths is in `losses`.

One optimizer step: all micro-batches forward and backward, gradients divided by the step's number of pairs on all ranks, guards, update.
The reward shift delta is the mean of the rewards of all past optimizer steps (chosen and rejected together, all ranks); it is 0 in the
first step and stays the same within a step, so that dividing a step into micro-batches or ranks changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixpo.errors import TrainError
from mixpo.progress import Progress
from mixpo.train.batch import Batch, Piece, collate, micro_batches, piece_of, pieces_of
from mixpo.train.checkpoint import save_checkpoint
from mixpo.train.losses import LossTerms, ResponseLogps, combine, expected_start
from mixpo.train.metrics import StepMetrics
from mixpo.train.model import PartSize, checkpoint_activations, learning_rate, restore_types
from mixpo.train.plan import Step, share
from mixpo.train.session import Session, TrainJob, open_session
from mixpo.types import Group
from mixpo.vlm.load import save

ZERO_STEPS = 3
"""A loss of exactly 0 in this many steps in a row stops the training."""
TOO_EASY = 0.98
"""Reward accuracy above this within the first 5 % of the steps is reported: the pairs are told apart by something trivial."""


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
        rate = learning_rate(job.table, state.step, total)
        sums = _forward_backward(session, step)
        grad_norm = _optimise(session, sums, rate)
        row = _measure(session, step, sums, grad_norm, rate, time.monotonic() - begun)
        _advance(session, row)
        _log(session, row)
        if state.step % job.table.save_every == 0 or state.step == total:
            _save(session)
    session.progress.finish()
    return _finish(session)


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
    seen: list[tuple[Batch, Tensor]] = []
    sums = torch.zeros(len(dataclasses.fields(Sums)), dtype=_wide(accelerator.device), device=accelerator.device)
    for number, (pieces, counts) in enumerate(batches, start=1):
        batch = collate(session.job.vlm, pieces, session.prompts.get, session.layout.shared)
        with accelerator.no_sync(session.scorer) if number < len(batches) else nullcontext():
            logps: ResponseLogps = session.scorer(batch)
            terms = combine(
                session.weights, session.job.table.loss.beta, logps, batch.reference, batch.chosen, batch.rejected, state.delta
            )  # fmt: skip
            accelerator.backward(terms.total.sum() * (scale * counts))
        if counts:
            sums += _add_up(terms, batch)
            seen.append((batch, logps.sums.detach()))
    if state.step == 0:
        _check_reference(session, seen)
    reduced = Sums(*accelerator.reduce(sums, "sum").tolist())
    if not math.isfinite(reduced.total):
        raise TrainError(f"step {state.step + 1}: the loss is {reduced.total}{_culprit(seen)}; {_kept(session)}")
    if state.step == 0:
        _check_first_loss(session, step, reduced.total / pairs)
    return reduced


def _batches(session: Session, step: Step) -> list[tuple[tuple[Piece, ...], bool]]:
    """This rank's micro-batches, the same number on every rank; those that only fill up are marked False and count nothing."""
    accelerator, job = session.accelerator, session.job
    weight = [sum(map(len, group.responses)) for group in job.groups] if accelerator.num_processes > 1 else [0] * len(job.groups)
    mine = share(step, accelerator.process_index, accelerator.num_processes, weight) if accelerator.num_processes > 1 else step
    batches = micro_batches(pieces_of(mine, job.groups), session.prompts.length, job.table.tokens_per_batch)
    if accelerator.num_processes == 1:
        return [(pieces, True) for pieces in batches]
    most = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    group = job.groups[step[0].group]
    filler = (piece_of(group, group.pairs[:1]),)
    # The fillers go first: the last micro-batch, whose backward pass synchronises, is then a real one wherever there is one.
    return [(filler, False)] * (most - len(batches)) + [(pieces, True) for pieces in batches]


def _add_up(terms: LossTerms, batch: Batch) -> Tensor:
    """One number for each field of Sums."""
    wins = (terms.reward_chosen > terms.reward_rejected).float()
    columns = [getattr(terms, field.name) for field in dataclasses.fields(Sums)[:8]]
    pair_sums = torch.stack([column.detach().float() for column in [*columns, wins]]).to(_wide(wins.device)).sum(-1)
    return torch.cat([pair_sums, pair_sums.new_tensor([batch.tokens])])


def _optimise(session: Session, sums: Sums, rate: float) -> float:
    """Clip, check, update. Returns the norm of the gradients before clipping."""
    state, model = session.state, session.job.vlm.model
    grad_norm = float(session.accelerator.clip_grad_norm_(model.parameters(), session.job.table.max_grad_norm))
    if not math.isfinite(grad_norm):
        raise TrainError(f"step {state.step + 1}: the gradients are not finite (norm {grad_norm}); {_kept(session)}")
    state.zero_steps = state.zero_steps + 1 if sums.total == 0 else 0
    if state.zero_steps >= ZERO_STEPS:
        raise TrainError(
            f"step {state.step + 1}: the loss was exactly 0 in {ZERO_STEPS} steps in a row, so nothing is learned; look at the pairs, "
            f"at the chat template (does it supervise any token?) and at the weights in train.loss; {_kept(session)}"
        )
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
    # In the first step policy and reference are equal, so that its accuracy is chance.
    if not state.warned and 1 < row.step <= 0.05 * session.schedule.total and row.accuracy > TOO_EASY:
        state.warned = True
        session.progress.say(
            f"step {row.step}: {row.accuracy:.0%} of the pairs are told apart already; they may differ in length or format instead of "
            "correctness, look at them in the report"
        )


def _log(session: Session, row: StepMetrics) -> None:
    session.progress.advance(1, f"loss {row.loss:.3f}, accuracy {row.accuracy:.2f}")
    if row.step % session.job.table.log_every and row.step not in (1, session.schedule.total):
        return
    session.metrics.append(row)
    if session.job.table.trackers:
        session.accelerator.log({name: value for name, value in dataclasses.asdict(row).items() if name != "step"}, step=row.step)


# --- guards ------------------------------------------------------------------------------------------------------------


def _check_reference(session: Session, seen: list[tuple[Batch, Tensor]]) -> None:
    """Before the first update the policy is the reference: every log-prob must be the one that was stored."""
    problem = next(_differences(session, seen), "")
    device = session.accelerator.device
    # Ranks stop together: one that raised alone would leave the others waiting for its gradients.
    if int(session.accelerator.reduce(torch.tensor(int(bool(problem)), device=device), "sum")):
        raise TrainError(problem or "another rank found reference log-probs that are not the policy's; see its message")


def _differences(session: Session, seen: list[tuple[Batch, Tensor]]) -> Iterator[str]:
    for batch, sums in seen:
        allowed = 1e-4 * batch.reference.abs().clamp(min=1) if session.precision == torch.float32 else 0.05 * batch.lengths
        equal = (sums - batch.reference).abs() <= allowed
        for number in (~equal).nonzero()[:, 0].tolist():
            yield (
                f"question {batch.names[number]}: at the start the policy gives a response log-probability {sums[number].item():.4f} "
                f"where the reference stage found {batch.reference[number].item():.4f}; its records are of another model, "
                "template or image setting, run the reference stage with --force"
            )


def _check_first_loss(session: Session, step: Step, observed: float) -> None:
    nll = [loss for part in step for loss in _reference_losses(session.job.groups[part.group], part.pairs)]
    mean = sum(nll) / len(nll)
    expected = expected_start(session.weights, mean)
    session.progress.say(
        f"{session.job.objective}: first loss {observed:.4f}, expected {expected:.4f} (reference NLL {mean:.4f} per token)"
    )
    allowed = 1e-3 if session.precision == torch.float32 else 0.05 * expected
    if not abs(observed - expected) <= allowed:
        raise TrainError(
            f"the first loss is {observed:.4f} instead of {expected:.4f}; the reference log-probs do not belong to this model and data, "
            "run the reference stage with --force"
        )


def _reference_losses(group: Group, pairs: Sequence[int]) -> Iterator[float]:
    """-log pi_0(y_c|x) / |y_c| of these pairs."""
    reference = group.reference
    assert reference is not None, "checked when the session was opened"
    for pair in pairs:
        chosen = group.pairs[pair][0]
        yield -reference[chosen] / len(group.responses[chosen])


def _culprit(seen: list[tuple[Batch, Tensor]]) -> str:
    for batch, sums in seen:
        for number in (~sums.isfinite()).nonzero()[:1, 0].tolist():
            return f" (question {batch.names[number]}: log-probability {sums[number].item()})"
    return ""


def _kept(session: Session) -> str:
    return "weights were not updated and the last checkpoint is kept; lower train.learning_rate, or look at the data of this step"


# --- saving ------------------------------------------------------------------------------------------------------------


def _save(session: Session) -> None:
    if session.main:
        save_checkpoint(session.job.folder / "checkpoints", session.state, session.job.vlm.model, session.optimizer)
    session.accelerator.wait_for_everyone()


def _finish(session: Session) -> TrainResult:
    """Save the model as a plain folder of transformers, read it back, and compare."""
    job, model = session.job, session.job.vlm.model
    if job.table.gradient_checkpointing:
        checkpoint_activations(model, on=False)
    model.eval()
    restore_types(model, dict(session.had))
    if session.main:
        group = next(group for group in job.groups if group.pairs)
        check = collate(job.vlm, [piece_of(group, group.pairs[:1])], session.prompts.get, shared=False).inputs
        save(job.vlm, job.output, check)
    session.accelerator.wait_for_everyone()
    for tracker in session.accelerator.trackers:
        tracker.finish()
    return TrainResult(folder=job.output, steps=tuple(session.metrics.rows), parts=tuple(session.parts), seconds=session.state.seconds)


def _wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it: sums over many steps and ranks."""
    return torch.float32 if device.type == "mps" else torch.float64
