"""Laying pieces out as tensors: one row of groups, or padded rows. R responses, T tokens of the one row, A predicted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mixpo.train.batch import Answers, Batch, Layout, Piece, Vision, answers_of, wide
from mixpo.train.tree import Span, Tree, plant
from mixpo.types import Group
from mixpo.vlm.families import Sight, answer_type, sight_of
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, batch_inputs, join_features, positions_of


def collate(vlm: Vlm, pieces: Sequence[Piece], prompt_of: Callable[[Group], EncodedPrompt], layout: Layout) -> Batch:
    """Lay pieces out. Their order decides where responses stand, and nothing else."""
    prompts = [prompt_of(piece.group) for piece in pieces]
    answers = answers_of(pieces)
    return _packed(vlm, pieces, prompts, answers) if layout == "tree" else _padded(vlm, pieces, prompts, answers, layout)


# --- one row -----------------------------------------------------------------------------------------------------------


def _packed(vlm: Vlm, pieces: Sequence[Piece], prompts: Sequence[EncodedPrompt], answers: Answers) -> Batch:
    """[prompt | response 1 | ... ] of every piece, one after the other. Positions of every response go on from its prompt's."""
    sight, spans, first, number = sight_of(vlm.model), list[Span](), 0, 0
    for piece, prompt in zip(pieces, prompts, strict=True):
        tails = tuple(len(tail) for tail in answers.tails[number : number + len(piece.responses)])
        spans.append(Span(first, len(prompt), tails, _both_ways(sight, prompt)))
        first, number = first + len(prompt) + sum(tails), number + len(piece.responses)
    inputs = {"input_ids": _interleave(spans, [prompt.ids for prompt in prompts], [torch.tensor(tail) for tail in answers.tails])}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.token_types):
        kinds = [prompt.token_types.get(name, torch.zeros_like(prompt.ids)) for prompt in prompts]
        value = answer_type(vlm.model) if name == "token_type_ids" else 0
        inputs[name] = _interleave(spans, kinds, [torch.full((len(tail),), value) for tail in answers.tails])
    inputs["position_ids"] = _positions(vlm, spans, prompts)
    inputs |= pixels(vlm, prompts)
    tree = plant(spans, sight, vlm.device)
    return _batch(vlm, answers, inputs, torch.zeros_like(answers.owner), _predicting(spans, answers), tree=tree, tokens=first)


def _predicting(spans: Sequence[Span], answers: Answers) -> Tensor:
    """(A,) where each token's predicting state stands: the token before, which is the prompt's last one for a response's first."""
    last, before = [], []
    for span in spans:
        first = span.start + span.prompt
        for tail in span.tails:
            last.append(span.start + span.prompt - 1)
            before.append(first - 1)
            first += tail
    at = torch.tensor(before)[answers.owner] + answers.within
    return at.where(answers.within > 0, torch.tensor(last)[answers.owner])


def _interleave(spans: Sequence[Span], prompts: Sequence[Tensor], tails: Sequence[Tensor]) -> Tensor:
    """(.., T) -> (1, T), or (3, 1, T) for parts with three axes."""
    parts, number = [], 0
    for span, prompt in zip(spans, prompts, strict=True):
        parts += [prompt, *tails[number : number + len(span.tails)]]
        number += len(span.tails)
    return torch.cat(parts, -1).unsqueeze(-2)


def _positions(vlm: Vlm, spans: Sequence[Span], prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(1, T), or (3, 1, T) for models with three axes; a response goes on one after the largest position of its prompt."""
    found, tails = [], []
    for span, prompt in zip(spans, prompts, strict=True):
        of_prompt = positions_of(vlm, prompt)
        after = int(of_prompt.max()) + 1
        found.append(of_prompt)
        tails += [torch.arange(after, after + tail).expand(*of_prompt.shape[:-1], tail) for tail in span.tails]
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
    return _batch(vlm, answers, inputs, answers.owner, at, vision=vision, tokens=int(starts.sum() + answers.lengths.sum()))


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
    row: Tensor,
    at: Tensor,
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
        row=row.to(device),
        at=at.to(device),
        target=answers.target.to(device),
        owner=answers.owner.to(device),
        lengths=answers.lengths.to(device),
        chosen=answers.chosen.to(device),
        rejected=answers.rejected.to(device),
        reference=answers.reference.to(device, wide(device)),
        names=answers.names,
        tokens=tokens,
    )
