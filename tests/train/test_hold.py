"""The hold term against a loop over tokens, in every layout and training, and what it needs of a group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from failures import fails
from hypothesis import given
from hypothesis import strategies as st
from train.cases import fresh, groups, job, question, scored, timeless, train_until

from mixpo.errors import TrainError
from mixpo.progress import Silent
from mixpo.recipe import ImageTable, LossTable, Recipe
from mixpo.records import Scored, read_rows, write_rows
from mixpo.train.batch import Layout, make_chunk, micro_batches
from mixpo.train.collate import collate
from mixpo.train.group_data import GroupRow, in_memory, open_groups, write_groups
from mixpo.train.groups import GroupedPairs, ReferenceLogps, from_record, join_records, split_record, to_record
from mixpo.train.hold import STORED, encode, held_pairs, held_response, pack, unpack, with_forks
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.losses import HeldTokens, LossTerms, LossWeights, ResponseLogps, combine, dpo, hold_loss, loss_weights
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.replay import replay_group
from mixpo.types import Group, Origin, Question
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

HOLD = LossTable(hold=0.1, hold_width=0.3)
TABLE = {"loss": {"hold": 0.1}}
WEIGHTS = loss_weights("mpo", HOLD)


def double(vlm: Vlm) -> Vlm:
    copied = fresh(vlm)
    return replace(copied, model=copied.model.double())


def disturb(vlm: Vlm, size: float = 0.02) -> Vlm:
    """The model a few steps later: log-probs have moved to both sides of the width."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in vlm.model.parameters():
            value.add_(size * torch.randn(value.shape, generator=rng, dtype=value.dtype))
    return vlm


@pytest.fixture(scope="module")
def data(tiny_vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    """Groups with and without images, one of which has common beginnings and one DropoutNTP pair besides."""
    found = groups(tiny_vlm, tmp_path_factory.mktemp("images"), 4)
    begin, other = found[2].responses[0], found[2].responses[1]
    responses = ((*begin, *other), (*begin, *found[2].responses[2]), (*begin[:1], *other), found[2].responses[3])
    found[2] = replace(
        found[2],
        responses=responses,
        pairs=((0, 1), (0, 2), (0, 3), (1, 2)),
        origins=("correctness", "correctness", "format", "dropout_ntp"),
    )
    found = [group if group.origins else replace(group, origins=found[2].origins[:1] * len(group.pairs)) for group in found]
    return scored(tiny_vlm, found, hold=0.1)


# --- the term ----------------------------------------------------------------------------------------------------------


def by_hand(ratios: Sequence[float], held: Sequence[bool], width: float) -> float:
    total = 0.0
    for ratio, counts in zip(ratios, held, strict=True):
        if counts:
            total += ratio**2 / 2 if abs(ratio) <= width else width * (abs(ratio) - width / 2)
    return total


def test_by_hand() -> None:
    reference = torch.tensor([-1.0, -2.0, math.nan, -0.5, -3.0], dtype=torch.float64)
    tokens = torch.tensor([-1.2, -1.0, -7.0, -0.5, -3.1], dtype=torch.float64, requires_grad=True)
    held = HeldTokens(reference, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, True, False, True, True]), torch.ones(1).bool())
    term = hold_loss(tokens, held, 0.3, 3)
    assert term.tolist() == pytest.approx([0.02 + 0.3 * (1 - 0.15), 0.005, 0.0])
    term.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == pytest.approx([-0.2, 0.3, 0.0, 0.0, -0.1])


@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=9), st.floats(0.01, 2))
def test_a_loop_over_tokens_gives_the_same(rows: list[tuple[float, bool]], width: float) -> None:
    tokens, counts = torch.tensor([row[0] for row in rows], dtype=torch.float64), torch.tensor([row[1] for row in rows])
    held = HeldTokens(torch.zeros_like(tokens), torch.zeros(len(rows), dtype=torch.long), counts, torch.ones(1).bool())
    expected = by_hand([row[0] for row in rows], [row[1] for row in rows], width)
    assert hold_loss(tokens, held, width, 1).item() == pytest.approx(expected, abs=1e-12)


def test_gradients_against_differences() -> None:
    held = HeldTokens(
        torch.zeros(6, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([True, False, True, True, True, True]),
        torch.tensor([True, False]),
    )  # fmt: skip

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(3, dtype=torch.float64).index_add(0, held.response, tokens)
        logps = ResponseLogps(sums, torch.tensor([2, 2, 2]), tokens)
        return combine(WEIGHTS, 0.1, logps, torch.zeros(3), torch.tensor([0, 2]), torch.tensor([1, 1]), 0.1, held=held).total

    start = torch.tensor([-0.2, -1.0, -0.7, -0.1, -0.35, -0.05], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, atol=1e-8)


def test_only_chosen_responses_of_held_pairs_count() -> None:
    held = HeldTokens(torch.zeros(3), torch.tensor([0, 1, 2]), torch.ones(3).bool(), torch.tensor([True, True, False]))
    logps = ResponseLogps(torch.tensor([-0.2, -5.0, -0.1]), torch.tensor([1, 1, 1]), torch.tensor([-0.2, -5.0, -0.1]))
    terms = combine(WEIGHTS, 0.1, logps, torch.zeros(3), torch.tensor([0, 2, 2]), torch.tensor([1, 1, 1]), 0.0, held=held)
    assert terms.hold.tolist() == pytest.approx([0.02, 0.005, 0.0])
    without = combine(loss_weights("mpo", LossTable()), 0.1, logps, torch.zeros(3), torch.tensor([0, 2, 2]), torch.tensor([1, 1, 1]), 0.0)
    assert (terms.total - without.total).tolist() == pytest.approx([0.002, 0.0005, 0.0], abs=1e-6)


def test_objectives_with_a_preference_or_quality_term_are_held() -> None:
    assert {name: loss_weights(name, HOLD).hold for name in ("mpo", "dpo", "bco+sft", "orpo", "sft")} == {
        "mpo": 0.1, "dpo": 0.1, "bco+sft": 0.1, "orpo": 0.1, "sft": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(("length", "drift"), [(30, 7.6), (300, 22.6)])
def test_long_responses_learn_while_each_token_stays_nearer(length: int, drift: float) -> None:
    """Where the pulls of the preference and the hold term cancel when all tokens of a response move alike, as in docs/method.md.

    A sum keeps the balance at a single token: no pull depends on the length. A mean would divide that of the hold term by it.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64)
        tokens = middle.repeat(length).requires_grad_()
        held = HeldTokens(torch.zeros(length), torch.zeros(length, dtype=torch.long), torch.ones(length).bool(), torch.ones(1).bool())
        loss = 0.8 * dpo(tokens.sum(), 0.1) + 0.1 * hold_loss(tokens, held, 0.3, 1).sum()
        (gradient,) = torch.autograd.grad(loss, tokens)
        low, high = (float(middle), high) if gradient[0] < 0 else (low, float(middle))
    assert length * low == pytest.approx(drift, abs=0.1)


# --- forks -------------------------------------------------------------------------------------------------------------


def forked(responses: Sequence[tuple[int, ...]], pairs: Sequence[tuple[int, int]], origins: Sequence[Origin] = ()) -> Group:
    asked = Question(id="q", text="", images=())
    return with_forks(Group(question=asked, prompt="", responses=tuple(responses), pairs=tuple(pairs), origins=tuple(origins)))


def test_forks() -> None:
    """Pairs part at the third token, at the first, and where one side ends."""
    responses = [(1, 2, 3, 4), (1, 2, 9), (1, 2, 7, 3), (5, 2, 3), (1, 2)]
    assert forked(responses, [(0, 1)]).forks == ((2,), (2,), (2,), (), ())
    assert forked(responses, [(0, 3)]).forks == ((0,),) * 5
    assert forked(responses, [(0, 4)]).forks == ((2,), (2,), (2,), (), ())
    assert forked(responses, [(0, 1), (0, 3)]).forks == ((0, 2), (0, 2), (0, 2), (0,), (0,))
    assert forked(responses, [(0, 1), (0, 3)], ["dropout_ntp", "imported"]).forks == ((0,),) * 5


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=2, max_size=6, unique=True))
def test_forks_by_their_definition(responses: list[tuple[int, ...]]) -> None:
    pairs = list(itertools.permutations(range(len(responses)), 2))[::3]
    expected = [set[int]() for _ in responses]
    for one, other in pairs:
        for place in range(max(len(responses[one]), len(responses[other]))):
            if responses[one][: place + 1] != responses[other][: place + 1]:
                for number, response in enumerate(responses):
                    if response[:place] == responses[one][:place] and place < len(response):
                        expected[number].add(place)
                break
    assert forked(responses, pairs).forks == tuple(tuple(sorted(places)) for places in expected)


def test_what_is_held(data: list[Group], tiny_vlm: Vlm, tmp_path: Path) -> None:
    group = data[2]
    assert held_pairs(group, group.pairs) == [True, True, True, False]
    assert group.forks is not None
    first = len(group.responses[0])
    assert (~held_response(group, 0).held).nonzero()[0].tolist() == list(group.forks[0])
    assert 0 < len(group.forks[0]) < first
    row = replay_group(tiny_vlm, replace(question(tmp_path, 5, 0), answer="12", kind="text"))
    assert not held_response(row, 0).held.any()


# --- storage -----------------------------------------------------------------------------------------------------------

RESPONSES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=6, unique=True)


@given(RESPONSES)
def test_common_beginnings_are_stored_once(responses: list[tuple[int, ...]]) -> None:
    of_prefix = {
        response[:end]: -float(number) for number, (response, end) in enumerate((r, e) for r in responses for e in range(len(r) + 1))
    }
    encoded = [encode(np.array([of_prefix[response[: end + 1]] for end in range(len(response))])) for response in responses]
    packed = pack(responses, encoded)
    assert unpack(responses, packed) == tuple(encoded)
    assert len(packed) == 2 * len({response[: end + 1] for response in responses for end in range(len(response))})


@given(st.lists(st.floats(-1e6, 0), min_size=1))
def test_the_error_of_a_stored_log_prob(logps: list[float]) -> None:
    stored = np.frombuffer(encode(np.array(logps)), STORED).astype(float)
    for value, exact in zip(stored.tolist(), logps, strict=True):
        assert abs(value - exact) <= max(2**-11 * abs(exact), 2**-25) or (exact < -65504 and value == -65504)


def test_records_and_the_groups_file_give_them_back(data: list[Group], tmp_path: Path) -> None:
    """Through Parquet, two prompts in one record, and the file that training reads; a repetition keeps the forks of all pairs."""
    parts = {}
    for number, group in enumerate(data[1:3]):
        assert group.token_reference is not None
        assert group.reference is not None
        same = replace(group, question=data[0].question)
        parts[number] = to_record(GroupedPairs(group=same), ReferenceLogps(group.reference, group.token_reference))
    write_rows(tmp_path / "record.parquet", Scored, [join_records(parts)])
    (record,) = read_rows(tmp_path / "record.parquet", Scored)
    back = [with_forks(from_record(data[0].question, data[0].prompt, part)) for part in split_record(record).values()]
    for group, before in zip(back, data[1:3], strict=True):
        assert group == replace(before, question=group.question, prompt=group.prompt)
    repeats = (2, 1, 1, 2)
    write_groups(tmp_path / "groups.rows", [GroupRow(data[0]), GroupRow(data[2], repeats)], "x")
    first, whole, again = open_groups(tmp_path / "groups.rows")
    assert (first, whole) == (data[0], data[2])
    assert (again.pairs, again.origins, again.forks) == (whole.pairs[::3], whole.origins[::3], whole.forks)


# --- layouts and trainings ---------------------------------------------------------------------------------------------


def plain_terms(vlm: Vlm, data: list[Group]) -> tuple[torch.Tensor, LossTerms]:
    """Loss of the step and terms of all pairs: one forward pass for each pair, and a loop over its chosen tokens for the hold term."""
    scorer, prompts = Scorer(vlm.model, "plain", next(vlm.model.parameters()).dtype), PromptCache(vlm, ImageTable())
    scorer.precision = torch.float32  # no autocast; weights decide
    pairs, total, holds = sum(len(g.pairs) for g in data), torch.zeros((), dtype=torch.float64), []
    terms = None
    for one in data:
        for pair, held in zip(one.pairs, held_pairs(one, one.pairs), strict=True):
            batch = collate(vlm, [make_chunk(one, [pair])], prompts.get, "plain")
            logps = scorer(batch)
            terms = combine(replace(WEIGHTS, hold=0.0), 0.1, logps, batch.reference, batch.chosen, batch.rejected, 0.0)
            assert one.forks is not None
            assert one.token_reference is not None
            reference = np.frombuffer(one.token_reference[pair[0]], STORED)
            tokens = logps.tokens[batch.response_index == batch.chosen[0]]
            hold = torch.zeros((), dtype=torch.float64)
            for place in range(len(tokens)):
                if held and place not in one.forks[pair[0]]:
                    z = tokens[place] - float(reference[place])
                    hold = hold + (z**2 / 2 if abs(z) <= 0.3 else 0.3 * (abs(z) - 0.15))
            holds.append(hold.item())
            total = total + (terms.total.sum() + 0.1 * hold) / pairs
    assert terms is not None
    return total, replace(terms, hold=torch.tensor(holds))


@pytest.mark.parametrize(
    ("layout", "budget"),
    [
        ("tree", 60),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in [("tree", 100_000), ("shared", 60), ("plain", 60), ("single", 60)]),
    ],
)
def test_every_layout_gives_loss_and_gradients_of_a_loop(tiny_vlm: Vlm, data: list[Group], layout: Layout, budget: int) -> None:
    """In float64, with micro-batches that divide groups."""
    slow, fast = disturb(double(tiny_vlm)), disturb(double(tiny_vlm))
    loss, expected = plain_terms(slow, data)
    loss.backward()
    assert 0 < expected.hold.min() + 1 < expected.hold.max() + 1
    prompts, scorer = PromptCache(fast, ImageTable()), Scorer(fast.model, layout)
    pairs, total, holds = sum(len(g.pairs) for g in data), 0.0, 0.0
    batches = micro_batches([make_chunk(g, g.pairs) for g in data], prompts.length, budget, layout)
    assert len(batches) > 1 if budget == 60 else len(batches) == 1
    for chunks in batches:
        batch = collate(fast, chunks, prompts.get, layout)
        terms = combine(
            WEIGHTS, 0.1, scorer(batch), batch.reference, batch.chosen, batch.rejected, 0.0, held=batch.held
        )  # fmt: skip
        (terms.total.sum() / pairs).backward()
        total, holds = total + terms.total.sum().item() / pairs, holds + terms.hold.sum().item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert holds == pytest.approx(expected.hold.sum().item(), rel=1e-6)
    for one, two in zip(slow.model.parameters(), fast.model.parameters(), strict=True):
        if one.grad is not None and two.grad is not None:
            assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-7 * float(one.grad.abs().max() + 1))


@pytest.mark.slow
@pytest.mark.parametrize("table", [{}, {"lora": {"rank": 3}}, {"gradient_checkpointing": True}])
def test_online_equals_the_stage(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, table: dict[str, object]) -> None:
    if "lora" in table:
        pytest.importorskip("peft")
    settings = {**TABLE, "epochs": 3, "batch_size": 5, "tokens_per_batch": 200, "learning_rate": 1e-3, **table}
    stage = train(job(fresh(tiny_vlm), data, tmp_path / "a", **settings), Silent())
    bare = [replace(group, reference=None, token_reference=None) for group in data]
    online = train(job(fresh(tiny_vlm), bare, tmp_path / "b", reference="online", **settings), Silent())
    assert stage.steps[0].hold == pytest.approx(0, abs=1e-4)
    assert max(row.hold for row in stage.steps) > 0.01
    for one, two in zip(stage.steps, online.steps, strict=True):
        assert (two.loss, two.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=5e-3, abs=1e-3)
        assert two.hold == pytest.approx(one.hold, rel=3e-2, abs=1e-3)  # stored log-probs are rounded
        parts = one.weighted_preference + one.weighted_quality + one.weighted_generation + one.weighted_hold
        assert parts == pytest.approx(one.loss, abs=1e-6)


@pytest.mark.slow
def test_replay_rows_are_not_held(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    rows = [replay_group(tiny_vlm, replace(question(tmp_path, 50 + n, n), answer="the sum is 12", kind="text")) for n in range(2)]
    settings = {**TABLE, "batch_size": 5, "epochs": 2, "learning_rate": 3e-3}
    replay = {"source": {"kind": "digits"}, "share": 0.2, "weight": 1e-9}
    plain = train(job(fresh(tiny_vlm), data, tmp_path / "a", **settings), Silent())
    mixed = train(replace(job(fresh(tiny_vlm), data, tmp_path / "b", replay=replay, **settings), replay=in_memory(rows * 2)), Silent())
    assert mixed.steps[-1].replay_rows == 3
    for one, two in zip(plain.steps, mixed.steps, strict=True):
        assert two.hold == pytest.approx(one.hold, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_a_resumed_training_is_the_same(tiny_vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**TABLE, "batch_size": 3, "epochs": 2, "save_every": 2, "learning_rate": 3e-3}
    whole = train(job(fresh(tiny_vlm), data, tmp_path / "whole", **settings), Silent())
    train_until(3, monkeypatch, job(fresh(tiny_vlm), data, tmp_path / "cut", **settings))
    resumed = train(job(fresh(tiny_vlm), data, tmp_path / "cut", **settings), Silent())
    assert [timeless(row) for row in resumed.steps] == [timeless(row) for row in whole.steps]


@pytest.mark.slow
def test_long_responses_keep_their_tokens_and_learn(tiny_vlm: Vlm, tmp_path: Path) -> None:
    """Responses of 300 tokens that part at the first: held, they move less and are told apart all the same."""
    rng = torch.Generator().manual_seed(1)
    asked = [question(tmp_path, number, 0) for number in range(4)]
    ids = [tuple(tuple(torch.randint(10, 200, (300,), generator=rng).tolist()) for _ in range(2)) for _ in asked]
    bare = [Group(question=q, prompt=q.text, responses=both, pairs=((0, 1),)) for q, both in zip(asked, ids, strict=True)]
    found = scored(tiny_vlm, bare, hold=0.1)
    rows = {}
    for weight in (0.0, 0.1):
        settings = {"loss": {"hold": weight, "generation": 0.0}, "batch_size": 4, "epochs": 12, "schedule": "constant"}
        rows[weight] = train(job(fresh(tiny_vlm), found, tmp_path / str(weight), tokens_per_batch=4000, **settings), Silent()).steps[-1]
    assert rows[0.1].accuracy == rows[0.0].accuracy == 1
    assert rows[0.1].margin > 1
    assert abs(rows[0.1].reward_chosen) < abs(rows[0.0].reward_chosen)


def test_groups_without_what_it_needs_are_refused(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    for lacking in (replace(data[1], forks=None), replace(data[1], token_reference=None)):
        groups_of = [data[0], lacking]
        with fails("token-logprobs-missing", TrainError, key=data[1].question.id):
            train(job(fresh(tiny_vlm), groups_of, tmp_path, **TABLE), Silent())


def test_the_stage_stores_them_only_for_recipes_that_need_them(tiny_vlm: Vlm, tmp_path: Path) -> None:
    assert all(group.token_reference is None for group in scored(tiny_vlm, groups(tiny_vlm, tmp_path, 2)))
    settings = [
        Recipe.model_validate({"source": {"kind": "digits"}, "train": {"loss": {"hold": w}}}).deciding("reference") for w in (0, 0.1, 0.2)
    ]
    assert settings[0]["train"].get("loss") is None
    assert settings[1] == settings[2] != settings[0]


def test_weights_without_hold_need_nothing() -> None:
    assert LossWeights(0.8, 0.2, 1.0).hold == 0
