"""Cache of the features of a frozen vision tower, computed once per question and reused in later epochs.

Keyed by image digests and pixel settings. Entries are never evicted: every question occurs once per epoch, so an LRU cache that is too
small would never hit. Features stay in the format of their family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixpo.recipe import ImageTable
from mixpo.train.batch import Batch, Chunk, Layout
from mixpo.train.collate import collate, pixel_inputs
from mixpo.train.compute_weights import compute_weights
from mixpo.train.layout_check import TOLERANCE
from mixpo.train.logps import Scorer, cast_inputs
from mixpo.train.vision_attention import windows_grouped
from mixpo.types import Group
from mixpo.vlm.families import MODEL_ERRORS, described
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

MAX_BYTES = 4 * 2**30
"""Size limit of the cache, on the model's device; entries are never evicted."""


class VisionCache:
    """Vision features of one training. hits, misses: lookups by question. size: bytes."""

    def __init__(
        self, vlm: Vlm, images: ImageTable, prompt_of: Callable[[Group], EncodedPrompt], precision: torch.dtype, max_bytes: int = MAX_BYTES
    ) -> None:
        self.vlm = vlm
        self.images = images
        self.prompt_of = prompt_of
        self.precision = precision
        self.max_bytes = max_bytes
        self.hits = self.misses = self.size = 0
        self._entries: dict[tuple[str, ...], Any] = {}

    def __str__(self) -> str:
        return f"vision features: {self.hits:,} taken from memory, {self.misses:,} computed, {self.size / 2**20:,.0f} MiB kept"

    def fill(self, batch: Batch, chunks: Sequence[Chunk]) -> Batch:
        """The batch with the features of its images in place of their pixels. chunks: of the batch, in order."""
        features = [self._get(chunk.group) for chunk in chunks if chunk.group.question.images]
        if not features:
            return batch
        pixel_names = {name for chunk in chunks for name in self.prompt_of(chunk.group).features}
        inputs = {name: value for name, value in batch.inputs.items() if name not in pixel_names}
        return replace(batch, inputs=inputs, features=_join(features))

    def _get(self, group: Group) -> Any:
        limits = self.images.of(group.question)
        key = (limits.model_dump_json(), *(image.digest for image in group.question.images))
        if key in self._entries:
            self.hits += 1
            return self._entries[key]
        self.misses += 1
        output = self._compute(group)
        size = _bytes(output)
        if self.size + size <= self.max_bytes:
            self._entries[key] = output
            self.size += size
        return output

    @torch.no_grad()
    def _compute(self, group: Group) -> Any:
        inputs = {name: value.to(self.vlm.device) for name, value in pixel_inputs(self.vlm, [self.prompt_of(group)]).items()}
        with compute_weights(self.vlm.model, self.precision), windows_grouped(self.vlm.model):
            features = self.vlm.model.base_model.get_image_features
            output = features(**cast_inputs(inputs, self.precision), return_dict=True)
        # Hidden states of the vision layers are not needed.
        for name in [name for name in output if name not in ("pooler_output", "deepstack_features")]:
            output[name] = None
        return output


def open_vision_cache(
    vlm: Vlm,
    images: ImageTable,
    prompt_of: Callable[[Group], EncodedPrompt],
    layout: Layout,
    precision: torch.dtype,
    sample: Sequence[Chunk],
) -> tuple[VisionCache | None, str]:
    """The cache for this layout, or None where cached features would change log-probs; and a sentence for the log."""
    vision_cache = VisionCache(vlm, images, prompt_of, precision)
    reason = f"the {layout} layout computes them in every row" if layout in ("plain", "single") else _problem(vision_cache, layout, sample)
    if reason:
        return None, f"vision features are not kept: {reason}"
    return VisionCache(vlm, images, prompt_of, precision), f"vision features are kept, up to {MAX_BYTES / 2**30:.0f} GiB"


@torch.no_grad()
def _problem(vision_cache: VisionCache, layout: Layout, sample: Sequence[Chunk]) -> str:
    """Why cached features cannot be used with this model; "" if they can."""
    scorer = Scorer(vision_cache.vlm.model, layout, vision_cache.precision)
    batch = collate(vision_cache.vlm, sample, vision_cache.prompt_of, layout)
    expected = scorer(batch)
    try:
        actual = scorer(vision_cache.fill(batch, sample))
    except MODEL_ERRORS as error:
        return f"handing them in fails with {described(error)}"
    gap = float(((actual.sums - expected.sums).abs() / expected.lengths).max())
    return "" if gap <= TOLERANCE[vision_cache.precision] else f"handing them in would change log-probs by {gap:.2g} per token"


def _join(outputs: Sequence[Any]) -> Any:
    """Concatenate outputs of the vision tower: tensors along tiles, sequences with one entry per image."""
    joined = copy(outputs[0])
    joined.pooler_output = _concat([output.pooler_output for output in outputs])
    if getattr(joined, "deepstack_features", None) is not None:
        depths = zip(*(output.deepstack_features for output in outputs), strict=True)
        joined.deepstack_features = [_concat(list(depth)) for depth in depths]
    return joined


def _concat(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(tensor for part in parts for tensor in part)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(part) for part in value.values())
    return sum(_bytes(part) for part in value) if isinstance(value, (list, tuple)) else 0
