"""Micro-batches: which responses are computed together, and the tensors that all layouts share.

Only `mixpo.train.collate` knows the positions of tokens; everything else uses `Chunk`, `Batch.response_index` and index pairs.
R responses, T tokens, A predicted tokens, U unique ones (shared prefixes once), K pairs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixpo.train.hold import held_pairs, held_response
from mixpo.train.losses import HeldTokens
from mixpo.train.prefix_tree import build_prefix_tree
from mixpo.train.schedule import Step
from mixpo.train.tree_attention import AttentionPlan
from mixpo.types import Group

Layout = Literal["varlen", "tree", "shared", "plain", "single"]
"""How a micro-batch is laid out; all layouts give the same log-probs where supported.

tree: one row [prompt | response 1 | ... | response R]; prompts and shared prefixes are computed once.
varlen: the same row through the varlen kernel (see `mixpo.train.tree_attention`). shared: one padded row per response, images
computed once. plain: one padded row per response with its images, through the model's own forward pass. single: the same without
padding, one forward pass per response; all others are compared with it.
"""
PACKED: tuple[Layout, ...] = ("varlen", "tree")
"""Layouts with one row of groups, the fastest first."""


class Chunk(NamedTuple):
    """Some responses of a group and pairs among them, both as indices into `group.responses`. replay: an SFT row instead of pairs."""

    group: Group
    responses: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    replay: bool = False


def make_chunk(group: Group, pairs: Sequence[tuple[int, int]]) -> Chunk:
    """The chunk with these pairs and their responses."""
    return Chunk(group, tuple(sorted({response for pair in pairs for response in pair})), tuple(pairs))


def step_chunks(step: Step, groups: Sequence[Group]) -> list[Chunk]:
    """The chunks of a step, one per group, each of which is read once."""
    pairs: dict[int, list[int]] = {}
    for part in step:
        pairs.setdefault(part.group, []).extend(part.pairs)
    read = ((groups[number], pairs[number]) for number in pairs)
    return [make_chunk(group, [group.pairs[pair] for pair in numbers]) for group, numbers in read]


# --- how much fits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Footprint:
    """Size of a micro-batch. tokens: without padding, shared prefixes once. rows, longest: of the padded layouts."""

    tokens: int
    rows: int
    longest: int

    def plus(self, other: Footprint) -> Footprint:
        """The size of both together."""
        return Footprint(self.tokens + other.tokens, self.rows + other.rows, max(self.longest, other.longest))

    def cost(self, layout: Layout) -> int:
        """Tokens that pass through the model, padding included."""
        return self.tokens if layout in PACKED else self.rows * self.longest


def footprint(chunk: Chunk, prompt: int) -> Footprint:
    """The size of one chunk whose prompt has `prompt` tokens."""
    responses = [chunk.group.responses[response] for response in chunk.responses]
    return Footprint(tokens=prompt + build_prefix_tree(responses).tokens, rows=len(responses), longest=prompt + max(map(len, responses)))


def micro_batches(chunks: Iterable[Chunk], prompt_length: Callable[[Group], int], budget: int, layout: Layout) -> list[tuple[Chunk, ...]]:
    """Pack chunks into micro-batches of at most `budget` tokens: first fit, longest first.

    So chunks of similar length share a micro-batch (little padding), and the peak memory is reached in the first step. A chunk over the
    budget is split; a single pair (or response) over the budget gets a micro-batch of its own.
    """
    fitting = [part for chunk in chunks for part in _divide(chunk, prompt_length(chunk.group), budget, layout)]
    sizes = [footprint(chunk, prompt_length(chunk.group)) for chunk in fitting]
    batches: list[list[Chunk]] = []
    filled: list[Footprint] = []
    for number in sorted(range(len(fitting)), key=lambda number: _order(fitting[number], sizes[number])):
        chunk, size = fitting[number], sizes[number]
        place = next((n for n, full in enumerate(filled) if full.plus(size).cost(layout) <= budget), len(filled))
        if place == len(filled):
            batches.append([])
            filled.append(Footprint(0, 0, 0))
        batches[place].append(chunk)
        filled[place] = filled[place].plus(size)
    return [tuple(batch) for batch in batches]


def _order(chunk: Chunk, size: Footprint) -> tuple[object, ...]:
    """Sort key; ids and pairs make it independent of the order of the chunks."""
    return -size.longest, chunk.group.question.id, chunk.pairs, chunk.responses


def _divide(chunk: Chunk, prompt: int, budget: int, layout: Layout) -> Iterator[Chunk]:
    """Split by halves until each part fits: by pairs, or by responses where there are no pairs (for scoring)."""
    if footprint(chunk, prompt).cost(layout) <= budget:
        yield chunk
    elif len(chunk.pairs) > 1:
        half = len(chunk.pairs) // 2
        yield from _divide(make_chunk(chunk.group, chunk.pairs[:half]), prompt, budget, layout)
        yield from _divide(make_chunk(chunk.group, chunk.pairs[half:]), prompt, budget, layout)
    elif not chunk.pairs and len(chunk.responses) > 1:
        half = len(chunk.responses) // 2
        yield from _divide(chunk._replace(responses=chunk.responses[:half]), prompt, budget, layout)
        yield from _divide(chunk._replace(responses=chunk.responses[half:]), prompt, budget, layout)
    else:
        yield chunk


TRIED = 16
"""Prompts to try when looking for a short one; each costs opening its images."""


def find_dummy(groups: Sequence[Group], prompt_length: Callable[[Group], int]) -> Chunk:
    """A small chunk without pairs, with an image if the data has any; the same on every rank.

    Ranks that shard a model must run the same modules equally often: without it, a rank whose micro-batch has no images would skip the
    vision tower and block the collectives of the others. It has no pairs, so its gradient is exactly 0.
    """
    usable = [group for group in groups if group.responses]
    pictured = [group for group in usable if group.question.images] or usable
    fewest = sorted(pictured, key=lambda group: len(group.question.images))[:TRIED]
    shortest = [Chunk(group, (min(range(len(group.responses)), key=lambda number: len(group.responses[number])),), ()) for group in fewest]
    return min(shortest, key=lambda chunk: footprint(chunk, prompt_length(chunk.group)).tokens)


def with_dummy(chunks: tuple[Chunk, ...], dummy: Chunk) -> tuple[Chunk, ...]:
    """The micro-batch plus `dummy` where it is empty, or has no image while the dummy has one."""
    needed = bool(dummy.group.question.images) and not any(chunk.group.question.images for chunk in chunks)
    return (*chunks, dummy) if needed or not chunks else chunks


# --- tensors of all layouts -----------------------------------------------------------------------------------


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """dtype of sums over tokens, pairs, steps and ranks: float64 where the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True, eq=False)
class VisionInputs:
    """The images of a batch, each once. inputs: of the vision tower. rows: (R) group of each row.

    tiles, images: (G) number of tiles (entries of pixel_values) and images of each group.
    """

    inputs: dict[str, Tensor]
    rows: tuple[int, ...]
    tiles: tuple[int, ...]
    images: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch on the model's device.

    inputs: of the language model, (1, T) or padded (R, longest); with pixels where `vision` is None. attention_plan: of a packed
    layout. vision: images of the shared layout. singles: (R) inputs of each response in the single layout, which has no others.
    row, position: (U,) of the hidden state that predicts each token. target: (U,) that token. Tokens of a shared prefix occur once:
    token_index: (A,) index into the U for each token of each response. response_index: (A,) its response, 0 .. R-1.
    lengths: (R,) tokens of each response. chosen, rejected: (K,) indices into the R responses. replayed: (M,) those of SFT rows.
    features: of all images in order, in the model's own format, where cached (see `mixpo.train.vision_cache`).
    reference: (R,) summed log-probs under the reference, in `accumulation_dtype`, NaN where unknown. question_ids: (R).
    held: for `train.loss.hold`, None without it. tokens: that pass through the model, without padding.
    """

    inputs: dict[str, Tensor]
    attention_plan: AttentionPlan | None
    vision: VisionInputs | None
    row: Tensor
    position: Tensor
    target: Tensor
    token_index: Tensor
    response_index: Tensor
    lengths: Tensor
    chosen: Tensor
    rejected: Tensor
    replayed: Tensor
    reference: Tensor
    question_ids: tuple[str, ...]
    tokens: int
    features: Any | None = None
    singles: tuple[dict[str, Tensor], ...] = ()
    held: HeldTokens | None = None


@dataclass(frozen=True, eq=False)
class ResponseTensors:
    """The fields of `Batch` that do not depend on the layout, on the CPU. tails: the responses' tokens."""

    tails: list[tuple[int, ...]]
    target: Tensor
    response_index: Tensor
    offset: Tensor
    lengths: Tensor
    chosen: Tensor
    rejected: Tensor
    replayed: Tensor
    reference: Tensor
    question_ids: tuple[str, ...]
    held: HeldTokens | None


def response_tensors(chunks: Sequence[Chunk]) -> ResponseTensors:
    """offset: (A,) index of each predicted token in its response."""
    tails = [chunk.group.responses[response] for chunk in chunks for response in chunk.responses]
    lengths = torch.tensor([len(tail) for tail in tails])
    response_index = torch.arange(len(tails)).repeat_interleave(lengths)
    chosen, rejected = _pairs(chunks)
    return ResponseTensors(
        tails=tails,
        target=torch.tensor([token for tail in tails for token in tail]),
        response_index=response_index,
        offset=torch.arange(len(response_index)) - (lengths.cumsum(0) - lengths)[response_index],
        lengths=lengths,
        chosen=chosen,
        rejected=rejected,
        replayed=torch.tensor([chunk.replay for chunk in chunks for _ in chunk.responses]).nonzero()[:, 0],
        reference=torch.tensor([_reference(chunk, response) for chunk in chunks for response in chunk.responses], dtype=torch.float64),
        question_ids=tuple(chunk.group.question.id for chunk in chunks for _ in chunk.responses),
        held=_held(chunks, response_index),
    )


def _held(chunks: Sequence[Chunk], response_index: Tensor) -> HeldTokens | None:
    """What `train.loss.hold` needs of these chunks; None where no group has it."""
    if all(chunk.group.forks is None for chunk in chunks):
        return None
    responses = [held_response(chunk.group, response) for chunk in chunks for response in chunk.responses]
    pairs = [held for chunk in chunks for held in held_pairs(chunk.group, chunk.pairs)]
    return HeldTokens(
        reference=torch.from_numpy(np.concatenate([one.reference for one in responses])),
        response=response_index,
        held=torch.from_numpy(np.concatenate([one.held for one in responses])),
        pairs=torch.tensor(pairs, dtype=torch.bool),
    )


def _pairs(chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
    first, pairs = 0, []
    for chunk in chunks:
        place = {response: first + number for number, response in enumerate(chunk.responses)}
        pairs += [(place[chosen], place[rejected]) for chosen, rejected in chunk.pairs]
        first += len(chunk.responses)
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _reference(chunk: Chunk, response: int) -> float:
    known = chunk.group.reference
    return float("nan") if known is None else known[response]
