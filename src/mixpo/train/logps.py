"""Log-probs of responses under a model: the forward pass shared by reference scoring and training.

R responses, A predicted tokens, U unique ones (see `Batch`), L tokens of a row, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixpo.train.attention_patch import Attention, tree_attention, tree_attention_enabled
from mixpo.train.batch import Batch, Layout, VisionInputs, accumulation_dtype
from mixpo.train.compiled import CompiledLayers
from mixpo.train.compute_weights import compute_weights
from mixpo.train.losses import ResponseLogps
from mixpo.train.token_logps import token_logps
from mixpo.train.vision_attention import windows_grouped
from mixpo.vlm.families import logit_scaling

Casting = Literal["copies", "sharded", "autocast"]
"""Who casts float32 weights to bfloat16: `compute_weights`, FSDP2 as it gathers them, or autocast, because DeepSpeed owns them."""


class Scorer(nn.Module):
    """The model with log-probs as its output, so that DDP, FSDP2 and DeepSpeed wrap the whole computation."""

    casting: Casting = "copies"
    compiled: CompiledLayers | None = None
    """With `train.compile`; used for all layouts but "single"."""

    def __init__(self, model: nn.Module, layout: Layout, precision: torch.dtype = torch.float32) -> None:
        """layout: of its batches. precision: of the computation, whatever the dtype of the weights."""
        super().__init__()
        self.model: Any = model
        self.layout = layout
        self.precision = precision

    def forward(self, batch: Batch) -> ResponseLogps:
        """Log-probs of the responses and their tokens. Tokens are in float32 whatever the compute dtype, sums in `accumulation_dtype`.

        Sums of hundreds of tokens reach thousands of nats, where float32 resolves 1e-4 only: too coarse for log-ratios, which start
        at 0.
        """
        lower = self.precision != torch.float32
        copies = compute_weights(self.model, self.precision) if self.casting == "copies" else nullcontext()
        with torch.autocast(batch.target.device.type, dtype=self.precision, enabled=lower and self.casting == "autocast"), copies:
            token_u = self._tokens(_cast_batch(batch, self.precision) if lower else batch)
        precise = accumulation_dtype(token_u.device)
        token_a = token_u[batch.token_index].to(precise)
        sums = torch.zeros(len(batch.lengths), dtype=precise, device=token_u.device).index_add(0, batch.response_index, token_a)
        return ResponseLogps(sums=sums, lengths=batch.lengths, tokens=token_a)

    def _tokens(self, batch: Batch) -> Tensor:
        """(U,) log-probs. A batch of the single layout is scored as such whatever the layout of the others."""
        if batch.singles:
            return _single(self.model, batch)
        if self.compiled is None:
            return self._together(batch, tree_attention)
        with self.compiled.enabled():
            return self._together(batch, self.compiled.attention)

    def _together(self, batch: Batch, attention: Attention) -> Tensor:
        return _plain(self.model, batch) if self.layout == "plain" else _from_states(self.model, batch, attention)


def _cast_batch(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its model inputs in the dtype of the computation."""
    vision = batch.vision and replace(batch.vision, inputs=cast_inputs(batch.vision.inputs, dtype))
    return replace(
        batch, inputs=cast_inputs(batch.inputs, dtype), vision=vision, singles=tuple(cast_inputs(one, dtype) for one in batch.singles)
    )


def cast_inputs(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Model inputs with all floats in `dtype`."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _from_states(model: Any, batch: Batch, attention: Attention) -> Tensor:
    """(U,) log-probs; the head runs only at positions that predict a response token."""
    with windows_grouped(model):
        states_ud = _states(model, batch, attention)[batch.row, batch.position]
    return token_logps(model.get_output_embeddings(), logit_scaling(model), states_ud, batch.target)


def _states(model: Any, batch: Batch, attention: Attention) -> Tensor:
    """(rows, L, D) last hidden states."""
    if batch.attention_plan is not None:
        known = {} if batch.features is None else {"mm_encoder_outputs": {"image": batch.features}}
        with tree_attention_enabled(model, attention):
            states: Tensor = model.base_model(
                **batch.inputs, **known, attention_plan=batch.attention_plan, use_cache=False
            ).last_hidden_state
        return states
    vision = {} if batch.vision is None else {"mm_encoder_outputs": {"image": _features(model, batch.vision, batch.features)}}
    states = model.base_model(**batch.inputs, **vision, use_cache=False).last_hidden_state
    return states


def _plain(model: Any, batch: Batch) -> Tensor:
    """(U,) log-probs from the model's own logits."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits[batch.row, batch.position]
    return -F.cross_entropy(logits.float(), batch.target, reduction="none")


def _single(model: Any, batch: Batch) -> Tensor:
    """(U,) log-probs from the model's own logits, one forward pass per response."""
    logits = []
    for number, inputs in enumerate(batch.singles):
        logits.append(model(**inputs, use_cache=False).logits[0, batch.position[batch.row == number]])
    return -F.cross_entropy(torch.cat(logits).float(), batch.target, reduction="none")


def _features(model: Any, vision: VisionInputs, known: Any | None) -> Any:
    """Vision features, computed once per image and repeated for each row of its group. Raises ValueError for an unknown format."""
    output = model.base_model.get_image_features(**vision.inputs, return_dict=True) if known is None else copy(known)
    features = output.pooler_output
    counts = vision.tiles if isinstance(features, Tensor) else vision.images
    if len(features) != sum(counts):
        raise ValueError(f"{len(features)} vision features for {sum(counts)} images")
    first = [sum(counts[:group]) for group in range(len(counts))]
    wanted = [first[group] + number for group in vision.rows for number in range(counts[group])]
    if isinstance(features, Tensor):
        output.pooler_output = features[torch.tensor(wanted, device=features.device)]
    else:
        output.pooler_output = tuple(features[number] for number in wanted)
        if getattr(output, "deepstack_features", None) is not None:
            # One list per depth, with one tensor per image.
            output.deepstack_features = [tuple(depth[number] for number in wanted) for depth in output.deepstack_features]
    return output
