"""Replay: plain SFT rows in the training steps, with the generation loss only (`train.replay`).

Which rows a step gets follows from the seed and the number of its pairs, so that a resumed training, on any number of ranks, sees the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mixpo.errors import SourceError
from mixpo.train.batch import Batch, Chunk, find_dummy
from mixpo.train.losses import ResponseLogps, generation_loss
from mixpo.train.schedule import Schedule
from mixpo.train.session import Session
from mixpo.types import Group, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import context_limit, tokenize_response


def replay_order(count: int, wanted: int, seed: int) -> Iterator[int]:
    """The rows of a whole training in order, as numbers below `count`: one shuffled pass after another."""
    for number in range(math.ceil(wanted / count)):
        rows = list(range(count))
        random.Random(f"{seed}/replay/{number}").shuffle(rows)
        yield from rows[: wanted - number * count]


def rows_before(schedule: Schedule, share: float, step: int) -> int:
    """How many rows the steps before `step` (from 0) have; `share` rows per pair, rounded down."""
    epoch, within = divmod(step, schedule.steps_per_epoch)
    pairs = epoch * schedule.pairs + min(within * schedule.batch_size, schedule.pairs)
    return math.floor(share * pairs + 1e-9)


def replay_group(vlm: Vlm, question: Question) -> Group:
    """A row as a group without pairs; without a response where it cannot be used."""
    text = question.sft_response
    try:
        responses = (tokenize_response(vlm, text),) if text else ()
    except SourceError:  # a control token in it
        responses = ()
    return Group(question=question, prompt=question.text, responses=responses, pairs=())


class StepReplay(NamedTuple):
    """The rows of one step. used, skipped: on all ranks. scale: of each row's loss in the loss of the step."""

    used: int = 0
    skipped: int = 0
    scale: float = 0.0


def step_replay(session: Session, used: int, skipped: int) -> StepReplay:
    """*Collective.* The rows of a step on all ranks, given how many this rank uses and skips."""
    table, accelerator = session.job.table.replay, session.accelerator
    if table is None or not session.job.replay:
        return StepReplay()
    used, skipped = accelerator.reduce(torch.tensor([used, skipped], device=accelerator.device), "sum").tolist()
    # As for pairs: gradients are averaged over ranks.
    return StepReplay(used, skipped, accelerator.num_processes * table.weight / used if used else 0.0)


def usable_rows(session: Session, step: int) -> tuple[list[Group], int]:
    """This rank's rows of a step, and how many are skipped: too long ones, and those with an unreadable image or a control token."""
    accelerator = session.accelerator
    mine = [session.job.replay[row] for row in _step_rows(session, step)[accelerator.process_index :: accelerator.num_processes]]
    usable = [group for group in mine if _is_usable(session, group)]
    return usable, len(mine) - len(usable)


def pictured_dummy(session: Session) -> Chunk:
    """A dummy with an image for the next step, where only replay rows have images; the same on every rank."""
    rows = [session.job.replay[row] for row in _step_rows(session, session.state.step)]
    return find_dummy([group for group in rows if _is_usable(session, group)], session.prompts.length)


def _step_rows(session: Session, step: int) -> range:
    """The numbers of the rows of a step."""
    if session.job.table.replay is None:
        return range(0)
    first, end = (rows_before(session.schedule, session.job.table.replay.share, step + further) for further in (0, 1))
    return range(first, min(end, len(session.job.replay)))


def replay_losses(logps: ResponseLogps, batch: Batch) -> Tensor:
    """(M,) NLL per token of the replay rows of a batch."""
    return generation_loss(logps.sums[batch.replayed], logps.lengths[batch.replayed])


def _is_usable(session: Session, group: Group) -> bool:
    if not group.responses:
        return False
    limit = min(session.job.table.max_length, context_limit(session.job.vlm))
    try:
        return session.prompts.length(group) + len(group.responses[0]) <= limit
    except SourceError:
        return False
