"""From the choices of a server to responses with token ids, and whether N responses can be N samples. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixpo.engines.base import Request
from mixpo.engines.tokens import TokenCodec
from mixpo.types import Response

CHANCE = 1e-6
"""Identical responses with a smaller probability than this do not come from sampling."""
FEW = 4
"""Without log-probs, fewer identical responses than this prove nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One response as a server gave it.

    ids: the server's, or empty. logprobs: one per generated token, or empty. model: the server's name for it.
    """

    text: str
    stopped: bool
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    model: str = ""


def response_of(request: Request, slot: int, choice: Choice, codec: TokenCodec | None, engine: str) -> Response:
    """The response in one slot. Token ids are the server's if they decode to its text, else made from the text.

    Servers drop special tokens from the text, also those that belong to a response (`<ref>`), so text is decoded from the ids.
    """
    prefix = request.prefixes[slot] if request.prefixes else ()
    text, ids, retokenised = _read(choice, codec)
    begun = codec.decode(prefix) if codec is not None and prefix else ""
    return Response(
        question=request.key,
        index=request.indices[slot],
        text=begun + text,
        token_ids=prefix + ids if ids else (),
        finish="stop" if choice.stopped else "length",
        logprobs=choice.logprobs if len(choice.logprobs) == len(ids) and not retokenised else (),
        engine=engine,
        seed=request.seeds[slot],
        prefix_len=len(prefix) if ids else 0,
        retokenised=retokenised,
    )


def _read(choice: Choice, codec: TokenCodec | None) -> tuple[str, tuple[int, ...], bool]:
    """Text, ids, and whether the ids were made from the text."""
    if codec is None:
        return choice.text, (), False
    ids = choice.ids
    ended = bool(ids) and ids[-1] in codec.end_ids
    inner = ids[:-1] if ended else ids
    if ids and ended <= choice.stopped and codec.control.isdisjoint(inner) and ids_match_text(choice, codec):
        # llama.cpp omits the end of turn from its ids; everything before it is as sampled.
        end = (codec.response_ids("", ended=True)[-1],) if choice.stopped and not ended else ()
        return codec.decode(ids), (*ids, *end), False
    return choice.text, codec.response_ids(choice.text, choice.stopped), True


def ids_match_text(choice: Choice, codec: TokenCodec) -> bool:
    """Whether ids are the model's and decode to the text, with or without special tokens."""
    return codec.knows(choice.ids) and choice.text in (codec.decode(choice.ids), codec.decode_plain(choice.ids))


def improbably_identical(choices: Sequence[Choice], temperature: float) -> bool:
    """Whether all responses to a question are one text with a probability below CHANCE.

    Without log-probs the probability is unknown; then FEW identical responses are enough to sample again.
    """
    if temperature == 0 or len(choices) < 2 or len({choice.text for choice in choices}) > 1:
        return False
    logprobs = choices[0].logprobs
    if not logprobs:
        return len(choices) >= FEW
    return (len(choices) - 1) * sum(_tempered(value, temperature) for value in logprobs) < math.log(CHANCE)


def _tempered(logprob: float, temperature: float) -> float:
    """Approximate log-prob at `temperature` of a token with `logprob` at 1, as if there were only one other token."""
    rest = math.log(max(1e-300, -math.expm1(min(logprob, -1e-12))))
    own = logprob / temperature
    return own - max(own, rest / temperature) - math.log1p(math.exp(-abs(own - rest / temperature)))
