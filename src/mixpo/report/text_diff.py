"""What differs between two texts, word by word. Knows nothing about HTML."""

from __future__ import annotations

import re
from bisect import bisect_left
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from rapidfuzz.distance import Prefix

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
# Scripts written without spaces are compared by character, everything else by word or mark; white space stays with what it follows.
_TOKEN = re.compile(rf"[{_CJK}]\s*|[^\W{_CJK}]+\s*|[^\w\s]\s*|\s+")

MAX_CELLS = 1_000_000
"""Product of the two word counts up to which every word is compared with every other."""
SHINGLE = 6
"""Words in a row that hold two longer texts together where they stand once in each."""

Kind = Literal["kept", "same", "own"]


class DiffSpan(NamedTuple):
    """A stretch of text: "kept" is the beginning that both share by construction, "same" is in both, "own" only in this one."""

    kind: Kind
    text: str


def words(text: str) -> list[str]:
    """Cut a text into words, marks and single CJK characters, each with the white space after it; joined again they are the text."""
    return _TOKEN.findall(text)


def difference(a: str, b: str, kept: bool = False) -> tuple[list[DiffSpan], list[DiffSpan]]:
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
    """Words at the beginning of both, white space aside."""
    return Prefix.similarity([word.strip() for word in left], [word.strip() for word in right])


def _matching(left: list[str], right: list[str]) -> list[tuple[int, int, int]]:
    """Aligned blocks (start in left, start in right, length), ending with an empty one at both ends."""
    return [*_aligned([w.strip() for w in left], [w.strip() for w in right], MAX_CELLS), (len(left), len(right), 0)]


def _aligned(left: list[str], right: list[str], cells: int) -> list[tuple[int, int, int]]:
    """As `_matching` of words without white space. Long texts are cut where they surely agree; stretches between are compared alone."""
    if len(left) * len(right) <= cells:
        matcher = SequenceMatcher(None, left, right, autojunk=False)
        return [(block.a, block.b, block.size) for block in matcher.get_matching_blocks()]
    anchors = _anchors(left, right)
    if not anchors:
        tail = _common(left[::-1], right[::-1])
        return [(len(left) - tail, len(right) - tail, tail)]
    blocks, i, j = [], 0, 0
    for k, m in [*anchors, (len(left), len(right))]:
        # Many long stretches may follow each other, so each gets less time than one alone.
        blocks += [(i + a, j + b, size) for a, b, size in _aligned(left[i:k], right[j:m], cells // 16)]
        blocks.append((k, m, int(k < len(left))))
        i, j = k + 1, m + 1
    return blocks


def _anchors(left: list[str], right: list[str]) -> list[tuple[int, int]]:
    """Where shingles begin that stand once in each text: as many as are in the same order in both (patience sorting)."""
    here, there = _single(left), _single(right)
    shared = sorted((at, there[shingle]) for shingle, at in here.items() if shingle in there)
    ends: list[int] = []  # ends[n]: the smallest place in the right text at which n + 1 anchors in order end
    before: list[int] = []  # for each shared one, how many come before it
    for _, place in shared:
        number = bisect_left(ends, place)
        ends[number : number + 1] = [place]
        before.append(number)
    kept, wanted, limit = [], len(ends) - 1, len(right)
    for (at, place), number in zip(reversed(shared), reversed(before), strict=True):
        if number == wanted and place < limit:
            kept.append((at, place))
            wanted, limit = wanted - 1, place
    return kept[::-1]


def _single(words_: list[str]) -> dict[tuple[str, ...], int]:
    """The shingles that stand once in a text, with their place."""
    places: dict[tuple[str, ...], int] = {}
    for at, shingle in enumerate(zip(*(words_[n:] for n in range(SHINGLE)), strict=False)):
        places[shingle] = -1 if shingle in places else at
    return {shingle: at for shingle, at in places.items() if at >= 0}


def _pieces(tokens: list[str], head: int, kind: Kind, same: list[tuple[int, int]]) -> list[DiffSpan]:
    pieces = [DiffSpan(kind, "".join(tokens[:head]))]
    for (_, before), (start, end) in pairwise([(0, head), *same]):
        own = "".join(tokens[before:start])
        word = own.rstrip()
        pieces += [DiffSpan("own", word), DiffSpan("same", own[len(word) :] + "".join(tokens[start:end]))]
    whole = groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.kind)
    return [DiffSpan(kind, "".join(piece.text for piece in group)) for kind, group in whole]
