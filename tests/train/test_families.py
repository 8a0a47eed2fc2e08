"""Every family of models, in float32: the packed row against one sequence at a time, parameter by parameter."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train.architectures import FAMILIES, HYBRIDS, Family, prompt, vlm
from transformers import InternVLModel

from mixpo.train.batch import Piece
from mixpo.train.collate import collate
from mixpo.train.layout import choose_layout
from mixpo.train.logps import Scorer
from mixpo.train.model import checkpoint_activations
from mixpo.types import Group, ImageRef, Question
from mixpo.vlm.families import Sight, answer_type, why_not_packed
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

NAMES = list(FAMILIES)


class Data:
    """Groups with 1, 0, 3 and 2 images and 3, 2, 4 and 1 responses, of different lengths, and their prompts."""

    def __init__(self, family: Family, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.prompts: dict[str, EncodedPrompt] = {}
        self.pieces: list[Piece] = []
        images = (1, 0, 3, 2) if family.picture else (0, 0, 0, 0)
        images = (1, 1, 3, 2) if family.whole_prompt else images
        for number, (count, responses) in enumerate(zip(images, (3, 2, 4, 1), strict=True)):
            self.prompts[f"q{number}"] = prompt(family, rng, count)
            lengths = torch.randint(1, 9, (responses,), generator=rng).tolist()
            tails = tuple(tuple(torch.randint(10, 128, (length,), generator=rng).tolist()) for length in lengths)
            refs = tuple(ImageRef(path="", digest=f"{number}-{place}") for place in range(count))
            asked = Question(id=f"q{number}", text="", images=refs)
            group = Group(question=asked, prompt="", responses=tails, pairs=())
            self.pieces.append(Piece(group, tuple(range(responses)), ()))

    def get(self, group: Group) -> EncodedPrompt:
        return self.prompts[group.question.id]

    @property
    def factors(self) -> torch.Tensor:
        return torch.linspace(-1, 2, sum(len(piece.responses) for piece in self.pieces))


def naive(model: Any, one: EncodedPrompt, answer: tuple[int, ...]) -> torch.Tensor:
    """log pi(answer | prompt): the model alone decides about masks and positions."""
    tail = torch.tensor(answer)
    kinds = {
        name: torch.cat([value, torch.full_like(tail, answer_type(model) if name == "token_type_ids" else 0)])[None]
        for name, value in one.token_types.items()
    }
    logits = model(input_ids=torch.cat([one.ids, tail])[None], **one.features, **kinds).logits[0]
    total: torch.Tensor = logits[len(one.ids) - 1 : -1].log_softmax(-1)[torch.arange(len(tail)), tail].sum(dtype=torch.float64)
    return total


def slow(model: Any, data: Data) -> torch.Tensor:
    return torch.stack([naive(model, data.get(piece.group), answer) for piece in data.pieces for answer in piece.group.responses])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    noise = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        # Exactly zero gradients (a bias before a softmax) are rounding noise in both.
        gap = float((found[name] - gradient).norm())
        assert gap <= (1e-4 * float(gradient.norm()) if float(gradient.norm()) > noise else 2 * noise), name


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest) -> tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]:
    """A family's model, data, and the log-probs and gradients of the slow way."""
    family = FAMILIES[request.param]
    model, data = vlm(family), Data(family)
    expected = slow(model.model, data)
    (expected * data.factors).sum().backward()
    return model, data, expected.detach(), gradients(model.model)


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_is_one_at_a_time(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], recompute: bool) -> None:
    one, data, expected, expected_gradients = made
    if recompute:
        one = replace(one, model=copy.deepcopy(one.model))
        checkpoint_activations(one.model.train(), on=True)
    had = one.model.config.get_text_config()._attn_implementation
    found = Scorer(one.model, "tree")(collate(one, data.pieces, data.get, "tree")).sums
    assert one.model.config.get_text_config()._attn_implementation == had
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_padded_rows_are_one_at_a_time(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """The exact way for every model, which the others are measured against."""
    one, data, expected, _ = made
    with torch.no_grad():
        found = Scorer(one.model, "plain")(collate(one, data.pieces, data.get, "plain")).sums
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("mm_encoder_outputs" not in inspect.signature(InternVLModel.forward).parameters, reason="an older transformers")
def test_images_once_in_padded_rows(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """The second choice: exact, with gradients, wherever features of an image can be told apart; refused elsewhere."""
    one, data, expected, expected_gradients = made
    try:
        found = Scorer(one.model, "shared")(collate(one, data.pieces, data.get, "shared")).sums
    except (AttributeError, TypeError, ValueError):
        assert one.model.config.model_type in ("smolvlm", "idefics3", "llava_onevision")
        return
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_the_check_chooses_packing(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    one, data, _, _ = made
    assert choose_layout(one, data.pieces[:3], data.get, torch.float32)[0] == "tree"


def test_order_and_siblings_change_nothing(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Permuted groups and responses; and each response alone with its prompt."""
    one, data, expected, _ = made
    by_id = dict(zip([(p.group.question.id, r) for p in data.pieces for r in p.responses], expected, strict=True))
    moved = [piece._replace(responses=piece.responses[::-1]) for piece in data.pieces[::-1]]
    alone = [piece._replace(responses=(response,)) for piece in data.pieces for response in piece.responses]
    for pieces in (moved, alone):
        with torch.no_grad():
            found = Scorer(one.model, "tree")(collate(one, pieces, data.get, "tree")).sums
        wanted = torch.stack([by_id[piece.group.question.id, response] for piece in pieces for response in piece.responses])
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_images_reach_their_own_prompt(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Other pixels in one prompt change its responses and no others."""
    one, data, expected, _ = made
    first = data.prompts["q2"]
    if not first.features:
        pytest.skip("a model without images")
    pixels = first.features["pixel_values"].flip(-1)
    other = {**data.prompts, "q2": replace(first, features={**first.features, "pixel_values": pixels})}
    with torch.no_grad():
        found = Scorer(one.model, "tree")(collate(one, data.pieces, lambda group: other[group.question.id], "tree")).sums
    changed = (found - expected).abs() > 1e-3
    assert changed.tolist() == [False] * 5 + [True] * 4 + [False]


def test_bfloat16_is_as_near_as_the_plain_way(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    one, data, expected, _ = made
    errors = []
    for layout in ("tree", "plain"):
        with torch.no_grad():
            found = Scorer(one.model, layout, torch.bfloat16)(collate(one, data.pieces, data.get, layout))
        assert found.sums.dtype == torch.float64
        errors.append(float(((found.sums - expected).abs() / found.lengths).mean()))
    assert errors[0] <= 2 * errors[1] + 0.01


@pytest.mark.parametrize("name", list(HYBRIDS))
def test_hybrids_fall_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """State that runs from one response into the next: told by the configuration, and noticed without it too."""
    one, data = vlm(HYBRIDS[name]), Data(HYBRIDS[name])
    layout, note = choose_layout(one, data.pieces[:3], data.get, torch.float32)
    assert layout != "tree"
    assert "layer 0 is" in note
    with torch.no_grad():
        found = Scorer(one.model, layout)(collate(one, data.pieces, data.get, layout)).sums
        assert torch.allclose(found, slow(one.model, data), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("mixpo.train.layout.why_not_packed", lambda _: "")
    layout, note = choose_layout(one, data.pieces[:3], data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


@pytest.mark.parametrize(("name", "rule"), [("gemma3", Sight()), ("paligemma", Sight()), ("gemma3", Sight("prompt"))])
def test_a_wrong_rule_is_noticed(name: str, rule: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    monkeypatch.setattr("mixpo.train.collate.sight_of", lambda _: rule)
    layout, note = choose_layout(one, data.pieces, data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


def test_what_is_known_against_packing() -> None:
    def model(**text: Any) -> Any:
        config = SimpleNamespace(model_type="some", get_text_config=lambda: SimpleNamespace(**text))
        return SimpleNamespace(config=config)

    assert why_not_packed(model(layer_types=["full_attention", "sliding_attention"])) == ""
    assert "layer 1 is chunked attention" in why_not_packed(model(layer_types=["full_attention", "chunked_attention"]))
    assert "cross-attention" in why_not_packed(model(cross_attention_layers=[3]))
    assert "soft-capped" in why_not_packed(model(attn_logit_softcapping=50.0))
    assert "cannot be exchanged" in why_not_packed(SimpleNamespace(config=model().config, _supports_attention_backend=False))
