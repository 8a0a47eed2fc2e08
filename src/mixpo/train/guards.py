"""Checks that stop training, or log a warning, before bad numbers reach the weights. All ranks decide the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixpo.errors import TrainError
from mixpo.train.checkpoint import TrainState
from mixpo.train.losses import ResponseLogps, generation_loss, initial_loss
from mixpo.train.metrics import StepMetrics
from mixpo.train.parallel import local_shard
from mixpo.train.session import Session

ZERO_STEPS = 3
"""Consecutive steps with a loss of exactly 0 that stop training."""
TOO_EASY = 0.98
"""Reward accuracy above this within the first 5 % of the steps is logged: a trivial feature separates the pairs."""
STEP_DISCARDED = (
    "nothing of this step is saved and the last checkpoint is kept; lower train.learning_rate, or inspect the data of this step"
)


class BatchLogps(NamedTuple):
    """Log-probs of a micro-batch. sums, reference, lengths: (R,). chosen, rejected: (K,) indices into them."""

    question_ids: tuple[str, ...]
    sums: Tensor
    reference: Tensor
    lengths: Tensor
    chosen: Tensor
    rejected: Tensor


def check_reference(session: Session, seen: Sequence[BatchLogps]) -> None:
    """Before the first update, policy and reference are equal: raise TrainError for a log-prob that differs from the reference."""
    remedy = _remedy(session.online is not None, str(session.job.vlm.processor.chat_template))
    problem = next(_differences(seen, session.precision == torch.float32, session.online is not None, remedy), "")
    failed = torch.tensor(int(bool(problem)), device=session.accelerator.device)
    # All ranks raise: one that raised alone would leave the others waiting for its gradients.
    if int(session.accelerator.reduce(failed, "sum")):
        raise TrainError(problem or "reference and policy differ on another rank; see its message", code="reference-mismatch")


def _remedy(online: bool, template: str) -> str:
    if online:
        return "the copy of the base model differs from it; delete the checkpoints of this training and run again"
    if "strftime_now" in template:
        return (
            "the chat template writes today's date into the prompt (strftime_now), and the records are of another day: "
            "write a fixed date into the template and run the reference stage with --force"
        )
    return "its records are of another model, template or image setting, run the reference stage with --force"


def _differences(seen: Sequence[BatchLogps], exact: bool, online: bool, remedy: str) -> Iterator[str]:
    for question_ids, sums, reference, lengths, _, _ in seen:
        allowed = 1e-4 * reference.abs().clamp(min=1) if exact else 0.05 * lengths
        equal = (sums - reference).abs() <= allowed  # False for NaN
        for number in (~equal).nonzero()[:, 0].tolist():
            yield (
                f"question {question_ids[number]}: at the start the policy gives a response log-probability {sums[number].item():.4f} "
                f"where the reference {'gives' if online else 'stage computed'} {reference[number].item():.4f}; {remedy}"
            )


def check_first_loss(session: Session, seen: Sequence[BatchLogps], observed: float) -> None:
    """Log the first loss and its expected value; raise TrainError when they differ. seen: log-probs of this rank."""
    sums = torch.zeros(3, device=session.accelerator.device)
    for one in seen:
        logps = ResponseLogps(sums=one.reference, lengths=one.lengths)
        nll = generation_loss(logps.sums[one.chosen], logps.lengths[one.chosen])
        loss = initial_loss(session.weights, session.job.table.loss.beta, logps, one.chosen, one.rejected)
        sums += torch.stack([nll.sum(), loss.sum(), nll.new_tensor(len(nll))])
    nll_sum, loss_sum, pairs = session.accelerator.reduce(sums, "sum").tolist()
    mean, expected = nll_sum / pairs, loss_sum / pairs
    name = session.job.objective
    session.progress.say(f"{name}: first loss {observed:.4f}, expected {expected:.4f} (reference NLL {mean:.4f} per token)")
    # Squared log-ratios are far more sensitive to rounding than a sigmoid of them.
    squares = session.weights.loss_type in ("ipo", "sppo")
    exact, rough = (1e-3 * expected, 0.3 * expected) if squares else (1e-3, 0.05 * expected)
    allowed = exact if session.precision == torch.float32 else rough
    if not abs(observed - expected) <= allowed:
        raise TrainError(
            f"the first loss is {observed:.4f} instead of {expected:.4f}; the reference log-probs do not belong to this model and data, "
            "run the reference stage with --force",
            code="first-loss-mismatch",
        )


def first_nonfinite(seen: Sequence[BatchLogps]) -> str:
    """The first question with a non-finite log-prob, as a clause of an error message; "" if there is none on this rank."""
    for question_ids, sums, *_ in seen:
        for number in (~sums.isfinite()).nonzero()[:1, 0].tolist():
            return f" (question {question_ids[number]}: log-probability {sums[number].item()})"
    return ""


def check_zero_loss(state: TrainState, total: float) -> None:
    """Count consecutive losses of exactly 0; raise TrainError after `ZERO_STEPS` of them."""
    state.zero_steps = state.zero_steps + 1 if total == 0 else 0
    if state.zero_steps >= ZERO_STEPS:
        raise TrainError(
            f"step {state.step + 1}: the loss was exactly 0 in {ZERO_STEPS} steps in a row, so nothing is learned; inspect the pairs, "
            f"at the chat template (does it supervise any token?) and at the weights in train.loss; {STEP_DISCARDED}",
            code="loss-zero",
        )


def check_weights(session: Session) -> None:
    """Before a checkpoint: raise TrainError for non-finite trained weights, or a matrix that has become all zeros."""
    names = [name for name, _ in session.parallel.trained()]
    flags = torch.zeros(2, len(names), device=session.accelerator.device)
    for number, (_, parameter) in enumerate(session.parallel.trained()):
        held = local_shard(parameter)
        if held.numel():
            low, high = torch.aminmax(held)
            flags[0, number] = ~(low.isfinite() & high.isfinite())
            flags[1, number] = (low != 0) | (high != 0) | (parameter.ndim < 2)
    broken, alive = session.accelerator.reduce(flags, "sum").tolist()
    for number, name in enumerate(names):
        if broken[number] or not (alive[number] or name in session.zero_matrices):
            what = "holds NaN or infinite values" if broken[number] else "has become nothing but zeros"
            raise TrainError(
                f"step {session.state.step}: {name} {what}; this step is not saved and the last checkpoint is kept; "
                "lower train.learning_rate, or inspect the data of the last steps",
                code="trained-weights-invalid",
            )


def warn_too_easy(session: Session, row: StepMetrics) -> None:
    """Warn once when reward accuracy is near 1 early in training."""
    # In the first step policy and reference are equal, so its accuracy is chance.
    if session.state.warned or not 1 < row.step <= 0.05 * session.schedule.total or row.accuracy <= TOO_EASY:
        return
    session.state.warned = True
    session.progress.say(
        f"step {row.step}: {row.accuracy:.0%} of the pairs are told apart already; they may differ in length or format instead of "
        "correctness, inspect them in the report"
    )
