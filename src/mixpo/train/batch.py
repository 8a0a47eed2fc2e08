"""Micro-batches: whole groups laid out as right-padded rows, one row for each unique response. The layout is this file's secret.

Everyone else sees `Piece` (what to compute), `Batch.owner` (which response a predicted token belongs to) and index pairs.
R responses (= rows), L tokens of the longest row, A predicted tokens, K pairs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mixpo.train.plan import Step
from mixpo.types import Group
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, batch_inputs, join_features


class Piece(NamedTuple):
    """Some responses of a group, and pairs among them. Both are positions in `group.responses`."""

    group: Group
    responses: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


def piece_of(group: Group, pairs: Sequence[tuple[int, int]]) -> Piece:
    """The piece that holds these pairs and the responses that they need."""
    return Piece(group, tuple(sorted({response for pair in pairs for response in pair})), tuple(pairs))


def pieces_of(step: Step, groups: Sequence[Group]) -> list[Piece]:
    """The pieces behind the parts of a step."""
    return [piece_of(groups[part.group], [groups[part.group].pairs[pair] for pair in part.pairs]) for part in step]


# --- how much fits -----------------------------------------------------------------------------------------------------


def micro_batches(pieces: Iterable[Piece], prompt_length: Callable[[Group], int], budget: int) -> list[tuple[Piece, ...]]:
    """Divide pieces so that rows times longest row stays within `budget` tokens. The longest come first.

    Pieces of like length share a micro-batch, which keeps padding small, and the largest memory is needed at once, not after an
    hour. A piece too large by itself is divided; a single pair (or response) that is still too large goes alone.
    """
    fitting = [part for piece in pieces for part in _divide(piece, prompt_length(piece.group), budget)]
    # The id and the pairs make the order independent of the order of the pieces.
    fitting.sort(key=lambda piece: (-_longest(piece, prompt_length(piece.group)), piece.group.question.id, piece.pairs, piece.responses))
    batches: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    rows = width = 0
    for piece in fitting:
        wider = max(width, _longest(piece, prompt_length(piece.group)))
        if current and (rows + len(piece.responses)) * wider > budget:
            batches.append(tuple(current))
            current, rows, wider = [], 0, _longest(piece, prompt_length(piece.group))
        current.append(piece)
        rows, width = rows + len(piece.responses), wider
    return [*batches, tuple(current)] if current else batches


def _longest(piece: Piece, prompt: int) -> int:
    return prompt + max(len(piece.group.responses[response]) for response in piece.responses)


def _divide(piece: Piece, prompt: int, budget: int) -> Iterator[Piece]:
    """Pieces that fit: pairs are kept in order, and responses without pairs (for scoring) are divided as they come."""
    if len(piece.responses) * _longest(piece, prompt) <= budget:
        yield piece
    elif len(piece.pairs) > 1:
        half = len(piece.pairs) // 2
        yield from _divide(piece_of(piece.group, piece.pairs[:half]), prompt, budget)
        yield from _divide(piece_of(piece.group, piece.pairs[half:]), prompt, budget)
    elif not piece.pairs and len(piece.responses) > 1:
        half = len(piece.responses) // 2
        yield from _divide(piece._replace(responses=piece.responses[:half]), prompt, budget)
        yield from _divide(piece._replace(responses=piece.responses[half:]), prompt, budget)
    else:
        yield piece


# --- layout ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vision:
    """The images of a batch, each once. inputs: what the vision tower needs. rows: (R) the group of each row.

    tiles, images: (G) how many tiles (entries of pixel_values) and images each group has.
    """

    inputs: dict[str, Tensor]
    rows: tuple[int, ...]
    tiles: tuple[int, ...]
    images: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch on the model's device.

    inputs: of the language model, (R, L); with the pixels of every row's images when `vision` is None.
    row, at: (A,) where each predicted token's state stands. target: (A,) the token. owner: (A,) its response, 0 .. R-1.
    lengths: (R,) tokens of each response. chosen, rejected: (K,) positions among the R responses.
    reference: (R,) summed log-probs under the reference, float32, NaN where unknown. names: (R) question id of each response.
    tokens: without padding.
    """

    inputs: dict[str, Tensor]
    vision: Vision | None
    row: Tensor
    at: Tensor
    target: Tensor
    owner: Tensor
    lengths: Tensor
    chosen: Tensor
    rejected: Tensor
    reference: Tensor
    names: tuple[str, ...]
    tokens: int


def collate(vlm: Vlm, pieces: Sequence[Piece], prompt_of: Callable[[Group], EncodedPrompt], shared: bool) -> Batch:
    """Lay pieces out. shared: keep the pixels of each group once, apart (`Batch.vision`), instead of once in every row."""
    prompts = [prompt_of(piece.group) for piece in pieces]
    rows = [number for number, piece in enumerate(pieces) for _ in piece.responses]
    tails = [piece.group.responses[response] for piece in pieces for response in piece.responses]
    vision = _vision(vlm, pieces, prompts, rows) if shared else None
    encoded = [_without_pixels(prompt) for prompt in prompts] if vision else prompts
    inputs = batch_inputs(vlm, [encoded[number] for number in rows], "right", tails)
    starts = torch.tensor([len(prompts[number]) for number in rows])
    lengths = torch.tensor([len(tail) for tail in tails])
    owner = torch.arange(len(rows)).repeat_interleave(lengths)
    within = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    chosen, rejected = _pairs(pieces)
    references = [_reference(piece, response) for piece in pieces for response in piece.responses]
    target = torch.tensor([token for tail in tails for token in tail])
    # The state before a token predicts it: a response's first token is predicted by the last token of the prompt.
    moved = [owner, starts[owner] + within - 1, target, owner, lengths, chosen, rejected, torch.tensor(references)]
    row, at, target, owner, lengths_there, chosen, rejected, reference = (tensor.to(vlm.device) for tensor in moved)
    return Batch(
        inputs=inputs,
        vision=vision,
        row=row,
        at=at,
        target=target,
        owner=owner,
        lengths=lengths_there,
        chosen=chosen,
        rejected=rejected,
        reference=reference,
        names=tuple(pieces[number].group.question.id for number in rows),
        tokens=int(starts.sum() + lengths.sum()),
    )


def _vision(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt], rows: Sequence[int]) -> Vision | None:
    joined = join_features(vlm, [prompt.features for prompt in prompts])
    if not joined:
        return None
    dtype = next(vlm.model.parameters()).dtype
    inputs = {name: (value.to(dtype) if value.is_floating_point() else value).to(vlm.device) for name, value in joined.items()}
    tiles = tuple(len(prompt.features["pixel_values"]) if prompt.features else 0 for prompt in prompts)
    return Vision(inputs=inputs, rows=tuple(rows), tiles=tiles, images=tuple(len(piece.group.question.images) for piece in pieces))


def _without_pixels(prompt: EncodedPrompt) -> EncodedPrompt:
    """Only what positions are worked out from."""
    return replace(prompt, features={name: value for name, value in prompt.features.items() if name == "image_grid_thw"})


def _pairs(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    first, pairs = 0, []
    for piece in pieces:
        place = {response: first + number for number, response in enumerate(piece.responses)}
        pairs += [(place[chosen], place[rejected]) for chosen, rejected in piece.pairs]
        first += len(piece.responses)
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _reference(piece: Piece, response: int) -> float:
    known = piece.group.reference
    return float("nan") if known is None else known[response]
