"""The micro-batches of the next steps, read and laid out in background threads while the model computes.

Their order and content do not depend on that: a step is planned from its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from mixpo.prefetch import Prefetch, workers
from mixpo.train.batch import Batch, Chunk, micro_batches, step_chunks
from mixpo.train.collate import AHEAD, collate_ahead, on_device
from mixpo.train.replay import usable_rows
from mixpo.train.schedule import Step, rank_share
from mixpo.train.session import Session


class PlannedStep(NamedTuple):
    """What this rank computes in a step. batches: its micro-batches. replay: its usable replay rows, and skipped: the number of others."""

    step: Step
    batches: list[tuple[Chunk, ...]]
    replay: int = 0
    skipped: int = 0


def plan_step(session: Session, number: int, step: Step) -> PlannedStep:
    """This rank's micro-batches of a step. number: of the step, from 0. Needs nothing of other ranks."""
    job, rank, ranks = session.job, session.accelerator.process_index, session.accelerator.num_processes
    mine = rank_share(step, rank, ranks, lambda group: int(job.groups.sizes["tokens"][group]))
    rows, skipped = usable_rows(session, number)
    replay = [Chunk(group, (0,), (), replay=True) for group in rows]
    chunks = [*step_chunks(mine, job.groups), *replay]
    batches = micro_batches(chunks, session.prompts.length, job.table.tokens_per_batch, session.layout)
    return PlannedStep(step, batches, len(replay), skipped)


class StepInputs:
    """The steps that are left, in order, as a context. `next` gives a step, `batch` its micro-batches in order."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ready = Prefetch(self._parts(), self._prepared, AHEAD, workers())

    def __enter__(self) -> Self:
        self._ready.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ready.__exit__(kind, error, trace)

    @property
    def waited(self) -> float:
        """Seconds that training has waited for inputs."""
        return self._ready.waited

    def __iter__(self) -> Iterator[PlannedStep]:
        return self

    def __next__(self) -> PlannedStep:
        plan = next(self._ready)
        assert isinstance(plan, PlannedStep)
        return plan

    def batch(self, plan: PlannedStep, number: int, chunks: tuple[Chunk, ...]) -> Batch:
        """Micro-batch `number` of a step on the model's device. chunks: its chunks, or these and a dummy; each number once, in order."""
        prepared = next(self._ready) if number < len(plan.batches) else None
        if prepared is None or chunks is not plan.batches[number]:
            prepared = self._laid_out(chunks)
        assert isinstance(prepared, Batch)
        return on_device(prepared, self._session.job.vlm.device)

    def _parts(self) -> Iterator[PlannedStep | tuple[Chunk, ...]]:
        """Each step, followed by its micro-batches."""
        first = self._session.state.step
        for number, step in enumerate(self._session.schedule.steps(first), first):
            plan = plan_step(self._session, number, step)
            yield plan
            yield from plan.batches

    def _prepared(self, part: PlannedStep | tuple[Chunk, ...]) -> PlannedStep | Batch:
        return part if isinstance(part, PlannedStep) else self._laid_out(part)

    def _laid_out(self, chunks: Sequence[Chunk]) -> Batch:
        session = self._session
        return collate_ahead(session.job.vlm, chunks, session.prompts.get, session.layout)
