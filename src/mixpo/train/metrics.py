"""Metrics of optimizer steps, and their file. Imports no torch, so that every stage can read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixpo import sealed
from mixpo.errors import TrainError
from mixpo.records import write_text

KL_LIMIT = 0.1
"""Nats per token from the reference that reports draw as a warning threshold: a rule of thumb, not a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step; means over all pairs of the step on all ranks.

    step: from 1. epoch: passes over the data so far, 1.0 after the first. loss: the weighted total.
    preference, quality, generation, hold: the raw terms; weighted_*: times their weight, which add up to `loss`.
    reward_*: beta times the log-ratio to the reference. margin: chosen minus rejected. accuracy: share of pairs with margin > 0.
    replay: mean NLL per token of the step's SFT rows (train.replay). replay_rows, replay_skipped: rows used, and not usable, so far.
    delta: the reward shift this step used. logp_*: summed log-probs. grad_norm: before clipping. tokens: without padding.
    token_efficiency: minimum tokens to compute (every prompt and shared prefix once) over tokens computed, padding included.
    memory: peak bytes so far on the main rank's GPU, or of its process without one.
    seconds_left: until the end.
    watch_*: in-training evaluation (train.watch) after this step, or None: accuracy, mean tokens, repetition rate, truncation rate.
    kl: mean over both sides of (reference - policy) log-prob per token, which estimates the KL divergence of the reference from the policy
    where the reference sampled the responses; None in steps logged before it existed.
    guard_*: check for degeneration (train.guard) after this step, or None: share without a final answer, repetition rate, truncation rate.
    """

    step: int
    epoch: float
    loss: float
    preference: float
    quality: float
    generation: float
    weighted_preference: float
    weighted_quality: float
    weighted_generation: float
    reward_chosen: float
    reward_rejected: float
    margin: float
    accuracy: float
    delta: float
    logp_chosen: float
    logp_rejected: float
    learning_rate: float
    grad_norm: float
    pairs: int
    tokens: int
    seconds: float
    tokens_per_second: float
    pairs_per_second: float
    token_efficiency: float
    memory: int
    seconds_left: float
    replay: float = 0.0
    weighted_replay: float = 0.0
    replay_rows: int = 0
    replay_skipped: int = 0
    watch_accuracy: float | None = None
    watch_tokens: float | None = None
    watch_loops: float | None = None
    watch_cut: float | None = None
    kl: float | None = None
    guard_unparsable: float | None = None
    guard_loops: float | None = None
    guard_cut: float | None = None
    hold: float = 0.0
    weighted_hold: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMetrics:
    """In-training evaluation of the policy. tokens: mean length. loops: share with repetition. cut: share truncated at the limit.

    unparsable: share without a final answer.
    """

    accuracy: float
    tokens: float
    loops: float
    cut: float
    unparsable: float = 0.0


EvaluatePolicy = Callable[[], PolicyMetrics]
"""Evaluates the current policy on a fixed set of held-out questions; must draw no random numbers of the training."""


class MetricsFile:
    """A JSONL file with one line per logged step. An incomplete last line is dropped when the file is opened."""

    def __init__(self, path: Path, keep_to: int) -> None:
        """Open for appending; lines of steps after `keep_to`, which a resumed run repeats, are removed."""
        self.path = path
        self.rows = [row for row in read_metrics(path) if row.step <= keep_to]
        write_text(path, "".join(_line(row) for row in self.rows))

    def append(self, row: StepMetrics) -> None:
        """Write one line. Raises TrainError when the file cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(_line(row))
        except OSError as error:
            raise TrainError(
                f"{self.path}: cannot be written ({error.strerror}); free some space and run the same command again",
                code="metrics-not-writable",
                path=self.path,
            ) from None
        self.rows.append(row)


def read_metrics(path: Path) -> list[StepMetrics]:
    """The logged steps; none without a file. Raises TrainError for an invalid line (an incomplete last one is skipped)."""
    if not path.exists():
        return []
    rows: list[StepMetrics] = []
    for number, line in enumerate(sealed.complete_lines(path.read_text(encoding="utf-8", errors="replace")), start=1):
        try:
            rows.append(StepMetrics(**sealed.loads(line)))
        except (ValueError, TypeError):
            raise TrainError(
                f"{path}:{number}: not a line of training metrics; delete the file and train again",
                code="metrics-invalid",
                path=path,
                line=number,
            ) from None
    return rows


def _line(row: StepMetrics) -> str:
    return sealed.dumps(dataclasses.asdict(row))
