"""From pairs to groups: what is shared, what is dropped and counted, and what stops the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from train.cases import group, question

from mixpo.errors import ImageError, SourceError, TrainError
from mixpo.recipe import ImageTable, TrainTable
from mixpo.records import Drop
from mixpo.train import groups
from mixpo.train.groups import data_digest, from_record, make_group
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.reference import ReferenceScorer
from mixpo.types import Group, Pair, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import image_token_ids, tokenize_response


def pair(chosen: str | tuple[int, ...], rejected: str | tuple[int, ...], number: int = 0) -> Pair:
    texts = ["sampled" if isinstance(side, tuple) else side for side in (chosen, rejected)]
    ids = [side if isinstance(side, tuple) else () for side in (chosen, rejected)]
    return Pair(
        id=f"p{number}",
        question="q",
        chosen=texts[0],
        rejected=texts[1],
        origin="correctness",
        chosen_ids=ids[0],
        rejected_ids=ids[1],
    )


@pytest.fixture
def asked() -> Question:
    return Question(id="q", text="What is the sum?")


def test_responses_are_shared_and_text_is_tokenised(tiny_vlm: Vlm, asked: Question) -> None:
    text = tokenize_response(tiny_vlm, "the sum is 12")
    assert text[-1] in tiny_vlm.end_ids
    found = make_group(tiny_vlm, asked, "P", [pair((5, 6), (7,)), pair((5, 6), (8,)), pair("the sum is 12", (7,))], 3, 100)
    pairs = ((0, 1), (0, 2), (3, 1))
    responses, origins = ((5, 6), (7,), (8,), text), tuple(one.origin for one in [pair((5,), (6,))] * 3)
    assert found.group == Group(question=asked, prompt="P", responses=responses, pairs=pairs, prompt_tokens=3, origins=origins)
    assert found.dropped == ()


def test_what_is_dropped_is_counted(tiny_vlm: Vlm, asked: Question) -> None:
    image = min(image_token_ids(tiny_vlm))
    pairs = [
        pair((5, 6), (5, 6)),
        pair((5, 6, 7), (5,)),
        pair((5,), (6, 7, 8)),
        pair("", (5,)),
        pair((5,), "an end<|im_end|> inside"),
        pair((5, image), (6,)),
        pair((5,), (6,)),
    ]
    found = make_group(tiny_vlm, asked, "P", pairs, 10, 12)
    assert found.group.responses == ((5,), (6,))
    assert found.group.pairs == ((0, 1),)
    assert {drop.reason: drop.count for drop in found.dropped} == {
        groups.SAME_TOKENS: 1,
        f"{groups.TOO_LONG} (12)": 2,
        groups.EMPTY: 1,
        groups.CONTROL_TOKEN: 2,
    }


def test_the_model_has_a_limit_of_its_own(tiny_vlm: Vlm, asked: Question) -> None:
    """The tiny model has 512 positions."""
    found = make_group(tiny_vlm, asked, "P", [pair((5,), (6, 7))], 511, 6144)
    assert found.dropped == (Drop(reason=f"{groups.TOO_LONG} (512)", count=1),)
    assert make_group(tiny_vlm, asked, "P", [pair((5,), (6, 7))], 510, 6144).dropped == ()


def test_a_broken_tokenizer_stops_the_work(tiny_vlm: Vlm, asked: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "tokenize_response", lambda vlm, text: (tiny_vlm.end_ids[0],))
    with pytest.raises(TrainError, match=r"question q, pair p3: no token of the chosen response.*chat template"):
        make_group(tiny_vlm, asked, "P", [pair("hello", "bye", 3)], 3, 100)


def test_a_prompt_without_room_stops_the_work(tiny_vlm: Vlm, asked: Question) -> None:
    """By then nothing of it could be trained, whatever its responses are."""
    with pytest.raises(
        TrainError, match=r"question q: its prompt of 100 tokens \(with images\) leaves no room for a response in 100; raise"
    ):
        make_group(tiny_vlm, asked, "P", [pair((5,), (6, 7))], 100, 100)
    assert make_group(tiny_vlm, asked, "P", [pair((5,), (6, 7))], 99, 100).dropped[0].count == 1
    assert make_group(tiny_vlm, asked, "P", [], 100, 100).dropped == ()


@pytest.mark.parametrize("ids", [(10**6,), (-1,)])
def test_ids_of_another_model_stop_the_work(tiny_vlm: Vlm, asked: Question, ids: tuple[int, ...]) -> None:
    with pytest.raises(TrainError, match="sampled from another model"):
        make_group(tiny_vlm, asked, "P", [pair((5,), ids)], 3, 100)


def test_reference_records_round_trip(tiny_vlm: Vlm, tmp_path: Path) -> None:
    asked = question(tmp_path, 1, 1)
    pairs = [pair("the sum is 12", "the sum is 7"), pair("the sum is 12", "12")]
    reference = ReferenceScorer(tiny_vlm, ImageTable(), TrainTable(max_length=150))
    rows = [
        (asked, asked.text, pairs),
        (replace(asked, id="other"), asked.text, []),
        (replace(asked, id="long"), asked.text + " x" * 54, pairs),
    ]
    good, empty, long = list(reference.records(rows))
    assert (good.question, good.chosen, good.rejected, len(good.logps)) == (asked.id, (0, 0), (1, 2), 3)
    assert all(value < 0 for value in good.logps)
    assert (empty.question, empty.responses, empty.logps, empty.dropped) == ("other", (), (), ())
    assert (long.responses, [drop.count for drop in long.dropped]) == ((), [2])
    back = from_record(asked, asked.text, good)
    assert back.pairs == ((0, 1), (0, 2))
    assert back.reference == good.logps
    with pytest.raises(TrainError, match="run the reference stage"):
        from_record(asked, asked.text, empty)


def test_errors_name_the_question(tiny_vlm: Vlm, tmp_path: Path) -> None:
    one = group(tiny_vlm, tmp_path, 1)
    Path(one.question.images[0].path).unlink()
    with pytest.raises(ImageError, match=f"question {one.question.id}: .*no such image"):
        PromptCache(tiny_vlm, ImageTable()).get(one)
    with pytest.raises(SourceError, match=f"question {one.question.id}: .*placeholder for 0 images"):
        PromptCache(tiny_vlm, ImageTable()).get(replace(one, question=replace(one.question, images=())))


def test_digest_sees_everything(tiny_vlm: Vlm, tmp_path: Path) -> None:
    one = replace(group(tiny_vlm, tmp_path, 1), reference=(-1.0, -2.0, -3.0))
    changed = [
        replace(one, prompt="other"),
        replace(one, pairs=((0, 1),)),
        replace(one, reference=(-1.0, -2.0, -3.5)),
        replace(one, responses=(one.responses[0][:-1], *one.responses[1:])),
        replace(one, question=replace(one.question, images=(replace(one.question.images[0], digest="0"),))),
    ]
    assert data_digest([one]) == data_digest([one])
    assert len({data_digest([one]), *(data_digest([other]) for other in changed)}) == 6
    moved = replace(one, question=replace(one.question, images=(replace(one.question.images[0], path="elsewhere.png"),)))
    assert data_digest([moved]) == data_digest([one])
