from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpo.report.text_diff import DiffSpan, difference, words

SPEECH = "the red square stands left of a circle so we count three more of them again"
TEXTS = st.text(alphabet="ab c,.\n图三7_é<&", max_size=60)


@given(TEXTS)
def test_words_lose_nothing(text: str) -> None:
    assert "".join(words(text)) == text


@given(TEXTS, TEXTS, st.booleans())
def test_pieces_are_the_texts(a: str, b: str, kept: bool) -> None:
    left, right = difference(a, b, kept)
    assert ("".join(p.text for p in left), "".join(p.text for p in right)) == (a, b)

    def shared(pieces: list[DiffSpan]) -> str:
        return "".join("".join(p.text for p in pieces if p.kind != "own").split())

    assert shared(left) == shared(right)


def test_only_what_differs_is_marked() -> None:
    left, right = difference("The sum is 12.\nFinal answer: 12", "The sum is 6.\nFinal answer: 6")
    assert [p.text for p in left if p.kind == "own"] == ["12", "12"]
    assert [p.text for p in right if p.kind == "own"] == ["6", "6"]


def test_chinese_is_compared_by_character() -> None:
    left, right = difference("图中有三只猫", "图中有两只猫")
    assert [p for p in left if p.kind == "own"] == [DiffSpan("own", "三")]
    assert [p for p in right if p.kind == "own"] == [DiffSpan("own", "两")]


def test_kept_beginning() -> None:
    left, right = difference("A cat on a mat.", "A cat under a mat.", kept=True)
    assert left[0] == right[0] == DiffSpan("kept", "A cat ")
    assert [p.kind for p in left[1:]] == ["own", "same", "same"] or [p.kind for p in left[1:]] == ["own", "same"]


def test_equal_and_empty() -> None:
    assert difference("same", "same") == ([DiffSpan("same", "same")], [DiffSpan("same", "same")])
    assert difference("", "") == ([], [])
    assert difference("", "new") == ([], [DiffSpan("own", "new")])


def test_long_texts_are_quick() -> None:
    start = time.process_time()
    left, _ = difference("begin " + "a b " * 20_000 + "end", "begin " + "b c " * 20_000 + "end")
    assert time.process_time() - start < 2
    assert left[0].text == "begin "
    assert left[-1].text == " end"


def test_few_changes_in_long_texts_are_found() -> None:
    """Twenty thousand words of a small vocabulary, of which forty are replaced: just these are marked."""
    rng = random.Random(0)
    told = rng.choices(SPEECH.split(), k=20_000)
    places = range(250, 20_000, 500)
    changed = ["four" if number in places else word for number, word in enumerate(told)]
    begun = time.process_time()
    left, right = difference(" ".join(told), " ".join(changed))
    assert time.process_time() - begun < 5
    assert [p.text for p in right if p.kind == "own"] == ["four"] * len(places)
    assert [p.text for p in left if p.kind == "own"] == [told[number] for number in places]


@given(st.text("ab ", max_size=80), st.text("ab ", max_size=80), st.booleans())
def test_long_texts_lose_nothing(a: str, b: str, kept: bool) -> None:
    """As for short ones, with what counts as long brought down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixpo.report.text_diff.MAX_CELLS", 20)
        patch.setattr("mixpo.report.text_diff.SHINGLE", 3)
        left, right = difference(a, b, kept)
    assert ("".join(p.text for p in left), "".join(p.text for p in right)) == (a, b)
    assert len({"".join("".join(p.text for p in side if p.kind != "own").split()) for side in (left, right)}) == 1
