"""Gradient agreement: the estimates against simulated batches, the sketch against whole gradients, the gradients against DPO by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from failures import fails
from train.cases import fresh, group, groups

from mixpo.errors import TrainError
from mixpo.progress import Silent
from mixpo.recipe import ImageTable, TrainTable
from mixpo.train import gradients
from mixpo.train.batch import make_chunk
from mixpo.train.collate import collate
from mixpo.train.gradients import ALL, FEWEST, WIDTH, Sketch, agreement, gradient_agreement, pairs_by_kind
from mixpo.train.logps import Scorer
from mixpo.train.prompt_cache import PromptCache
from mixpo.types import Group, Origin
from mixpo.vlm.load import Vlm

TABLE = TrainTable(batch_size=8, tokens_per_batch=200)


def rows(n: int, signal: float, noise: float, seed: int, dimensions: int = 2000) -> np.ndarray:
    """n vectors around one of length sqrt(signal), at an expected squared distance `noise` from it."""
    rng = np.random.default_rng(seed)
    centre = np.zeros(dimensions)
    centre[0] = np.sqrt(signal)
    return centre + rng.normal(0, np.sqrt(noise / dimensions), (n, dimensions))


def measured(vectors: np.ndarray, batch: int, whole: np.ndarray | None = None, pairs: int = 1) -> gradients.GradientAgreement:
    by_question = dict(enumerate(vectors))
    return agreement("kind", by_question, dict.fromkeys(by_question, pairs), dict(enumerate(vectors if whole is None else whole)), batch)


@pytest.mark.parametrize(("signal", "noise", "batch"), [(1.0, 4.0, 16), (1.0, 60.0, 16), (0.2, 40.0, 64)])
def test_the_expected_cosine_is_that_of_simulated_batches(signal: float, noise: float, batch: int) -> None:
    drawn = rows(2 * batch * 60, signal, noise, seed=1).reshape(60, 2, batch, -1).mean(2)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in drawn]
    found = measured(rows(400, signal, noise, seed=2), batch)
    assert found.agreement == pytest.approx(np.mean(cosines), abs=0.05)
    assert found.noise_scale == pytest.approx(noise / signal, rel=0.35)


def test_intervals_cover_the_true_cosine() -> None:
    true = 1.0 / (1.0 + 30.0 / 16)
    found = [measured(rows(60, 1.0, 30.0, seed), 16) for seed in range(100)]
    covered = sum((one.low or 0) <= true <= (one.high or 0) for one in found)
    assert covered >= 90


def test_noise_alone_is_no_agreement() -> None:
    """Two halves of few long vectors always have some cosine; without a common direction the estimate is near 0."""
    found = [measured(rows(30, 0.0, 1.0, seed), 64) for seed in range(30)]
    assert np.mean([one.agreement or 0 for one in found]) < 0.35
    assert sum(one.low == 0 for one in found) >= 28


def test_pairs_per_question_change_the_unit_not_the_direction() -> None:
    vectors = rows(100, 1.0, 20.0, seed=3)
    one, four = measured(vectors, 16), measured(4 * vectors, 64, pairs=4)
    assert (one.noise_scale, one.agreement) == pytest.approx((four.noise_scale / 4 if four.noise_scale else 0, four.agreement))


def test_direction_compares_with_all_pairs() -> None:
    vectors = rows(200, 1.0, 1.0, seed=4)
    assert measured(vectors, 16).direction == pytest.approx(1)
    assert measured(-vectors, 16, whole=vectors).direction == pytest.approx(-1)
    across = np.roll(vectors, 1, axis=1)
    assert abs(measured(across, 16, whole=vectors).direction or 0) < 0.1


def test_few_questions_are_no_estimate() -> None:
    found = measured(rows(FEWEST - 1, 1.0, 1.0, seed=5), 16)
    assert (found.agreement, found.low, found.noise_scale, found.direction) == (None, None, None, None)
    assert (found.pairs, found.questions) == (FEWEST - 1, FEWEST - 1)


def test_a_sketch_keeps_inner_products() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 128, bias=False))
    frozen = model[0].bias
    assert frozen is not None
    frozen.requires_grad_(False)
    sketch, exact, kept = Sketch(model), [], []
    common = [torch.randn_like(value) for value in model.parameters()]
    for _ in range(4):
        for value, shared in zip(model.parameters(), common, strict=True):
            value.grad = (torch.randn_like(value) + shared) if value.requires_grad else None
        exact.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]).double().numpy())
        kept.append(sketch.of_gradients())
    exact_gram, gram = (np.stack(side) @ np.stack(side).T for side in (exact, kept))
    scale = np.sqrt(np.outer(exact_gram.diagonal(), exact_gram.diagonal()))
    assert np.abs((gram - exact_gram) / scale).max() < 4 / np.sqrt(WIDTH)


def by_hand(vlm: Vlm, one: Group, pairs: list[tuple[int, int]], sketch: Sketch) -> np.ndarray:
    """The gradient of 0.8 DPO + 0.2 BCO with beta 0.1 where policy = reference: every sigmoid is 1/2."""
    vlm.model.zero_grad()
    prompts = PromptCache(vlm, ImageTable())
    for pair in pairs:
        chunk = make_chunk(one, [pair])
        logps = Scorer(vlm.model, "single")(collate(vlm, [chunk], prompts.get, "single")).sums
        chosen, rejected = (logps[chunk.responses.index(side)] for side in pair)
        (-0.1 * (0.8 * 0.5 + 0.2 * 0.5) * (chosen - rejected)).backward()
    return sketch.of_gradients()


def test_gradients_are_those_of_the_terms_that_compare(tiny_vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origins: tuple[Origin, ...] = ("correctness", "dropout_ntp", "correctness")
    found = [replace(one, origins=origins[: len(one.pairs)]) for one in groups(tiny_vlm, tmp_path)]
    seen: dict[str, dict[int, np.ndarray]] = {}
    real = gradients.agreement

    def spy(kind: str, vectors: dict[int, np.ndarray], *rest: object) -> gradients.GradientAgreement:
        seen[kind] = vectors
        return real(kind, vectors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gradients, "agreement", spy)
    vlm = fresh(tiny_vlm)
    kinds = gradient_agreement(vlm, found, TABLE, ImageTable(), "mpo", 0, Silent())
    assert kinds[0].kind == ALL
    assert kinds[0].pairs == sum(len(one.pairs) for one in found)
    assert sum(kind.pairs for kind in kinds if kind.kind in ("correctness", "dropout_ntp")) == kinds[0].pairs
    sketch = Sketch(vlm.model)
    for number in (1, 2):
        one = found[number]
        expected = by_hand(vlm, one, list(one.pairs), sketch)
        assert np.abs(seen[ALL][number] - expected).max() < 1e-4 * np.abs(expected).max()
        dropout = [pair for pair, origin in zip(one.pairs, one.origins, strict=True) if origin == "dropout_ntp"]
        expected = by_hand(vlm, one, dropout, sketch)
        assert np.abs(seen["dropout_ntp"][number] - expected).max() < 1e-4 * np.abs(expected).max()
    assert all(value.grad is None or not value.grad.any() for value in fresh(tiny_vlm).model.parameters())


def test_pairs_belong_to_their_origin_and_to_the_similarity_of_both_sides(tiny_vlm: Vlm, tmp_path: Path) -> None:
    one = replace(
        group(tiny_vlm, tmp_path, 1),
        responses=((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 7), (1, 2, 3, 8, 9, 10), (11, 12, 13, 14, 15, 16)),
        pairs=((0, 1), (0, 2), (0, 3)),
        origins=("correctness", "correctness", "branch"),
    )
    assert pairs_by_kind(one) == {
        ("correctness", "correctness: similar sides"): [(0, 1)],
        ("correctness", "correctness: partly similar sides"): [(0, 2)],
        ("branch", "branch: different sides"): [(0, 3)],
    }


def test_an_objective_that_compares_nothing_is_refused(tiny_vlm: Vlm, tmp_path: Path) -> None:
    with fails("objective-without-comparison", TrainError, key="train.objective"):
        gradient_agreement(fresh(tiny_vlm), groups(tiny_vlm, tmp_path), TABLE, ImageTable(), "sft", 0, Silent())


def test_gradients_that_are_not_finite_are_refused(tiny_vlm: Vlm) -> None:
    vlm = fresh(tiny_vlm)
    next(iter(vlm.model.parameters())).grad = torch.full_like(next(iter(vlm.model.parameters())), torch.nan)
    with fails("gradient-not-finite", TrainError):
        Sketch(vlm.model).of_gradients()
