from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mixpo.report.difference import Piece, difference, words

TEXTS = st.text(alphabet="ab c,.\n图三7_é<&", max_size=60)


@given(TEXTS)
def test_words_lose_nothing(text: str) -> None:
    assert "".join(words(text)) == text


@given(TEXTS, TEXTS, st.booleans())
def test_pieces_are_the_texts(a: str, b: str, kept: bool) -> None:
    left, right = difference(a, b, kept)
    assert ("".join(p.text for p in left), "".join(p.text for p in right)) == (a, b)

    def shared(pieces: list[Piece]) -> str:
        return "".join("".join(p.text for p in pieces if p.kind != "own").split())

    assert shared(left) == shared(right)


def test_only_what_differs_is_marked() -> None:
    left, right = difference("The sum is 12.\nFinal answer: 12", "The sum is 6.\nFinal answer: 6")
    assert [p.text for p in left if p.kind == "own"] == ["12", "12"]
    assert [p.text for p in right if p.kind == "own"] == ["6", "6"]


def test_chinese_is_compared_by_character() -> None:
    left, right = difference("图中有三只猫", "图中有两只猫")
    assert [p for p in left if p.kind == "own"] == [Piece("own", "三")]
    assert [p for p in right if p.kind == "own"] == [Piece("own", "两")]


def test_kept_beginning() -> None:
    left, right = difference("A cat on a mat.", "A cat under a mat.", kept=True)
    assert left[0] == right[0] == Piece("kept", "A cat ")
    assert [p.kind for p in left[1:]] == ["own", "same", "same"] or [p.kind for p in left[1:]] == ["own", "same"]


def test_equal_and_empty() -> None:
    assert difference("same", "same") == ([Piece("same", "same")], [Piece("same", "same")])
    assert difference("", "") == ([], [])
    assert difference("", "new") == ([], [Piece("own", "new")])


def test_long_texts_are_quick() -> None:
    start = time.process_time()
    left, _ = difference("begin " + "a b " * 20_000 + "end", "begin " + "b c " * 20_000 + "end")
    assert time.process_time() - start < 2
    assert left[0].text == "begin "
    assert left[-1].text == " end"
