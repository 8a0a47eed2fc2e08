"""Checks that stop training, or log a warning, before bad numbers reach the weights. All ranks decide the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixpo.errors import TrainError
from mixpo.train.batch import Chunk
from mixpo.train.checkpoint import TrainState, newest_step
from mixpo.train.collate import collate
from mixpo.train.compute_weights import compute_weights
from mixpo.train.layout_check import TOLERANCE
from mixpo.train.losses import ResponseLogps, generation_loss, initial_loss
from mixpo.train.metrics import EvaluatePolicy, PolicyMetrics, StepMetrics
from mixpo.train.session import Session
from mixpo.train.sharding import weight_flags
from mixpo.vlm.adapter import set_dropout

ZERO_STEPS = 3
"""Consecutive steps with a loss of exactly 0 that stop training."""
TOO_EASY = 0.98
"""Reward accuracy above this within the first 5 % of the steps is logged: a trivial feature separates the pairs."""
STEP_DISCARDED = (
    "nothing of this step is saved and the last checkpoint is kept; lower train.learning_rate, or inspect the data of this step"
)


SENTINEL_EVERY = 200
"""Steps between two checks of the layout during training."""


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


@torch.no_grad()
def check_layout(session: Session, chunks: Sequence[Chunk]) -> None:
    """Score one response of a micro-batch alone; raise TrainError when its log-prob differs from that in the micro-batch.

    The check before training sees few questions, and the weights of that time only.
    """
    job, scorer = session.job, session.parallel.scorer
    # The one with most images, so that all ranks run the vision tower or none does.
    number = max(range(len(chunks)), key=lambda number: len(chunks[number].group.question.images))
    place = sum(len(chunk.responses) for chunk in chunks[:number])
    alone = chunks[number]._replace(responses=chunks[number].responses[:1], pairs=())
    set_dropout(job.vlm.model, 0.0)
    together = scorer(session.complete(collate(job.vlm, chunks, session.prompts.get, session.layout), chunks)).sums[place]
    single: ResponseLogps = scorer(collate(job.vlm, [alone], session.prompts.get, "single"))
    set_dropout(job.vlm.model, job.table.lora.dropout if job.table.lora else 0.0)
    gap = float((together - single.sums[0]).abs() / single.lengths[0])
    failed = torch.tensor(int(not gap <= TOLERANCE[session.precision]), device=session.accelerator.device)  # not: true for NaN
    if int(session.accelerator.reduce(failed, "sum")):
        raise TrainError(
            f"step {session.state.step + 1}: question {alone.group.question.id}: a response in its micro-batch has another log-prob than "
            f"alone (by {gap:.2g} per token), so the {session.layout} layout is not exact for this data; the last checkpoint is kept; "
            "please report the model family",
            code="layout-not-exact",
            key=alone.group.question.id,
        )


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
    trained = list(session.parallel.trained())
    broken, alive = weight_flags(session.accelerator, [parameter for _, parameter in trained])
    for number, (name, parameter) in enumerate(trained):
        if broken[number] or not (alive[number] or parameter.ndim < 2 or name in session.zero_matrices):
            what = "holds NaN or infinite values" if broken[number] else "has become nothing but zeros"
            raise TrainError(
                f"step {session.state.step}: {name} {what}; this step is not saved and the last checkpoint is kept; "
                "lower train.learning_rate, or inspect the data of the last steps",
                code="trained-weights-invalid",
            )


def check_base_model(session: Session) -> None:
    """Before the first step: raise TrainError where the base model itself does not pass `train.guard`."""
    if session.job.guard is None or session.state.step:
        return
    figures, problem = _degeneration(session, session.job.guard)
    if problem:
        raise TrainError(
            f"the base model itself gives {problem}: raise the limits of train.guard, or evaluate.max_new_tokens "
            f"({figures.cut:.1%} of the responses are truncated)",
            code="guard-base-model",
            key="train.guard",
        )


def check_degeneration(session: Session, row: StepMetrics, *, saving: bool) -> StepMetrics:
    """The row with the figures of `train.guard` where it is due: every few steps, and before a checkpoint.

    Raises TrainError for too many responses without a final answer or with repetition. As nothing is saved before a check passes, every
    checkpoint is of a model that did.
    """
    table, guard = session.job.table.guard, session.job.guard
    if table is None or guard is None or (row.step % table.every and not saving):
        return row
    figures, problem = _degeneration(session, guard)
    row = dataclasses.replace(row, guard_unparsable=figures.unparsable, guard_loops=figures.loops, guard_cut=figures.cut)
    if problem:
        session.metrics.append(row)
        raise TrainError(
            f"step {row.step}: the model degenerates: {problem}; this step is not saved, and {_kept(session)}: "
            "lower train.learning_rate, raise train.loss.generation or train.loss.beta, or train fewer epochs",
            code="model-degenerates",
            key="train.guard",
        )
    session.progress.say(
        f"step {row.step}: guard: {figures.unparsable:.1%} without a final answer, {figures.loops:.1%} with repetition, "
        f"{figures.cut:.1%} truncated"
    )
    return row


def _kept(session: Session) -> str:
    session.checkpoints.wait()
    step = newest_step(session.checkpoints.folder)
    return f"the checkpoint of step {step}, which passed this check, is kept" if step else "there is no checkpoint of a good model yet"


def _degeneration(session: Session, guard: EvaluatePolicy) -> tuple[PolicyMetrics, str]:
    """Figures of the policy now, and what is above a limit on any rank, "" if nothing."""
    table = session.job.table.guard
    assert table is not None
    figures = policy_metrics(session, guard)
    limits = (
        ("without a final answer", figures.unparsable, table.max_unparsable, "max_unparsable"),
        ("with repetition", figures.loops, table.max_loops, "max_loops"),
        ("that are truncated", figures.cut, table.max_truncated, "max_truncated"),
    )
    problems = [f"{share:.1%} of responses {what} (train.guard.{key} = {most:g})" for what, share, most, key in limits if share > most]
    failed = torch.tensor(int(bool(problems)), device=session.accelerator.device)
    # All ranks raise: one that raised alone would leave the others waiting.
    if not int(session.accelerator.reduce(failed, "sum")):
        return figures, ""
    return figures, " and ".join(problems) or "too many broken responses on another rank; see its message"


def policy_metrics(session: Session, evaluate: EvaluatePolicy) -> PolicyMetrics:
    """An evaluation of the policy in evaluation mode, with the weights that will be saved. On every rank."""
    model = session.job.vlm.model
    model.eval()
    try:
        with torch.no_grad(), compute_weights(model, session.precision):
            return evaluate()
    finally:
        model.train()


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
