"""SFT rows in the training steps: their loss against plain forward passes, the order of their use, what is skipped, resume and ranks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from train.cases import fresh, group, groups, job, question, scored, timeless, train_until
from train.slow import naive

from mixpo.progress import Silent
from mixpo.recipe import ImageTable, LossTable
from mixpo.train.batch import make_chunk
from mixpo.train.collate import collate
from mixpo.train.group_data import in_memory
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.losses import combine, loss_weights
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.replay import pictured_dummy, replay_group, replay_order, rows_before
from mixpo.train.schedule import Schedule
from mixpo.train.session import open_session
from mixpo.types import Group, ImageRef
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

SOURCE = {"kind": "digits"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def data(tiny_vlm: Vlm, folder: Path) -> list[Group]:
    return scored(tiny_vlm, groups(tiny_vlm, folder, 4))


@pytest.fixture(scope="module")
def rows(tiny_vlm: Vlm, folder: Path) -> list[Group]:
    """Text alone, one image, two images."""
    texts = ("the sum is 12", "left and right digits", "7")
    return [
        replay_group(tiny_vlm, replace(question(folder, 50 + number, number), answer=text, kind="text"))
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("budget", [100_000, 60])
def test_the_loss_is_that_of_plain_forward_passes(tiny_vlm: Vlm, data: list[Group], rows: list[Group], tmp_path: Path, budget: int) -> None:
    """One step on all pairs and rows: the mean loss of the pairs plus 0.5 times the mean NLL per token of the rows."""
    slow, pairs = fresh(tiny_vlm), sum(len(g.pairs) for g in data)
    scorer, prompts = Scorer(slow.model, "plain"), PromptCache(slow, ImageTable())
    total = 0.0
    for one in data:
        for pair in one.pairs:
            batch = collate(slow, [make_chunk(one, [pair])], prompts.get, "plain")
            terms = combine(
                loss_weights("mpo", LossTable()), 0.1, scorer(batch), batch.reference, batch.chosen, batch.rejected, delta=0.0
            )  # fmt: skip
            (terms.total.sum() / pairs).backward()
            total += terms.total.sum().item() / pairs
    losses = []
    for row in rows:
        loss = -naive(slow.model, prompts.get(row), row.responses[0]) / len(row.responses[0])
        (0.5 * loss / len(rows)).backward()
        losses.append(loss.item())
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in slow.model.parameters() if p.grad is not None))

    replay = {"source": SOURCE, "share": len(rows) / pairs, "weight": 0.5}
    fast, said = fresh(tiny_vlm), Silent()
    (step,) = train(
        replace(job(fast, data, tmp_path, batch_size=pairs, tokens_per_batch=budget, replay=replay), replay=in_memory(rows)), said
    ).steps
    assert step.replay == pytest.approx(sum(losses) / len(rows), rel=1e-5)
    assert step.weighted_replay == pytest.approx(0.5 * step.replay)
    assert step.loss == pytest.approx(total + 0.5 * step.replay, rel=1e-5)
    assert step.grad_norm == pytest.approx(norm, rel=1e-4)
    assert (step.replay_rows, step.replay_skipped, step.pairs) == (3, 0, pairs)
    parts = step.weighted_preference + step.weighted_quality + step.weighted_generation + step.weighted_replay
    assert parts == pytest.approx(step.loss, abs=1e-6)


def test_every_row_once_before_any_twice() -> None:
    order = list(replay_order(5, 12, seed=1))
    assert Counter(order[:5]) == Counter(order[5:10]) == Counter(range(5))
    assert order[:5] != order[5:10]
    assert order == list(replay_order(5, 12, seed=1)) != list(replay_order(5, 12, seed=2))
    assert list(islice(replay_order(5, 20, seed=1), 12)) == order


def test_rows_of_each_step() -> None:
    """0.3 rows for each of 5, 5 and 2 pairs, in two epochs: 1, 2, 0, 2, 1, 1."""
    schedule = Schedule(pair_counts=(6, 6), batch_size=5, epochs=2, seed=0)
    before = [rows_before(schedule, 0.3, step) for step in range(schedule.total + 1)]
    assert before == [0, 1, 3, 3, 5, 6, 7]


def test_rows_that_cannot_be_used_are_skipped_and_counted(
    tiny_vlm: Vlm, data: list[Group], rows: list[Group], folder: Path, tmp_path: Path
) -> None:
    asked = question(folder, 70, 1)
    gone = replace(asked, answer="gone", images=(ImageRef(path=str(tmp_path / "gone.png"), digest="0" * 64),))
    bad = [
        replay_group(tiny_vlm, replace(asked, answer="stop <|im_end|> here")),
        replay_group(tiny_vlm, replace(asked, answer=None)),
        replay_group(tiny_vlm, gone),
        replay_group(tiny_vlm, replace(asked, answer="word " * 200)),
    ]
    assert [len(one.responses) for one in bad] == [0, 0, 1, 1]
    pairs = sum(len(g.pairs) for g in data)
    given = [bad[0], rows[0], *bad[1:3], rows[1], bad[3]]
    table = {"batch_size": pairs, "max_length": 150, "replay": {"source": SOURCE, "share": len(given) / pairs}}
    (with_bad,) = train(replace(job(fresh(tiny_vlm), data, tmp_path / "a", **table), replay=in_memory(given)), Silent()).steps
    assert (with_bad.replay_rows, with_bad.replay_skipped) == (2, 4)
    table["replay"] = {"source": SOURCE, "share": 2 / pairs}
    (without,) = train(replace(job(fresh(tiny_vlm), data, tmp_path / "b", **table), replay=in_memory(rows[:2])), Silent()).steps
    assert (with_bad.loss, with_bad.grad_norm) == pytest.approx((without.loss, without.grad_norm), rel=1e-6)


def test_a_rationale_is_the_response(tiny_vlm: Vlm, folder: Path) -> None:
    asked = replace(question(folder, 80, 0), answer="12", rationale="5 + 7 = 12")
    assert replay_group(tiny_vlm, asked).responses == replay_group(tiny_vlm, replace(asked, answer="5 + 7 = 12", rationale="")).responses


def test_a_resumed_training_uses_the_same_rows(
    tiny_vlm: Vlm, data: list[Group], rows: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"batch_size": 3, "epochs": 2, "save_every": 2, "replay": {"source": SOURCE, "share": 0.5}}
    given = rows * 4
    whole = train(replace(job(fresh(tiny_vlm), data, tmp_path / "whole", **table), replay=in_memory(given)), Silent())
    train_until(3, monkeypatch, replace(job(fresh(tiny_vlm), data, tmp_path / "cut", **table), replay=in_memory(given)))
    resumed = train(replace(job(fresh(tiny_vlm), data, tmp_path / "cut", **table), replay=in_memory(given)), Silent())
    assert [timeless(row) for row in resumed.steps] == [timeless(row) for row in whole.steps]
    assert whole.steps[-1].replay_rows == math.floor(0.5 * 2 * sum(len(g.pairs) for g in data))


def test_text_pairs_with_pictured_rows_have_a_pictured_dummy(tiny_vlm: Vlm, rows: list[Group], folder: Path, tmp_path: Path) -> None:
    texts = scored(tiny_vlm, [group(tiny_vlm, folder, 90, images=0)])
    opened = open_session(
        replace(job(fresh(tiny_vlm), texts, tmp_path, replay={"source": SOURCE, "share": len(rows)}), replay=in_memory(rows)), Silent()
    )
    assert not opened.dummy.group.question.images
    dummy = pictured_dummy(opened)
    assert dummy.group.question.images
    assert torch.is_tensor(opened.prompts.get(dummy.group).ids)
