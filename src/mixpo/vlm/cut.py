"""Where to cut an answer that is to be completed without the image. Knows nothing about engines or correctness."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm

_HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def cut(vlm: Vlm, token_ids: Sequence[int], ratio: float) -> int:
    """How many leading tokens of an answer of `vlm` to keep; see `cut_tokens`."""
    from mixpo.vlm.prompt import decode

    return cut_tokens(token_ids, ratio, vlm.end_ids, lambda ids: decode(vlm, ids))


def cut_tokens(token_ids: Sequence[int], ratio: float, end_ids: Collection[int], decode: Callable[[Sequence[int]], str]) -> int:
    """The number of tokens that `ratio` of an answer keeps, end tokens not counted; 0 when no cut leaves a token on each side.

    Cuts between tokens, so it works for languages without spaces, and moves left where a token boundary lies inside a
    character (byte-level tokens split many Chinese characters): a half character is no text to continue.
    """
    length = len(token_ids)
    while length and token_ids[length - 1] in end_ids:
        length -= 1
    kept = min(int(ratio * length), length - 1)
    while kept > 0 and decode(token_ids[:kept]).endswith(_HALF_CHARACTER):
        kept -= 1
    return max(kept, 0)
