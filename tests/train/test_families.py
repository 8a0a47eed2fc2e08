"""Every family of models, in float32: the packed row against one sequence at a time, parameter by parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from train.architectures import FAMILIES, HYBRIDS, Family, prompt, vlm
from train.kernels import slow_varlen
from transformers import InternVLModel

from mixpo.train.batch import Piece, size_of
from mixpo.train.collate import collate
from mixpo.train.layout import TOLERANCE, _no_kernel, choose_layout, sample_of
from mixpo.train.logps import Scorer
from mixpo.train.losses import Weights, combine
from mixpo.train.model import checkpoint_activations
from mixpo.train.tree import Member, Padded, Span, members
from mixpo.types import Group, ImageRef, Question
from mixpo.vlm.families import HeadRule, Sight, answer_type, head_rule, why_not_packed, why_not_varlen
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

NAMES = list(FAMILIES)


class Data:
    """Groups with 1, 0, 3 and 2 images and 3, 2, 4 and 1 responses, of different lengths, and their prompts.

    Two responses of the first group have a beginning in common; in the third group one response begins another one, and both have
    a shorter beginning in common with a third.
    """

    def __init__(self, family: Family, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.prompts: dict[str, EncodedPrompt] = {}
        self.pieces: list[Piece] = []
        images = (1, 0, 3, 2) if family.picture else (0, 0, 0, 0)
        images = (1, 1, 3, 2) if family.whole_prompt else images
        for number, (count, responses) in enumerate(zip(images, (3, 2, 4, 1), strict=True)):
            self.prompts[f"q{number}"] = prompt(family, rng, count)
            lengths = torch.randint(1, 9, (responses,), generator=rng).tolist()
            tails = [tuple(torch.randint(10, 128, (length,), generator=rng).tolist()) for length in lengths]
            if number in (0, 2):
                tails[0] = tuple(torch.randint(10, 128, (12,), generator=rng).tolist())
                tails[1] = (*tails[0][:6], 9, *tails[1])
            if number == 2:
                tails[2] = tails[0][:11]
            refs = tuple(ImageRef(path="", digest=f"{number}-{place}") for place in range(count))
            asked = Question(id=f"q{number}", text="", images=refs)
            group = Group(question=asked, prompt="", responses=tuple(tails), pairs=())
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
    total: torch.Tensor = logits[len(one.ids) - 1 : -1].log_softmax(-1)[torch.arange(len(tail)), tail].sum()
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


def test_the_varlen_kernel_is_one_at_a_time(
    made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row as a GPU gets it, through a slow kernel with the rules of the GPU's; families that look ahead or cap are refused."""
    one, data, expected, expected_gradients = made
    if why_not_varlen(one.model):
        assert one.model.config.model_type in ("gemma2", "gemma3", "paligemma")
        return
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    found = Scorer(one.model, "varlen")(collate(one, data.pieces, data.get, "varlen")).sums
    (found * data.factors).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(one.model), expected_gradients)


def test_common_beginnings_are_computed_once(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """6 and 11 + 6 tokens fewer than the responses have, here and where micro-batches are filled."""
    one, data, _, _ = made
    batch = collate(one, data.pieces, data.get, "tree")
    prompts = sum(map(len, data.prompts.values()))
    assert prompts + int(batch.lengths.sum()) - batch.tokens == 6 + 11 + 6
    assert batch.tokens == batch.inputs["input_ids"].numel()
    assert batch.tokens == sum(size_of(piece, len(data.get(piece.group))).tokens for piece in data.pieces)
    assert len(batch.target) == batch.tokens - prompts
    assert len(batch.pick) == len(batch.owner) == int(batch.lengths.sum())


def _with_siblings(spans: list[Span]) -> Iterator[Member]:
    """A wrong plan: everything in a group sees what stands before it."""
    for span, member in ((span, member) for span in spans for member in members([span])):
        yield member._replace(keys=torch.arange(span.start, int(member.queries[-1]) + 1))


def test_a_wrong_plan_shows(made: tuple[Vlm, Data, torch.Tensor, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of the tiny models is far from uniform, so that responses which see each other have other log-probs."""
    one, data, expected, _ = made
    monkeypatch.setattr("mixpo.train.tree.members", _with_siblings)
    with torch.no_grad():
        found = Scorer(one.model, "tree")(collate(one, data.pieces, data.get, "tree")).sums
    assert (found - expected).abs().max() > 0.3


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


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "gemma3", "paligemma2"])
def test_the_whole_loss_in_any_order(name: str) -> None:
    """MPO of all pairs and its gradients against log-probs one at a time; groups, responses and pairs in two orders."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    pairs = {"q0": ((0, 1), (2, 1)), "q1": ((1, 0),), "q2": ((0, 1), (0, 2), (3, 2))}
    chosen = [piece for piece in data.pieces if piece.group.question.id in pairs]
    for number, piece in enumerate(chosen):
        known = tuple(-10.0 - 3 * number - place for place in piece.responses)
        group = replace(piece.group, pairs=pairs[piece.group.question.id], reference=known)
        chosen[number] = Piece(group, piece.responses, group.pairs)
    weights, shift = Weights(preference=0.8, quality=0.2, generation=1.0), 0.3
    expected = torch.zeros(())
    for piece in chosen:
        for good, bad in piece.pairs:
            logp = [naive(one.model, data.get(piece.group), piece.group.responses[side]) for side in (good, bad)]
            assert piece.group.reference is not None
            rewards = [0.1 * (logp[side] - piece.group.reference[place]) for side, place in enumerate((good, bad))]
            quality = -F.logsigmoid(rewards[0] - shift) - F.logsigmoid(-(rewards[1] - shift))
            sft = -logp[0] / len(piece.group.responses[good])
            expected = expected - 0.8 * F.logsigmoid(rewards[0] - rewards[1]) + 0.2 * quality + sft
    expected.backward()
    wanted = gradients(one.model)
    turned = [Piece(piece.group, piece.responses[::-1], piece.pairs[::-1]) for piece in chosen[::-1]]
    for pieces in (chosen, turned):
        batch = collate(one, pieces, data.get, "tree")
        logps = Scorer(one.model, "tree")(batch)
        total = combine(weights, 0.1, logps, batch.reference, batch.chosen, batch.rejected, shift).total.sum()
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        total.backward()
        same_gradients(gradients(one.model), wanted)


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
        assert found.sums.dtype == torch.float32
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


def test_routed_experts_are_packed() -> None:
    """How many tokens an expert gets changes how its sums are rounded, which is not a leak."""
    family = FAMILIES["qwen3_moe"]
    one, data = vlm(family), Data(family)
    one.model.set_experts_implementation("eager")
    assert choose_layout(one, sample_of(data.pieces[:3]), data.get, torch.float32)[0] == "tree"


@pytest.mark.parametrize("name", ["qwen3_moe", "text"])
@pytest.mark.parametrize("faint", [1.0, 1e-3])
def test_a_leak_is_noticed(name: str, faint: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token gets something of all tokens before it, whoever's they are; and nobody compares with the plain layout."""
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    attend = Padded.attend

    def leaking(plan: Padded, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: Any) -> torch.Tensor:
        mixed = (value.cumsum(0) / len(value)).repeat_interleave(query.shape[1] // value.shape[1], 1)
        return attend(plan, query, key, value, asked) + faint * mixed

    monkeypatch.setattr(Padded, "attend", leaking)
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e9)
    layout, note = choose_layout(one, sample_of(data.pieces[:3]), data.get, torch.float32)
    assert layout != "tree"
    assert "would notice the others' tokens" in note


@pytest.mark.parametrize("rule", [HeadRule(), HeadRule(cap=3.0), HeadRule(scale=0.3)])
@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "cohere2_vision"])
def test_a_wrong_head_rule_is_noticed(name: str, rule: HeadRule, monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES[name]), Data(FAMILIES[name])
    right = head_rule(one.model)
    monkeypatch.setattr("mixpo.train.logps.head_rule", lambda _: rule)
    layout, note = choose_layout(one, data.pieces[:2], data.get, torch.float32)
    assert (layout == "tree") == (rule == right)
    assert ("would change log-probs" in note) == (rule != right)


def test_a_missing_cap_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, data = vlm(FAMILIES["gemma2"]), Data(FAMILIES["gemma2"])
    assert choose_layout(one, data.pieces[:2], data.get, torch.float32)[0] == "tree"
    monkeypatch.setattr("mixpo.train.tree._capped", lambda q, k, v, mask, asked: F.scaled_dot_product_attention(q, k, v, mask))
    layout, note = choose_layout(one, data.pieces[:2], data.get, torch.float32)
    assert layout != "tree"
    assert "would change log-probs" in note


def test_the_kernel_is_chosen_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the varlen kernel can be used it is, and one that is wrong or missing costs nothing but time."""
    one, data = vlm(FAMILIES["internvl"]), Data(FAMILIES["internvl"])

    def check() -> tuple[str, str]:
        return choose_layout(one, sample_of(data.pieces[:3]), data.get, torch.float32)

    layout, note = check()
    assert (layout, note.endswith("attention in calls of like lengths (the varlen kernel needs an NVIDIA GPU)")) == ("tree", True)
    monkeypatch.setattr("mixpo.train.layout._no_kernel", lambda *_: "")
    layout, note = check()
    assert layout == "tree"
    assert "the varlen layout fails with NotImplementedError" in note
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    layout, note = check()
    assert (layout, note.endswith("attention in one call of the varlen kernel")) == ("varlen", True)

    @wraps(slow_varlen)
    def top_left(*args: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
        """A kernel that takes the first query for the first key's."""
        return slow_varlen(*args, window_size=(-1, 3), **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", top_left)
    layout, note = check()
    assert layout == "tree"
    assert "the varlen layout would change log-probs" in note


def test_where_the_kernel_is_tried() -> None:
    one = vlm(FAMILIES["internvl"])
    gpu = replace(one, device=torch.device("cuda"))
    assert _no_kernel(one, torch.bfloat16) == "the varlen kernel needs an NVIDIA GPU"
    assert _no_kernel(gpu, torch.float32) == "the varlen kernel has no float32"
    assert _no_kernel(gpu, torch.bfloat16) == ""
    assert "soft-capped" in _no_kernel(replace(gpu, model=FAMILIES["gemma2"].model()), torch.bfloat16)


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
    assert "cannot be exchanged" in why_not_packed(SimpleNamespace(config=model().config, _supports_attention_backend=False))
