"""Texts that end an answer, for engines that see tokens. Knows the model's tokens only through `Words`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mixpo.engines.tokens import Codec, Words
from mixpo.types import Response


def ending_at(words: Codec, stop: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """A test of generated ids: whether one of the texts has just been completed. Looks at the end only, so it costs the same
    however long the answer is."""
    # A character takes at most four tokens; one token more may have begun before the text and one end behind it.
    window = 4 * max(map(len, stop)) + 2

    def ends(ids: Sequence[int]) -> bool:
        tail = words.decode(ids[-window:])
        return any(text in tail for text in stop)

    return ends


def cut_at(response: Response, words: Words, stop: Sequence[str]) -> Response:
    """The response up to the first of the texts, as text alone; the same response where none of them was written.

    Only what was generated counts: a text in the given beginning of a continuation ends nothing.
    """
    begun = words.decode(response.token_ids[: response.prefix_len])
    found = [at for text in stop if (at := response.text.find(text, len(begun))) >= 0]
    if not found:
        return response
    rest = response.text[len(begun) : min(found)]
    prefix = response.token_ids[: response.prefix_len]
    made = words.answer_ids(rest, ended=True)
    return replace(
        response,
        text=begun + rest,
        token_ids=prefix + made if made else (),
        finish="stop",
        logprobs=(),
        prefix_len=len(prefix) if made else 0,
        retokenised=True,
    )
