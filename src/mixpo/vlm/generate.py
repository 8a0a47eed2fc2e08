"""Batched sampling: several responses per prompt. Vision features and the prompt's key-value cache are computed once.

P prompts, R rows (one per response), S steps (token limit), L tokens of the longest prompt, V vocabulary.

Each response has a stream of uniform numbers keyed by its own seed; a token is the inverse of the cumulative distribution at that
number, so batch size, order and neighbours cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from mixpo.errors import EngineError
from mixpo.vlm.inputs import batch_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, banned_ids

COMPACT_AT = 0.75
"""Finished rows are removed once at most this share is alive; removing each one at once would copy the cache too often."""


@dataclass(frozen=True, slots=True)
class TokenSampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 disable the filter. Applied in the order temperature, top_k, top_p."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated response. logprobs: under the model's own distribution (temperature 1, unmasked). stopped: by an end-of-turn token."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


StopCheck = Callable[[Sequence[int]], bool]
"""Whether a response ends after these ids for another reason than an end-of-turn token, such as a stop string."""


@dataclass
class _Batch:
    """Unfinished rows. cache: keys and values of the first columns of `mask`. cache_name: its keyword in the model's forward pass.

    logits: (R, V) of the next token.
    mask: (R, L + S) 1 for real tokens, with room for all steps. position: (R,) of the next token. row: (R,) index of the response.
    alive: (R,) bool. axes: number of axes of position ids (3 for mrope), or 0.
    """

    cache: Any
    cache_name: str
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
    sampling: TokenSampling,
    stop_check: StopCheck | None = None,
) -> list[Generation]:
    """Continue each prompt + tail. owner: (R,) prompt of each response. numbers: (R, S) uniform numbers.

    Control tokens are never sampled, except end-of-turn tokens, which end a response and are part of its ids. Log-probs are of the
    unmasked distribution, so they equal those of a later forward pass. stop_check: called with the ids after each token.
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
        chosen = sample_tokens(all_logprobs, numbers[batch.row, step], banned_ids(vlm), sampling)
        ids[batch.row, step] = chosen.where(batch.alive, ids[batch.row, step])
        logprobs[batch.row, step] = all_logprobs.gather(-1, chosen[:, None])[:, 0].where(batch.alive, logprobs[batch.row, step])
        batch.alive &= ~torch.isin(chosen, ends)
        if stop_check is not None:
            _end_rows(batch, ids[:, : step + 1], stop_check)
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
    # transformers 5.24 renamed `past_key_values` to `cache`; a model's own code may still have the old name.
    renamed = "cache" in output and "past_key_values" not in signature(vlm.model.forward).parameters
    cache_name = "cache" if renamed else "past_key_values"
    rows = torch.tensor(owner, device=vlm.device)
    expand_cache(getattr(output, cache_name), rows, steps)
    positions = inputs["position_ids"]
    highest = positions.amax(-1) if positions.ndim == 2 else positions.amax((0, -1))
    mask = inputs["attention_mask"][rows]
    return _Batch(
        cache=getattr(output, cache_name),
        cache_name=cache_name,
        logits=output.logits[:, -1][rows],
        mask=torch.cat([mask, mask.new_ones(len(rows), steps)], dim=1),
        position=highest[rows] + 1,
        row=torch.arange(len(rows), device=vlm.device),
        alive=torch.ones(len(rows), dtype=torch.bool, device=vlm.device),
        axes=positions.shape[0] if positions.ndim == 3 else 0,
    )


def _end_rows(batch: _Batch, ids: Tensor, stop_check: StopCheck) -> None:
    rows = batch.row[batch.alive]
    ended = [stop_check(written) for written in ids[rows].tolist()]
    batch.alive[batch.alive.clone()] = torch.tensor([not end for end in ended], dtype=torch.bool, device=batch.alive.device)


def _compact(batch: _Batch) -> None:
    """Remove finished rows; `logits` is replaced by the next step anyway."""
    keep = batch.alive.nonzero()[:, 0]
    batch.cache.reorder_cache(keep)
    batch.mask, batch.position, batch.row, batch.alive = batch.mask[keep], batch.position[keep], batch.row[keep], batch.alive[keep]


def _forward(vlm: Vlm, batch: _Batch, chosen: Tensor, unused: int) -> None:
    """One more token for every row. unused: trailing columns of the mask that are not reached yet."""
    position = batch.position[:, None]
    output = vlm.model(
        input_ids=chosen[:, None],
        attention_mask=batch.mask[:, : batch.mask.shape[1] - unused],
        position_ids=position.expand(batch.axes, *position.shape) if batch.axes else position,
        use_cache=True,
        **{batch.cache_name: batch.cache},
    )
    batch.logits, batch.cache = output.logits[:, -1], getattr(output, batch.cache_name)
    batch.position = batch.position + 1


def _collect(ids: Tensor, logprobs: Tensor, vlm: Vlm) -> list[Generation]:
    if not bool(torch.isfinite(logprobs).all()):
        raise EngineError(
            'the model gives NaN or infinite logits; set model.dtype = "bfloat16" or "float32", or check the weights',
            code="logits-not-finite",
        )
    drawn = []
    for row, row_logprobs in zip(ids.tolist(), logprobs.tolist(), strict=True):
        length = row.index(-1) if -1 in row else len(row)
        drawn.append(Generation(tuple(row[:length]), tuple(row_logprobs[:length]), row[length - 1] in vlm.end_ids))
    return drawn


# --- choosing a token ---


def uniforms(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The first `count` uniform numbers in [0, 1) of the stream of `seed` (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128)).random(count)


def sample_tokens(log_probs: Tensor, numbers: Tensor, banned: Tensor, sampling: TokenSampling) -> Tensor:
    """One token id for each row: (R, V) log-probs at temperature 1, (R,) uniform numbers, (V,) bool -> (R,) int64."""
    scores = log_probs.masked_fill(banned, float("-inf"))
    if sampling.temperature == 0:
        return scores.argmax(-1)
    return inverse_cdf(distribution(scores, sampling), numbers)


def distribution(scores: Tensor, sampling: TokenSampling) -> Tensor:
    """(R, V) probabilities after temperature, top_k and top_p; not renormalised after top_p."""
    scores = scores.to(torch.float32 if scores.device.type == "mps" else torch.float64) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    probs = scores.softmax(-1)
    if sampling.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        # A token is kept while the mass before it is below top_p, so at least one is kept.
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    return probs


def inverse_cdf(probs: Tensor, numbers: Tensor) -> Tensor:
    """The token at which the cumulative sum of `probs` (R, V) first exceeds its row's number times the row's sum."""
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    index = (cumulative <= numbers.to(probs)[:, None] * total).sum(-1)
    # A number just below 1 may round up to the total; take the last token of non-zero probability.
    return torch.minimum(index, (cumulative < total).sum(-1))


# --- the key-value cache ---


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A full-attention layer of the cache with room for future tokens, where `DynamicLayer` copies everything at each step.

    `keys` and `values`, each (R, heads, tokens so far, width), are views of larger tensors.
    """

    keys: Tensor
    values: Tensor
    _key_room: Tensor
    _value_room: Tensor

    @classmethod
    def of(cls, layer: Any, rows: Tensor, steps: int) -> PreallocatedLayer:
        """The cache of `layer` at the rows `rows` (R,), with room for `steps` more tokens."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made._key_room, made._value_room = (_with_room(part, rows, steps) for part in (layer.keys, layer.values))
        made._show(layer.keys.shape[-2])
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states (R, heads, new tokens, width); returns all keys and values so far."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows, (R,)."""
        length = self.keys.shape[-2]
        self._key_room, self._value_room = self._key_room.index_select(0, beam_idx), self._value_room.index_select(0, beam_idx)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]


def expand_cache(cache: Any, rows: Tensor, steps: int) -> None:
    """Expand the cache of P prompts to R responses: row r continues prompt `rows[r]`. Other layer types keep their own class."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[number] = PreallocatedLayer.of(layer, rows, steps)
        else:
            layer.reorder_cache(rows)


def _with_room(part: Tensor, rows: Tensor, steps: int) -> Tensor:
    _, heads, length, width = part.shape
    room = torch.empty((len(rows), heads, length + steps, width), dtype=part.dtype, device=part.device)
    room[:, :, :length] = part.index_select(0, rows)
    return room
