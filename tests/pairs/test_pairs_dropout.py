from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_answers import OPEN, response, table

from mixpo.engines.base import Request
from mixpo.pairs.dropout_ntp import PATTERNS, Cut, continuation_request, dropout_pairs, missing_image_phrase
from mixpo.pairs.provenance import REASONS
from mixpo.types import Finish, Response


def half(ids: Sequence[int], ratio: float) -> int:
    return int(len(ids) * ratio)


def answer(index: int, text: str, **changes: object) -> Response:
    return response(index, text, question="q2", **changes)


def continued(parent: Response, kept: int, new: str, finish: Finish = "stop") -> Response:
    """What an engine returns: the kept ids and text, then what was newly written."""
    ids = parent.token_ids[:kept] + tuple(map(ord, new)) + ((0,) if finish == "stop" else ())
    return answer(parent.index, parent.text[:kept] + new, token_ids=ids, prefix_len=kept, finish=finish)


def request_or_none(responses: list[Response], seed: int = 0, cut: Cut = half, **changes: object) -> Request | None:
    return continuation_request(OPEN, responses, "Describe the picture.", table(**changes), seed, cut)


def request(responses: list[Response], **changes: Any) -> Request:
    made = request_or_none(responses, **changes)
    assert made is not None
    return made


def drops_of(
    responses: list[Response], continuations: list[Response], **changes: object
) -> tuple[list[tuple[str, str, int]], dict[str, int]]:
    pairs, drops = dropout_pairs(OPEN, responses, continuations, table(**changes), 0)
    return [(pair.chosen, pair.rejected, pair.cut) for pair in pairs], dict(drops)


# --- the request -------------------------------------------------------------------------------------------------------


def test_request_keeps_half_of_the_tokens_and_no_image() -> None:
    answers = [answer(0, "A red ball."), answer(1, "A dog runs.")]
    made = request(answers)
    assert (made.key, made.prompt, made.images, made.indices) == ("q2", "Describe the picture.", (), (0, 1))
    assert made.prefixes == (tuple(map(ord, "A red ")), tuple(map(ord, "A dog ")))  # 12 ids with the end, half of them
    assert len(set(made.seeds)) == 2
    assert all(0 <= seed < 2**31 for seed in made.seeds)


def test_seeds_depend_on_run_and_answer_only() -> None:
    answers = [answer(i, f"Answer number {i}.") for i in range(3)]
    alone = [request([one]).seeds[0] for one in answers]
    assert list(request(answers).seeds) == alone
    assert list(request(answers, seed=1).seeds) != alone


def test_only_finished_distinct_answers_are_continued() -> None:
    answers = [
        answer(0, "It is a cat."), answer(1, " It is a cat."), answer(2, "It goes on", finish="length"), answer(3, "", finish="error"),
        answer(4, ""), answer(5, "It is a dog."),
    ]  # fmt: skip
    assert request(answers).indices == (0, 5)
    assert drops_of(answers, [])[1] == {"duplicate": 1, "length_capped": 1, "error": 1, "empty": 1, "no_continuation": 2}


@pytest.mark.parametrize("length", [0, 6, 7])
def test_answers_that_cannot_be_cut_are_left_out(length: int) -> None:
    assert request_or_none([answer(0, "Hello")], cut=lambda ids, ratio: length) is None  # 6 ids


def test_nothing_to_continue() -> None:
    assert request_or_none([]) is None
    assert request_or_none([answer(0, "On and on", finish="length")]) is None


def test_a_mark_in_the_prompt_is_a_bug() -> None:
    with pytest.raises(ValueError, match="<image>"):
        continuation_request(OPEN, [answer(0, "Hello there")], "<image>\nDescribe.", table(), 0, half)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_choice_respects_the_cap_and_no_order(size: int, cap: int, seed: int, rng: random.Random) -> None:
    answers = [answer(i, f"Answer number {i}.") for i in range(size)]
    made = request(answers, seed=seed, max_dropout_per_question=cap)
    assert len(made.indices) == min(size, cap)
    rng.shuffle(answers)
    assert request(answers, seed=seed, max_dropout_per_question=cap) == made


# --- the pairs -----------------------------------------------------------------------------------------------------------


def test_the_whole_answer_is_chosen() -> None:
    parent = answer(3, "A red ball lies there.")
    pairs, drops = dropout_pairs(OPEN, [parent], [continued(parent, 6, "car.")], table(), 0)
    assert not drops
    (pair,) = pairs
    assert (pair.chosen, pair.rejected, pair.origin, pair.cut) == ("A red ball lies there.", "A red car.", "dropout_ntp", 6)
    assert pair.chosen_index == pair.rejected_index == 3
    assert pair.rejected_ids[:6] == pair.chosen_ids[:6]


PARENT = answer(0, "A red ball.")
DROPPED: dict[str, list[Response]] = {
    "no_continuation": [],
    "continuation_error": [answer(0, "", finish="error", prefix_len=6)],
    "identical": [continued(PARENT, 6, "ball.")],
    "blind": [continued(PARENT, 6, "thing. I cannot see the image.")],
    "wrong_prefix": [continued(answer(0, "A blue ball."), 6, "car.")],
}


@pytest.mark.parametrize("reason", DROPPED)
def test_drops(reason: str) -> None:
    assert drops_of([PARENT], DROPPED[reason]) == ([], {reason: 1})


def test_a_prefix_of_nothing_or_everything_is_wrong() -> None:
    whole = answer(0, "A red ball. And more", prefix_len=12, token_ids=(*PARENT.token_ids, 5))
    none = answer(0, "Something", prefix_len=0)
    assert drops_of([PARENT], [whole]) == drops_of([PARENT], [none]) == ([], {"wrong_prefix": 1})


def test_blind_continuations_can_be_kept() -> None:
    made, drops = drops_of([PARENT], DROPPED["blind"], drop_blind=False)
    assert made == [("A red ball.", "A red thing. I cannot see the image.", 6)]
    assert not drops


def test_a_capped_continuation_is_kept() -> None:
    assert drops_of([PARENT], [continued(PARENT, 6, "and so on and on", finish="length")])[0] == [
        ("A red ball.", "A red and so on and on", 6)
    ]


def test_length_ratio_counts() -> None:
    assert drops_of([PARENT], [continued(PARENT, 6, "b" * 40)], max_length_ratio=2) == ([], {"length_ratio": 1})


def test_blindness_is_looked_for_in_the_new_part_only() -> None:
    parent = answer(0, "I cannot see the image well, but it shows a cat.")
    kept = len("I cannot see the image well, but")
    made, drops = drops_of([parent], [continued(parent, kept, " perhaps a dog.")])
    assert len(made) == 1
    assert not drops
    # Begun in the kept part, completed blindly: both begin with "I can".
    parent = answer(0, "I can see a cat.")
    assert drops_of([parent], [continued(parent, 5, "not see the image.")])[1] == {"blind": 1}


@given(
    st.lists(st.sampled_from(["A cat.", "A dog.", "A small red bird.", "x"]), max_size=6),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_order_changes_nothing_and_all_is_counted(texts: list[str], rng: random.Random, cap: int) -> None:
    answers = [answer(i, text) for i, text in enumerate(texts)]
    continuations = [continued(one, 1, f" thing {one.index % 2}") for one in answers]
    expected = dropout_pairs(OPEN, answers, continuations, table(max_dropout_per_question=cap), 0)
    assert len(expected[0]) + sum(expected[1].values()) == len(answers)
    assert expected[1].keys() <= REASONS.keys()
    rng.shuffle(answers)
    rng.shuffle(continuations)
    assert dropout_pairs(OPEN, answers, continuations, table(max_dropout_per_question=cap), 0) == expected


# --- blind phrases ---------------------------------------------------------------------------------------------------------

BLIND = [
    "I'm sorry, but I cannot see the image you mention.",
    "I can't see any images here.",
    "I can’t view the picture.",
    "Unfortunately I am unable to view the attached image.",
    "I am not able to directly see the picture.",
    "I could not access the photo.",
    "I do not have access to the image.",
    "I don't have access to any images.",
    "I have no access to the picture.",
    "I do not have the ability to see images.",
    "No image was provided.",
    "No image provided, so I will guess.",
    "There is no image in your message to describe.",
    "There isn't an image.",
    "The image is not visible to me.",
    "The image you mentioned was not attached.",
    "The picture hasn't been uploaded.",
    "You did not provide an image.",
    "You haven't attached any image.",
    "Without seeing the image, I can only guess.",
    "Without the actual image it is hard to say.",
    "Without access to the picture I cannot tell.",
    "Please provide the image so that I can help.",
    "Could you please upload the image?",
    "If you share the picture, I can help.",
    "As a text-based model, I work with words.",
    "As an AI language model, I have no eyes.",
    "抱歉，我无法看到图片。",
    "我无法查看您提供的图片，",
    "我看不到图片。",
    "由于我无法查看图像内容，",
    "您没有提供图片。",
    "未提供图像，因此只能猜测。",
    "题目中没有图片。",
    "图片未能显示。",
    "图片无法查看",
    "请提供图片。",
    "请您上传一张清晰的图片",
    "作为一个语言模型，我",
]  # fmt: skip
SEEING = [
    "The image shows a red ball.",
    "I cannot see a dog in the picture.",
    "I cannot see the picture's left edge clearly.",
    "There is no picture on the wall.",
    "There is no dog in the image.",
    "The dog is not visible in the image.",
    "You can see the image of a cat on the box.",
    "The person in the photo is not provided with a helmet.",
    "A wall without a picture.",
    "The figure has three bars.",
    "Please look at the chart: it rises.",
    "As an artist, she paints.",
    "No cars are shown.",
    "图片中有一只猫。",
    "无法看到图片中的人脸。",
    "图中没有狗。",
    "图中的文字无法识别。",
    "这个图形没有对称轴。",
    "无法识别图形的颜色",
    "根据图片，答案是3。",
]  # fmt: skip


@pytest.mark.parametrize("text", BLIND)
def test_blind_phrases(text: str) -> None:
    assert missing_image_phrase(text)


@pytest.mark.parametrize("text", SEEING)
def test_descriptions_are_not_blind(text: str) -> None:
    assert missing_image_phrase(text) is None


def test_every_pattern_is_needed() -> None:
    found = {missing_image_phrase(text) for text in BLIND}
    assert found == set(PATTERNS)


def test_patterns_stay_fast_on_hostile_text() -> None:
    begun = time.process_time()
    for piece in (
        "I cannot ",
        "no image ",
        "the ",
        "the image is ",
        "without ",
        "please provide me with the ",
        "无法",
        "没有提供",
        "as a large language ",
        "cannot" + " " * 50,
    ):
        missing_image_phrase(piece * 3000)
    assert time.process_time() - begun < 3
