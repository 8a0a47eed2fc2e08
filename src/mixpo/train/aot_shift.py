"""Alignment via optimal transport (arXiv 2406.05882): margins are sorted over all pairs of an optimizer step, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from mixpo.train.batch import Chunk, accumulation_dtype
from mixpo.train.collate import collate
from mixpo.train.losses import ResponseLogps, optimal_transport_shift
from mixpo.train.session import Session


def step_shifts(session: Session, batches: Sequence[Sequence[Chunk]]) -> Iterator[Tensor | float]:
    """Yield the shift of each of this rank's micro-batches: (K,) for "aot", from an extra forward pass without gradient; else 0.

    *Collective*: margins of all ranks are sorted together.
    """
    if session.weights.loss_type != "aot":
        return repeat(0.0)
    return iter(_transported(session, batches))


@torch.no_grad()
def _transported(session: Session, batches: Sequence[Sequence[Chunk]]) -> list[Tensor]:
    accelerator = session.accelerator
    counts = list[int]()
    margins = [torch.zeros(0, 2, dtype=accumulation_dtype(accelerator.device), device=accelerator.device)]
    for chunks in batches:
        batch = session.complete(collate(session.job.vlm, chunks, session.prompts.get, session.layout), chunks)
        logps: ResponseLogps = session.parallel.scorer(batch)
        both = torch.stack([logps.sums, batch.reference], -1)
        margins.append(both[batch.chosen] - both[batch.rejected])
        counts.append(len(batch.chosen))
    mine = torch.cat(margins)
    sizes = accelerator.gather(torch.tensor([len(mine)], device=accelerator.device))
    # Padded with infinite margins, which sort last on both sides and so match each other only.
    room = torch.full((int(sizes.max()) - len(mine), 2), float("inf"), dtype=mine.dtype, device=mine.device)
    everyone: Tensor = accelerator.gather(torch.cat([mine, room]))
    first = accelerator.process_index * int(sizes.max())
    shift = optimal_transport_shift(everyone[:, 0], everyone[:, 1])[first : first + len(mine)]
    return list(torch.split(shift, counts))
