"""Cutting answers for completion without the image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpo.engines.scripted import ByteCodec
from mixpo.pairs.dropout_ntp import cut, cut_tokens
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import decode, tokenize_response

CODEC = ByteCodec()


@pytest.mark.parametrize(
    ("text", "ratio", "kept"),
    [
        ("abcdef", 0.5, "abc"),
        ("abcdefg", 0.5, "abc"),
        ("abcdef", 0.99, "abcde"),
        ("ab", 0.5, "a"),
        ("a", 0.5, ""),
        ("", 0.5, ""),
        ("abc", 0.1, ""),
        ("答案是九", 0.5, "答案"),  # 12 bytes
        ("答案九", 0.5, "答"),  # 9 bytes, the 4th is inside a character
        ("答x", 0.5, ""),  # no whole character fits
        ("🙂🙂🙂", 0.5, "🙂"),
    ],
)
def test_table(text: str, ratio: float, kept: str) -> None:
    ids = CODEC.encode(text)
    assert CODEC.decode(ids[: cut_tokens(ids, ratio, {CODEC.END}, CODEC.decode)]) == kept


@given(st.text(min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_the_kept_part_is_text_and_leaves_some(text: str, ratio: float) -> None:
    ids = CODEC.encode(text)
    kept = cut_tokens(ids, ratio, {CODEC.END}, CODEC.decode)
    assert 0 <= kept <= ratio * (len(ids) - 1)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert text.startswith(CODEC.decode(ids[:kept]))
    assert kept < len(ids) - 1 or kept == 0


def test_with_the_tokenizer_of_a_model(tiny_vlm: Vlm) -> None:
    text = "答案是左上角的数字最大，它是九。请用蓝色。"
    ids = tokenize_response(tiny_vlm, text)
    whole = 0
    for ratio in [share / 40 for share in range(1, 40)]:
        kept = cut(tiny_vlm, ids, ratio)
        assert text.startswith(decode(tiny_vlm, ids[:kept]))
        whole += kept == int(ratio * (len(ids) - 1))
    assert 0 < whole < 39, "some of these cuts must fall inside a character, and some must not"
