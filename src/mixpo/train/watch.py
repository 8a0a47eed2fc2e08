"""Looks at the policy while it is trained: every few steps it answers the same held-out questions. Knows nothing of questions or verdicts.

The answers are greedy and draw no random numbers of the training, so that watching changes no weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from mixpo.train.metrics import StepMetrics
from mixpo.train.session import Session

LOOPING = 0.1
"""A larger share of watched answers that go round in circles is said aloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Figures over the watched answers. tokens: mean length. loops: share that repeat a phrase over and over. cut: at the limit."""

    accuracy: float
    tokens: float
    loops: float
    cut: float


Watch = Callable[[], Watched]
"""Answers the fixed questions with the policy as it is now."""


def watched(session: Session, row: StepMetrics) -> StepMetrics:
    """The row of a step, with the figures of the watch where it is due (every `train.watch.every` steps and after the last)."""
    table, watch = session.job.table.watch, session.job.watch
    if table is None or watch is None or (row.step % table.every and row.step != session.schedule.total):
        return row
    model = session.job.vlm.model
    model.eval()
    try:
        # On every rank: a model that is spread over ranks needs all of them for a forward pass.
        found = watch()
    finally:
        model.train()
    figures = f"{found.accuracy:.1%} correct, {found.tokens:.0f} tokens, {found.cut:.0%} cut, {found.loops:.0%} in circles"
    session.progress.say(f"step {row.step}: watched answers {figures}")
    if found.loops > LOOPING:
        session.progress.say(
            f"step {row.step}: {found.loops:.0%} of the watched answers repeat a phrase over and over; the model may be degenerating, "
            "lower train.learning_rate or raise train.loss.generation"
        )
    return dataclasses.replace(
        row, watch_accuracy=found.accuracy, watch_tokens=found.tokens, watch_loops=found.loops, watch_cut=found.cut
    )  # fmt: skip
