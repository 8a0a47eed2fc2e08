"""Lays chunks out as tensors: one packed row of groups, or padded rows. Shape letters as in `mixpo.train.batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixpo.train.batch import PACKED, Batch, Chunk, Layout, ResponseTensors, VisionInputs, accumulation_dtype, response_tensors
from mixpo.train.prefix_tree import PrefixTree, build_prefix_tree
from mixpo.train.tree_attention import AttentionPlan, Span, plan_padded, plan_varlen
from mixpo.types import Group
from mixpo.vlm.families import Visibility, visibility_of
from mixpo.vlm.inputs import batch_inputs, extend_token_type, join_features, next_token_type, positions_of, single_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

AHEAD = 4
"""Micro-batches that are laid out while the model computes an earlier one."""


class PredictedTokens(NamedTuple):
    """The fields of `Batch` of the same names, on the CPU."""

    row: Tensor
    position: Tensor
    target: Tensor
    token_index: Tensor


def collate(vlm: Vlm, chunks: Sequence[Chunk], prompt_of: Callable[[Group], EncodedPrompt], layout: Layout) -> Batch:
    """The batch of some chunks in a layout; their order sets the order of responses only."""
    prompts = [prompt_of(chunk.group) for chunk in chunks]
    responses = response_tensors(chunks)
    if layout == "single":
        return _single(vlm, chunks, prompts, responses)
    return _packed(vlm, chunks, prompts, responses, layout) if layout in PACKED else _padded(vlm, chunks, prompts, responses, layout)


def collate_ahead(vlm: Vlm, chunks: Sequence[Chunk], prompt_of: Callable[[Group], EncodedPrompt], layout: Layout) -> Batch:
    """The batch for `on_device`, made in another thread: on the CPU, in pinned memory where the model is on an NVIDIA GPU."""
    batch = collate(replace(vlm, device=torch.device("cpu")), chunks, prompt_of, layout)
    return _mapped(batch, Tensor.pin_memory) if vlm.device.type == "cuda" else batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors on a device; copies from pinned memory do not wait for it."""
    moved: Batch = batch if device.type == "cpu" else _moved(batch, device)
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    """A value with all tensors in it on a device."""

    def move(tensor: Tensor) -> Tensor:
        dtype = accumulation_dtype(device) if tensor.dtype == torch.float64 else tensor.dtype
        return tensor.to(device, dtype, non_blocking=True)

    return _mapped(value, move)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with `change` applied to all tensors in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), change) for field in fields(value)})  # type: ignore[type-var]
    return value


# --- one row -----------------------------------------------------------------------------------------------------------


def row_layout(vlm: Vlm, chunks: Sequence[Chunk], prompts: Sequence[EncodedPrompt]) -> tuple[list[Span], list[PrefixTree]]:
    """The span and the prefix tree of each group of a row."""
    visibility, spans, trees, first = visibility_of(vlm.model), list[Span](), list[PrefixTree](), 0
    for chunk, prompt in zip(chunks, prompts, strict=True):
        prefix_tree = build_prefix_tree([chunk.group.responses[response] for response in chunk.responses])
        spans.append(Span(first, len(prompt), prefix_tree.branches, _block_ids(visibility, prompt)))
        trees.append(prefix_tree)
        first += len(prompt) + prefix_tree.tokens
    return spans, trees


def _packed(vlm: Vlm, chunks: Sequence[Chunk], prompts: Sequence[EncodedPrompt], responses: ResponseTensors, layout: Layout) -> Batch:
    """One row: [prompt | branch 1 | ...] of each chunk. Position ids of a branch continue those of its parent."""
    spans, trees = row_layout(vlm, chunks, prompts)
    words = [torch.tensor(branch.tokens) for span in spans for branch in span.branches]
    inputs = {"input_ids": _interleave(spans, [prompt.ids for prompt in prompts], words)}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.token_types):
        kinds = [extend_token_type(vlm, prompt, name, 0) for prompt in prompts]
        values = [next_token_type(vlm, prompt, name) for span, prompt in zip(spans, prompts, strict=True) for _ in span.branches]
        inputs[name] = _interleave(spans, kinds, [torch.full_like(word, value) for word, value in zip(words, values, strict=True)])
    inputs["position_ids"] = _positions(vlm, spans, prompts)
    inputs |= pixel_inputs(vlm, prompts)
    attention_plan = plan_varlen(spans, vlm.device) if layout == "varlen" else plan_padded(spans, visibility_of(vlm.model), vlm.device)
    position, token_index = _predicting(spans, trees)
    predicted = PredictedTokens(row=torch.zeros_like(position), position=position, target=torch.cat(words), token_index=token_index)
    return _batch(vlm, responses, inputs, predicted, attention_plan=attention_plan, tokens=len(attention_plan))


def _predicting(spans: Sequence[Span], trees: Sequence[PrefixTree]) -> tuple[Tensor, Tensor]:
    """(U,) position of the state that predicts each branch token, in row order; (A,) index into them for each response token."""
    position, token_index, before = list[Tensor](), list[Tensor](), 0
    for span, prefix_tree in zip(spans, trees, strict=True):
        paths = span.paths()
        position += [path[-len(branch.tokens) - 1 : -1] for branch, path in zip(span.branches, paths, strict=True)]
        # The U index counts branch tokens only, so prompts are skipped.
        token_index += [paths[end][span.prompt :] - (span.start + span.prompt) + before for end in prefix_tree.end_branches]
        before += prefix_tree.tokens
    return torch.cat(position), torch.cat(token_index)


def _interleave(spans: Sequence[Span], prompts: Sequence[Tensor], tails: Sequence[Tensor]) -> Tensor:
    """Prompts and branches in row order: (1, T), or (axes, 1, T) for position ids on several axes."""
    parts, number = [], 0
    for span, prompt in zip(spans, prompts, strict=True):
        parts += [prompt, *tails[number : number + len(span.branches)]]
        number += len(span.branches)
    return torch.cat(parts, -1).unsqueeze(-2)


def _positions(vlm: Vlm, spans: Sequence[Span], prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Position ids, (1, T) or (axes, 1, T); a response starts one after the largest position of its prompt."""
    prompt_positions, tails = [], []
    for span, prompt in zip(spans, prompts, strict=True):
        of_prompt = positions_of(vlm, prompt)
        after = int(of_prompt.max()) + 1
        prompt_positions.append(of_prompt)
        for branch, path in zip(span.branches, span.paths(), strict=True):
            end = after + len(path) - span.prompt
            tails.append(torch.arange(end - len(branch.tokens), end).expand(*of_prompt.shape[:-1], -1))
    return _interleave(spans, prompt_positions, tails)


def _block_ids(visibility: Visibility, prompt: EncodedPrompt) -> Tensor | None:
    """(prompt,) block of each token with bidirectional attention (see `Span.block_ids`)."""
    kinds = prompt.token_types.get("token_type_ids")
    if visibility.bidirectional == "none" or kinds is None:
        return None
    if visibility.bidirectional == "prompt":
        return torch.zeros_like(prompt.ids)
    image = kinds == 1
    begins = image & ~torch.cat([image.new_zeros(1), image[:-1]])
    return (begins.cumsum(0) - 1).where(image, -1)


def pixel_inputs(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Inputs of the vision tower for the images of these prompts, on the CPU, in the dtype of the model's weights."""
    dtype = next(vlm.model.parameters()).dtype
    joined = join_features(vlm, [prompt.features for prompt in prompts])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in joined.items()}


# --- rows of responses -------------------------------------------------------------------------------------------------


def _padded(vlm: Vlm, chunks: Sequence[Chunk], prompts: Sequence[EncodedPrompt], responses: ResponseTensors, layout: Layout) -> Batch:
    """One row per response, padded on the right."""
    rows = [number for number, chunk in enumerate(chunks) for _ in chunk.responses]
    vision = _vision(vlm, chunks, prompts, rows) if layout == "shared" else None
    encoded = [_without_pixels(prompt) for prompt in prompts] if vision else prompts
    inputs = batch_inputs(vlm, [encoded[number] for number in rows], "right", responses.tails)
    starts = torch.tensor([len(prompts[number]) for number in rows])
    return _rows(vlm, responses, starts, inputs, vision=vision)


def _single(vlm: Vlm, chunks: Sequence[Chunk], prompts: Sequence[EncodedPrompt], responses: ResponseTensors) -> Batch:
    """One forward pass per response."""
    owners = [prompt for prompt, chunk in zip(prompts, chunks, strict=True) for _ in chunk.responses]
    singles = tuple(single_inputs(vlm, prompt, tail) for prompt, tail in zip(owners, responses.tails, strict=True))
    return _rows(vlm, responses, torch.tensor([len(prompt) for prompt in owners]), {}, singles=singles)


def _rows(
    vlm: Vlm,
    responses: ResponseTensors,
    starts: Tensor,
    inputs: dict[str, Tensor],
    vision: VisionInputs | None = None,
    singles: tuple[dict[str, Tensor], ...] = (),
) -> Batch:
    """A batch with one row per response. starts: (R,) length of each prompt."""
    position = starts[responses.response_index] + responses.offset - 1
    predicted = PredictedTokens(
        row=responses.response_index, position=position, target=responses.target, token_index=torch.arange(len(position))
    )
    tokens = int(starts.sum() + responses.lengths.sum())
    return _batch(vlm, responses, inputs, predicted, vision=vision, singles=singles, tokens=tokens)


def _vision(vlm: Vlm, chunks: Sequence[Chunk], prompts: Sequence[EncodedPrompt], rows: Sequence[int]) -> VisionInputs | None:
    joined = pixel_inputs(vlm, prompts)
    if not joined:
        return None
    inputs = {name: value.to(vlm.device) for name, value in joined.items()}
    tiles = tuple(len(prompt.features["pixel_values"]) if prompt.features else 0 for prompt in prompts)
    return VisionInputs(inputs=inputs, rows=tuple(rows), tiles=tiles, images=tuple(len(chunk.group.question.images) for chunk in chunks))


def _without_pixels(prompt: EncodedPrompt) -> EncodedPrompt:
    """Keeps only the feature that position ids depend on."""
    return replace(prompt, features={name: value for name, value in prompt.features.items() if name == "image_grid_thw"})


def _batch(
    vlm: Vlm,
    responses: ResponseTensors,
    inputs: dict[str, Tensor],
    predicted: PredictedTokens,
    *,
    tokens: int,
    attention_plan: AttentionPlan | None = None,
    vision: VisionInputs | None = None,
    singles: tuple[dict[str, Tensor], ...] = (),
) -> Batch:
    device = vlm.device
    return Batch(
        inputs={name: value.to(device) for name, value in inputs.items()},
        attention_plan=attention_plan,
        vision=vision,
        singles=singles,
        row=predicted.row.to(device),
        position=predicted.position.to(device),
        target=predicted.target.to(device),
        token_index=predicted.token_index.to(device),
        response_index=responses.response_index.to(device),
        lengths=responses.lengths.to(device),
        chosen=responses.chosen.to(device),
        rejected=responses.rejected.to(device),
        replayed=responses.replayed.to(device),
        reference=responses.reference.to(device, accumulation_dtype(device)),
        held=_moved(responses.held, device),
        question_ids=responses.question_ids,
        tokens=tokens,
    )
