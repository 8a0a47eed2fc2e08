"""Write several answers to each of several prompts. Vision features and the prompt's key-value cache are computed once.

P prompts, R rows (one for each answer), S steps (tokens at most), L tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixpo.errors import EngineError
from mixpo.vlm.cache import spread
from mixpo.vlm.draw import Rule, pick
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, banned_ids, batch_inputs

COMPACT_AT = 0.75
"""Finished rows leave the batch once at most this share of its rows is alive: copying the cache for each one would cost more."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One generated answer. logprobs: of each id under the model's own distribution (temperature 1, nothing masked)."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


Ends = Callable[[Sequence[int]], bool]
"""Whether an answer ends with these generated ids for another reason than an end of turn, such as a stop text."""


@dataclass
class _Batch:
    """The rows still being written. cache: keys and values of `mask`'s first columns. logits: (R, V) for the next token.

    mask: (R, L + S) 1 for real tokens, wide enough for all steps. position: (R,) of the next token. row: (R,) which answer.
    alive: (R,) bool. axes: how many axes positions have (3 for mrope), or 0.
    """

    cache: Any
    logits: Tensor
    mask: Tensor
    position: Tensor
    row: Tensor
    alive: Tensor
    axes: int


@torch.inference_mode()
def generate(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    tails: Sequence[Sequence[int]],
    owner: Sequence[int],
    numbers: Tensor,
    rule: Rule,
    ends_here: Ends | None = None,
) -> list[Drawn]:
    """Continue each prompt + tail; `owner[r]` is the prompt of answer r, `numbers` its (R, S) uniform numbers.

    Image and other control tokens are never drawn, except the ends of turn, which end an answer and belong to its ids.
    Log-probs are those of the unmasked distribution, so they equal what a later forward over the answer gives.
    ends_here: asked after each token about the ids so far; an answer that it ends is not `stopped`.
    Raises EngineError when the model's output is not finite.
    """
    rows, steps = numbers.shape
    numbers = numbers.to(vlm.device, torch.float32 if vlm.device.type == "mps" else torch.float64)
    batch = _prefill(vlm, prompts, tails, owner, steps)
    ids = torch.full((rows, steps), -1, device=vlm.device)
    logprobs = torch.zeros((rows, steps), device=vlm.device)
    ends = torch.tensor(vlm.end_ids, device=vlm.device)
    for step in range(steps):
        all_logprobs = batch.logits.float().log_softmax(-1)
        chosen = pick(all_logprobs, numbers[batch.row, step], banned_ids(vlm), rule)
        ids[batch.row, step] = chosen.where(batch.alive, ids[batch.row, step])
        logprobs[batch.row, step] = all_logprobs.gather(-1, chosen[:, None])[:, 0].where(batch.alive, logprobs[batch.row, step])
        batch.alive &= ~torch.isin(chosen, ends)
        if ends_here is not None:
            _end_rows(batch, ids[:, : step + 1], ends_here)
        alive = int(batch.alive.sum())
        if alive == 0 or step == steps - 1:
            break
        if alive <= COMPACT_AT * len(batch.row):
            chosen = chosen[batch.alive]
            _compact(batch)
        _forward(vlm, batch, chosen, steps - step - 1)
    return _collect(ids, logprobs, vlm)


def _prefill(vlm: Vlm, prompts: Sequence[EncodedPrompt], tails: Sequence[Sequence[int]], owner: Sequence[int], steps: int) -> _Batch:
    inputs = batch_inputs(vlm, prompts, "left", tails)
    output = vlm.model(**inputs, use_cache=True, logits_to_keep=1)
    rows = torch.tensor(owner, device=vlm.device)
    spread(output.past_key_values, rows, steps)
    positions = inputs["position_ids"]
    highest = positions.amax(-1) if positions.ndim == 2 else positions.amax((0, -1))
    mask = inputs["attention_mask"][rows]
    return _Batch(
        cache=output.past_key_values,
        logits=output.logits[:, -1][rows],
        mask=torch.cat([mask, mask.new_ones(len(rows), steps)], dim=1),
        position=highest[rows] + 1,
        row=torch.arange(len(rows), device=vlm.device),
        alive=torch.ones(len(rows), dtype=torch.bool, device=vlm.device),
        axes=positions.shape[0] if positions.ndim == 3 else 0,
    )


def _end_rows(batch: _Batch, ids: Tensor, ends_here: Ends) -> None:
    rows = batch.row[batch.alive]
    ended = [ends_here(written) for written in ids[rows].tolist()]
    batch.alive[batch.alive.clone()] = torch.tensor([not end for end in ended], dtype=torch.bool, device=batch.alive.device)


def _compact(batch: _Batch) -> None:
    """Drop finished rows. `logits` is about to be replaced, so it stays as it is."""
    keep = batch.alive.nonzero()[:, 0]
    batch.cache.reorder_cache(keep)
    batch.mask, batch.position, batch.row, batch.alive = batch.mask[keep], batch.position[keep], batch.row[keep], batch.alive[keep]


def _forward(vlm: Vlm, batch: _Batch, chosen: Tensor, unused: int) -> None:
    """One more token for every row of the batch; `unused` columns of the mask are not reached yet."""
    position = batch.position[:, None]
    output = vlm.model(
        input_ids=chosen[:, None],
        attention_mask=batch.mask[:, : batch.mask.shape[1] - unused],
        position_ids=position.expand(batch.axes, *position.shape) if batch.axes else position,
        past_key_values=batch.cache,
        use_cache=True,
    )
    batch.logits, batch.cache = output.logits[:, -1], output.past_key_values
    batch.position = batch.position + 1


def _collect(ids: Tensor, logprobs: Tensor, vlm: Vlm) -> list[Drawn]:
    if not bool(torch.isfinite(logprobs).all()):
        raise EngineError('the model gives NaN or infinite logits; set model.dtype = "bfloat16" or "float32", or check the weights')
    drawn = []
    for row, row_logprobs in zip(ids.tolist(), logprobs.tolist(), strict=True):
        length = row.index(-1) if -1 in row else len(row)
        drawn.append(Drawn(tuple(row[:length]), tuple(row_logprobs[:length]), row[length - 1] in vlm.end_ids))
    return drawn
