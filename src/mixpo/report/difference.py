"""What differs between two texts, word by word. Knows nothing about HTML."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal, NamedTuple

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
# Scripts written without spaces are compared by character, everything else by word or mark; white space stays with what it follows.
_TOKEN = re.compile(rf"[{_CJK}]\s*|[^\W{_CJK}]+\s*|[^\w\s]\s*|\s+")

MAX_CELLS = 1_000_000
"""Product of the two lengths in words above which only the common beginning and end are found."""

Kind = Literal["kept", "same", "own"]


class Piece(NamedTuple):
    """A stretch of text: "kept" is the beginning that both share by construction, "same" is in both, "own" only in this one."""

    kind: Kind
    text: str


def words(text: str) -> list[str]:
    """Cut a text into words, marks and single CJK characters, each with the white space after it; joined again they are the text."""
    return _TOKEN.findall(text)


def difference(a: str, b: str, kept: bool = False) -> tuple[list[Piece], list[Piece]]:
    """The pieces of both texts. With `kept`, their common beginning is marked as kept rather than same."""
    left, right = words(a), words(b)
    head = _common(left, right)
    blocks = _matching(left[head:], right[head:])
    kind: Kind = "kept" if kept else "same"
    return (
        _pieces(left, head, kind, [(head + i, head + i + size) for i, _, size in blocks]),
        _pieces(right, head, kind, [(head + j, head + j + size) for _, j, size in blocks]),
    )


def _common(left: list[str], right: list[str]) -> int:
    return next((n for n, (x, y) in enumerate(zip(left, right, strict=False)) if x.strip() != y.strip()), min(len(left), len(right)))


def _matching(left: list[str], right: list[str]) -> list[tuple[int, int, int]]:
    """Aligned blocks (start in left, start in right, length), ending with an empty one at both ends."""
    if len(left) * len(right) <= MAX_CELLS:
        matcher = SequenceMatcher(None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False)
        return [(block.a, block.b, block.size) for block in matcher.get_matching_blocks()]
    tail = _common(left[::-1], right[::-1])
    return [(len(left) - tail, len(right) - tail, tail), (len(left), len(right), 0)]


def _pieces(tokens: list[str], head: int, kind: Kind, same: list[tuple[int, int]]) -> list[Piece]:
    pieces = [Piece(kind, "".join(tokens[:head]))]
    for (_, before), (start, end) in pairwise([(0, head), *same]):
        own = "".join(tokens[before:start])
        word = own.rstrip()
        pieces += [Piece("own", word), Piece("same", own[len(word) :] + "".join(tokens[start:end]))]
    return [piece for piece in pieces if piece.text]
