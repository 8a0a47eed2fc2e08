"""Gradient agreement: how far the pairs of a data set pull the model in one direction. Measured at the reference policy.

x is the gradient of one question's pairs, mu its mean over questions. The mean gradient of a batch of m questions is mu plus noise, and
two such batches agree with an expected cosine of

    S / (S + N / m),  S = |mu|^2,  N = E |x - mu|^2

N / S is the simple noise scale of McCandlish et al. (arXiv 1812.06162): the batch in which the noise is as large as the gradient itself.
S and N are estimated without bias from products of different questions, so that few questions do not look like agreement.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from scipy.special import stdtrit
from torch import Tensor, nn

from mixpo.errors import TrainError
from mixpo.progress import Progress
from mixpo.recipe import ImageTable, TrainTable
from mixpo.train.adapters import prepare_trainable
from mixpo.train.batch import Chunk, make_chunk, micro_batches
from mixpo.train.collate import collate, on_device
from mixpo.train.layout_check import check_sample, choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.losses import LossWeights, ResponseLogps, combine, loss_weights
from mixpo.train.model import compute_dtype, refuse_dropout
from mixpo.train.prompt_cache import PromptCache
from mixpo.types import Group, seed_of
from mixpo.vlm.load import Vlm

WIDTH = 16_381
"""Numbers that a gradient is reduced to; a prime, so that it divides no row of a weight. A cosine is kept to about 1 / sqrt(WIDTH)."""
BANDS = ((1 / 3, "different sides"), (2 / 3, "partly similar sides"), (math.inf, "similar sides"))
"""Kinds of pairs by the edit similarity of the tokens of both sides, each below its limit."""
ALL = "all pairs"
FEWEST = 8
"""Questions from which S and N can be estimated."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAgreement:
    """The gradients of one kind of pair.

    agreement: expected cosine between the gradients of two batches of `train.batch_size` pairs, low and high its 95 % interval.
    noise_scale: pairs in a batch whose noise is as large as its gradient; None where no common direction was found.
    direction: cosine between the mean gradient of the kind and that of all pairs; None where one of them was not found.
    All four are None for fewer than FEWEST questions.
    """

    kind: str
    pairs: int
    questions: int
    agreement: float | None = None
    low: float | None = None
    high: float | None = None
    noise_scale: float | None = None
    direction: float | None = None


def gradient_agreement(
    vlm: Vlm, groups: Sequence[Group], table: TrainTable, images: ImageTable, objective: str, seed: int, progress: Progress
) -> list[GradientAgreement]:
    """The agreement of all pairs of `groups`, and of each kind of pair. Takes the memory of training without an optimizer.

    Of the objective, the terms that compare with the reference (preference and quality) are measured: the generation term depends on
    chosen responses alone. Raises TrainError for an objective without such a term.
    """
    weights = replace(loss_weights(objective, table.loss), generation=0.0, hold=0.0)
    if not weights.preference and not weights.quality:
        raise TrainError(
            f"train.objective: {objective} has no term that compares responses; measure the gradients of another, such as mpo",
            code="objective-without-comparison",
            key="train.objective",
        )
    prompts = PromptCache(vlm, images)
    refuse_dropout(vlm.model)
    sample = check_sample(groups)
    _, dtypes = prepare_trainable(vlm, table, seed, prompts.sample(groups))
    scorer = Scorer(vlm.model, "single", compute_dtype(dtypes))
    scorer.layout, note = choose_layout(vlm, sample, prompts.get, scorer.precision, gradients=True)
    progress.say(f"gradients: {note}")
    sketch = Sketch(vlm.model)
    vectors: dict[str, dict[int, Floats]] = defaultdict(dict)
    counts: dict[str, dict[int, int]] = defaultdict(Counter)
    progress.start("gradients", len(groups), "questions")
    for number, group in enumerate(groups):
        for kinds, pairs in pairs_by_kind(group).items():
            chunks = micro_batches([make_chunk(group, pairs)], prompts.length, table.tokens_per_batch, scorer.layout)
            vector = _gradient(vlm, scorer, sketch, chunks, prompts, weights, table.loss.beta)
            for kind in (ALL, *kinds):
                vectors[kind][number] = vectors[kind].get(number, 0.0) + vector
                counts[kind][number] += len(pairs)
        progress.advance(1)
    progress.finish()
    whole = vectors.get(ALL, {})
    return [agreement(kind, of_kind, counts[kind], whole, table.batch_size) for kind, of_kind in sorted(vectors.items(), key=_order)]


def _order(item: tuple[str, dict[int, Floats]]) -> tuple[bool, str]:
    return item[0] != ALL, item[0]


def pairs_by_kind(group: Group) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """The pairs of a group by the kinds that they belong to: the origin, and the origin with the similarity of both sides."""
    parts: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for place, (chosen, rejected) in enumerate(group.pairs):
        origin = group.origins[place] if group.origins else "unknown"
        similarity = Levenshtein.normalized_similarity(group.responses[chosen], group.responses[rejected])
        band = next(name for limit, name in BANDS if similarity < limit)
        parts.setdefault((origin, f"{origin}: {band}"), []).append((chosen, rejected))
    return parts


def _gradient(
    vlm: Vlm, scorer: Scorer, sketch: Sketch, chunks: Sequence[Sequence[Chunk]], prompts: PromptCache, weights: LossWeights, beta: float
) -> Floats:
    """Sketch of the gradient of the summed loss of these pairs, where the policy is the reference."""
    vlm.model.zero_grad(set_to_none=True)
    for part in chunks:
        batch = on_device(collate(vlm, part, prompts.get, scorer.layout), vlm.device)
        logps: ResponseLogps = scorer(batch)
        terms = combine(weights, beta, logps, logps.sums.detach(), batch.chosen, batch.rejected, delta=0.0)
        terms.total.sum().backward()  # type: ignore[no-untyped-call]
    vector = sketch.of_gradients()
    vlm.model.zero_grad(set_to_none=True)
    return vector


class Sketch:
    """Count sketch of a model's gradients (Charikar et al. 2002): WIDTH numbers whose inner products estimate those of the gradients.

    Each weight has a random sign, fixed by its name; weight i of all adds to number i mod WIDTH. Keeps one byte per trained weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = [(value, _signs(name, value)) for name, value in model.named_parameters() if value.requires_grad]

    def of_gradients(self) -> Floats:
        """(WIDTH,) of the gradients that the weights hold now. Raises TrainError where one is not finite."""
        total, start = np.zeros(WIDTH), 0
        for value, signs in self.weights:
            if value.grad is not None:
                signed = value.grad.detach().flatten().float() * signs
                padded = torch.nn.functional.pad(signed, (0, -signed.numel() % WIDTH))
                total += np.roll(padded.view(-1, WIDTH).sum(0, dtype=torch.float32).double().cpu().numpy(), start)
            start = (start + value.numel()) % WIDTH
        if not np.isfinite(total).all():
            raise TrainError(
                'a gradient is not finite; set model.dtype = "float32" or "bfloat16", or check the weights', code="gradient-not-finite"
            )
        return total


def _signs(name: str, value: Tensor) -> Tensor:
    """(numel,) int8 of -1 and 1."""
    generator = torch.Generator().manual_seed(seed_of(name))
    return (torch.randint(0, 2, (value.numel(),), generator=generator, dtype=torch.int8) * 2 - 1).to(value.device)


# --- statistics ----------------------------------------------------------------------------------------------------------


def agreement(
    kind: str, vectors: dict[int, Floats], counts: dict[int, int], whole: dict[int, Floats], batch_size: int
) -> GradientAgreement:
    """The agreement of one kind. vectors: summed gradient of each question. counts: its pairs. whole: of all pairs of each question."""
    pairs, n = sum(counts.values()), len(vectors)
    if n < FEWEST:
        return GradientAgreement(kind=kind, pairs=pairs, questions=n)
    per_question = pairs / n
    batch = max(1.0, batch_size / per_question)
    rows = np.stack([*vectors.values()]) / per_question
    total = rows.sum(0)
    own = (rows * rows).sum(1)
    signal, noise = _signal_and_noise(total @ total, own.sum(), n)
    value = _cosine(signal, noise, batch)
    # Jackknife: the same without each question in turn.
    without = _cosine(*_signal_and_noise(total @ total - 2 * rows @ total + own, own.sum() - own, n - 1), batch)
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return GradientAgreement(
        kind=kind,
        pairs=pairs,
        questions=n,
        agreement=float(value),
        low=max(0.0, float(value) - half),
        high=min(1.0, float(value) + half),
        noise_scale=float(noise / signal) * per_question if signal > 0 else None,
        direction=_direction(vectors, whole),
    )


def _signal_and_noise(square_of_sum: Floats, sum_of_squares: Floats, n: int) -> tuple[Floats, Floats]:
    """Estimates of S and N from n questions; a negative one is 0."""
    signal = np.maximum(0.0, (square_of_sum - sum_of_squares) / (n * (n - 1)))
    return signal, np.maximum(0.0, sum_of_squares / n - signal)


def _cosine(signal: Floats, noise: Floats, batch: float) -> Floats:
    """S / (S + N / batch), 0 where both are 0."""
    return signal / np.maximum(signal + noise / batch, np.finfo(float).tiny)


def _direction(vectors: dict[int, Floats], whole: dict[int, Floats]) -> float | None:
    """Cosine between the mean of a kind and that of all pairs, from products of different questions only."""
    second = np.stack([*whole.values()])
    first = np.stack([vectors.get(number, np.zeros_like(row)) for number, row in whole.items()])
    product, left, right = (_cross(a, b) for a, b in ((first, second), (first, first), (second, second)))
    return max(-1.0, min(1.0, product / math.sqrt(left * right))) if left > 0 and right > 0 else None


def _cross(first: Floats, second: Floats) -> float:
    return float(first.sum(0) @ second.sum(0) - (first * second).sum())
