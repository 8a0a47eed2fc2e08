"""Laying pieces out as tensors: one row of groups, or padded rows. Letters as in `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mixpo.train.batch import PACKED, Answers, Batch, Layout, Piece, Vision, answers_of, wide
from mixpo.train.prefix_tree import Grown, grow
from mixpo.train.tree_attention import Span, Tree, plant, plant_ragged
from mixpo.types import Group
from mixpo.vlm.families import Sight, answer_type, sight_of
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, batch_inputs, join_features, positions_of


class Predicted(NamedTuple):
    """The fields of `Batch` of the same names, on the CPU."""

    row: Tensor
    at: Tensor
    target: Tensor
    pick: Tensor


def collate(vlm: Vlm, pieces: Sequence[Piece], prompt_of: Callable[[Group], EncodedPrompt], layout: Layout) -> Batch:
    """Lay pieces out. Their order decides where responses stand, and nothing else."""
    prompts = [prompt_of(piece.group) for piece in pieces]
    answers = answers_of(pieces)
    return _packed(vlm, pieces, prompts, answers, layout) if layout in PACKED else _padded(vlm, pieces, prompts, answers, layout)


# --- one row -----------------------------------------------------------------------------------------------------------


def rows_of(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt]) -> tuple[list[Span], list[Grown]]:
    """Where the groups of a row stand, one after the other, and the branches of each."""
    sight, spans, trees, first = sight_of(vlm.model), list[Span](), list[Grown](), 0
    for piece, prompt in zip(pieces, prompts, strict=True):
        grown = grow([piece.group.responses[response] for response in piece.responses])
        spans.append(Span(first, len(prompt), grown.branches, _both_ways(sight, prompt)))
        trees.append(grown)
        first += len(prompt) + grown.tokens
    return spans, trees


def _packed(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt], answers: Answers, layout: Layout) -> Batch:
    """[prompt | branch 1 | ... ] of every piece, one after the other. Positions of every branch go on from where it grows."""
    spans, trees = rows_of(vlm, pieces, prompts)
    words = [torch.tensor(branch.tokens) for span in spans for branch in span.branches]
    inputs = {"input_ids": _interleave(spans, [prompt.ids for prompt in prompts], words)}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.token_types):
        kinds = [prompt.token_types.get(name, torch.zeros_like(prompt.ids)) for prompt in prompts]
        value = answer_type(vlm.model) if name == "token_type_ids" else 0
        inputs[name] = _interleave(spans, kinds, [torch.full_like(word, value) for word in words])
    inputs["position_ids"] = _positions(vlm, spans, prompts)
    inputs |= pixels(vlm, prompts)
    tree = plant_ragged(spans, vlm.device) if layout == "varlen" else plant(spans, sight_of(vlm.model), vlm.device)
    at, pick = _predicting(spans, trees)
    predicted = Predicted(row=torch.zeros_like(at), at=at, target=torch.cat(words), pick=pick)
    return _batch(vlm, answers, inputs, predicted, tree=tree, tokens=len(tree))


def _predicting(spans: Sequence[Span], trees: Sequence[Grown]) -> tuple[Tensor, Tensor]:
    """(U,) where the state before each token of a branch stands, in the order of the row; (A,) which of them each response needs."""
    at, pick, before = list[Tensor](), list[Tensor](), 0
    for span, grown in zip(spans, trees, strict=True):
        chains = span.chains()
        at += [chain[-len(branch.tokens) - 1 : -1] for branch, chain in zip(span.branches, chains, strict=True)]
        # All tokens of the row but those of prompts are numbered on.
        pick += [chains[end][span.prompt :] - (span.start + span.prompt) + before for end in grown.ends]
        before += grown.tokens
    return torch.cat(at), torch.cat(pick)


def _interleave(spans: Sequence[Span], prompts: Sequence[Tensor], tails: Sequence[Tensor]) -> Tensor:
    """(.., T) -> (1, T), or (3, 1, T) for parts with three axes."""
    parts, number = [], 0
    for span, prompt in zip(spans, prompts, strict=True):
        parts += [prompt, *tails[number : number + len(span.branches)]]
        number += len(span.branches)
    return torch.cat(parts, -1).unsqueeze(-2)


def _positions(vlm: Vlm, spans: Sequence[Span], prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(1, T), or (3, 1, T) for models with three axes; a response goes on one after the largest position of its prompt."""
    found, tails = [], []
    for span, prompt in zip(spans, prompts, strict=True):
        of_prompt = positions_of(vlm, prompt)
        after = int(of_prompt.max()) + 1
        found.append(of_prompt)
        for branch, chain in zip(span.branches, span.chains(), strict=True):
            end = after + len(chain) - span.prompt
            tails.append(torch.arange(end - len(branch.tokens), end).expand(*of_prompt.shape[:-1], -1))
    return _interleave(spans, found, tails)


def _both_ways(sight: Sight, prompt: EncodedPrompt) -> Tensor | None:
    """Numbers of the groups of prompt tokens that see each other both ways (see `Span.same`)."""
    kinds = prompt.token_types.get("token_type_ids")
    if sight.both_ways == "none" or kinds is None:
        return None
    if sight.both_ways == "prompt":
        return torch.zeros_like(prompt.ids)
    image = kinds == 1
    begins = image & ~torch.cat([image.new_zeros(1), image[:-1]])
    return (begins.cumsum(0) - 1).where(image, -1)


def pixels(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """What the vision tower needs for the images of these prompts, on the CPU, in the type of the model's weights."""
    dtype = next(vlm.model.parameters()).dtype
    joined = join_features(vlm, [prompt.features for prompt in prompts])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in joined.items()}


# --- padded rows -------------------------------------------------------------------------------------------------------


def _padded(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt], answers: Answers, layout: Layout) -> Batch:
    """One row for each response, padded on the right."""
    rows = [number for number, piece in enumerate(pieces) for _ in piece.responses]
    vision = _vision(vlm, pieces, prompts, rows) if layout == "shared" else None
    encoded = [_without_pixels(prompt) for prompt in prompts] if vision else prompts
    inputs = batch_inputs(vlm, [encoded[number] for number in rows], "right", answers.tails)
    starts = torch.tensor([len(prompts[number]) for number in rows])
    at = starts[answers.owner] + answers.within - 1
    predicted = Predicted(row=answers.owner, at=at, target=answers.target, pick=torch.arange(len(at)))
    return _batch(vlm, answers, inputs, predicted, vision=vision, tokens=int(starts.sum() + answers.lengths.sum()))


def _vision(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt], rows: Sequence[int]) -> Vision | None:
    joined = pixels(vlm, prompts)
    if not joined:
        return None
    inputs = {name: value.to(vlm.device) for name, value in joined.items()}
    tiles = tuple(len(prompt.features["pixel_values"]) if prompt.features else 0 for prompt in prompts)
    return Vision(inputs=inputs, rows=tuple(rows), tiles=tiles, images=tuple(len(piece.group.question.images) for piece in pieces))


def _without_pixels(prompt: EncodedPrompt) -> EncodedPrompt:
    """Only what positions are worked out from."""
    return replace(prompt, features={name: value for name, value in prompt.features.items() if name == "image_grid_thw"})


def _batch(
    vlm: Vlm,
    answers: Answers,
    inputs: dict[str, Tensor],
    predicted: Predicted,
    *,
    tokens: int,
    tree: Tree | None = None,
    vision: Vision | None = None,
) -> Batch:
    device = vlm.device
    return Batch(
        inputs={name: value.to(device) for name, value in inputs.items()},
        tree=tree,
        vision=vision,
        row=predicted.row.to(device),
        at=predicted.at.to(device),
        target=predicted.target.to(device),
        pick=predicted.pick.to(device),
        owner=answers.owner.to(device),
        lengths=answers.lengths.to(device),
        chosen=answers.chosen.to(device),
        rejected=answers.rejected.to(device),
        reference=answers.reference.to(device, wide(device)),
        names=answers.names,
        tokens=tokens,
    )
