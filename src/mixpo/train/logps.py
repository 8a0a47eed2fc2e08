"""Log-probabilities of responses under a model: the one forward pass that scoring and training share.

R responses, A predicted tokens, L tokens of the longest row, D width, V vocabulary, T tiles or images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixpo.train.batch import Batch, Piece, Vision, collate
from mixpo.train.losses import ResponseLogps
from mixpo.types import Group
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt


@dataclass(frozen=True, slots=True)
class Layout:
    """How the forward pass is laid out.

    shared: vision features once for each question, and the output head only where a response token is predicted. The
    alternative is exact for every model: pixels in every row, and all logits.
    """

    shared: bool


class Scorer(nn.Module):
    """The model with log-probs as its output, so that whoever wraps it (for ranks, for mixed precision) wraps all of the work."""

    def __init__(self, model: nn.Module, layout: Layout, precision: torch.dtype = torch.float32) -> None:
        """precision: what matrices are multiplied in; weights are float32 either way (see `master_weights`)."""
        super().__init__()
        self.model: Any = model
        self.layout = layout
        self.precision = precision

    def forward(self, batch: Batch) -> ResponseLogps:
        """Sum over the tokens of each response, in float32 whatever the model computes in."""
        with torch.autocast(batch.target.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            logits_av = (_predictions if self.layout.shared else _all_predictions)(self.model, batch)
        token_a = -F.cross_entropy(logits_av.float(), batch.target, reduction="none")
        sums = torch.zeros(len(batch.lengths), device=token_a.device).index_add(0, batch.owner, token_a)
        return ResponseLogps(sums=sums, lengths=batch.lengths)


def _predictions(model: Any, batch: Batch) -> Tensor:
    """(A, V) logits, from the states of the positions that predict a response token and no others."""
    vision = {} if batch.vision is None else {"mm_encoder_outputs": {"image": _features(model, batch.vision)}}
    hidden_rld = model.base_model(**batch.inputs, **vision, use_cache=False).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden_rld[batch.row, batch.at])
    return logits


def _all_predictions(model: Any, batch: Batch) -> Tensor:
    """(A, V) logits, the plain way: whatever the model does after its head is in them."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits[batch.row, batch.at]
    return logits


def _features(model: Any, vision: Vision) -> Any:
    """Vision features of every image once, handed to each row of its group. Raises ValueError for an unknown form."""
    output = model.base_model.get_image_features(**vision.inputs, return_dict=True)
    if getattr(output, "deepstack_features", None) is not None:
        raise ValueError("features of several depths")
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
    return output


# --- which layout ------------------------------------------------------------------------------------------------------

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""How far a response's mean log-prob per token may be from the plain layout's. A wrong layout is off by far more than 0.1."""


def choose_layout(
    vlm: Vlm, sample: Sequence[Piece], prompt_of: Callable[[Group], EncodedPrompt], precision: torch.dtype
) -> tuple[Layout, str]:
    """Compare the shared layout with the plain one on real rows, and take the plain one, saying why, where it differs.

    sample: a few pieces, best with images. Returns the layout and a sentence, empty when the shared layout is used.
    """
    plain = _score(vlm, sample, prompt_of, Layout(shared=False), precision)
    try:
        shared = _score(vlm, sample, prompt_of, Layout(shared=True), precision)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # Whatever a foreign architecture raises here only means that it is not laid out like the ones that we know.
        return Layout(shared=False), f"every response gets its own image pass: {type(error).__name__}: {error}"
    gap = float(((shared.sums - plain.sums).abs() / plain.lengths).max())
    if gap <= TOLERANCE[precision]:
        return Layout(shared=True), ""
    return Layout(shared=False), f"every response gets its own image pass: sharing it would change log-probs by {gap:.2g} per token"


@torch.no_grad()
def _score(
    vlm: Vlm, sample: Sequence[Piece], prompt_of: Callable[[Group], EncodedPrompt], layout: Layout, precision: torch.dtype
) -> ResponseLogps:
    scores: ResponseLogps = Scorer(vlm.model, layout, precision)(collate(vlm, sample, prompt_of, layout.shared))
    return scores


def sample_of(pieces: Sequence[Piece]) -> list[Piece]:
    """Up to two pieces, of two responses each, for the check of the layout: one with the most images, one with the fewest."""
    ordered = sorted(pieces, key=lambda piece: -len(piece.group.question.images))
    chosen = [ordered[0], *(piece for piece in ordered[-1:] if piece.group.question.id != ordered[0].group.question.id)]
    return [Piece(piece.group, piece.responses[:2], ()) for piece in chosen]
