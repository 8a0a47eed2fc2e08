"""From what a server wrote to responses with token ids, and whether N answers can be N samples. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixpo.engines.base import Request
from mixpo.engines.tokens import Words
from mixpo.types import Response

CHANCE = 1e-6
"""Answers that agree with a smaller chance than this do not come from sampling."""
FEW = 4
"""Fewer equal answers say nothing where the server gives no log-probs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer as it came.

    ids: as the server gave them, or empty. logprobs: one for each generated token, or empty. model: as the server names what answered.
    """

    text: str
    stopped: bool
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    model: str = ""


def response_of(request: Request, slot: int, choice: Choice, words: Words | None, engine: str) -> Response:
    """The answer of one slot. Ids are the server's where they decode to its text; else they are made from the text.

    Servers leave special tokens out of the text, also those that are words of an answer (`<ref>`), so text is read from ids.
    """
    prefix = request.prefixes[slot] if request.prefixes else ()
    text, ids, retokenised = _read(choice, words)
    begun = words.decode(prefix) if words is not None and prefix else ""
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


def _read(choice: Choice, words: Words | None) -> tuple[str, tuple[int, ...], bool]:
    """Text, ids, and whether these were made from the text."""
    if words is None:
        return choice.text, (), False
    ids = choice.ids
    ended = bool(ids) and ids[-1] in words.end_ids
    inner = ids[:-1] if ended else ids
    if ids and ended <= choice.stopped and words.control.isdisjoint(inner) and agree(choice, words):
        # Some servers (llama.cpp) leave the end of turn out of the ids they give; what comes before it is as it was sampled.
        end = (words.answer_ids("", ended=True)[-1],) if choice.stopped and not ended else ()
        return words.decode(ids), (*ids, *end), False
    return choice.text, words.answer_ids(choice.text, choice.stopped), True


def agree(choice: Choice, words: Words) -> bool:
    """Whether the ids of an answer are the model's and those of its text, in which special tokens may be left out."""
    return words.has(choice.ids) and choice.text in (words.decode(choice.ids), words.bare(choice.ids))


def suspicious(choices: Sequence[Choice], temperature: float) -> bool:
    """Whether all answers to a question are one text although the odds of that are beyond chance.

    With log-probs the odds are computed; without them four equal answers are enough to ask again.
    """
    if temperature == 0 or len(choices) < 2 or len({choice.text for choice in choices}) > 1:
        return False
    logprobs = choices[0].logprobs
    if not logprobs:
        return len(choices) >= FEW
    return (len(choices) - 1) * sum(_tempered(value, temperature) for value in logprobs) < math.log(CHANCE)


def _tempered(logprob: float, temperature: float) -> float:
    """About the log-prob at `temperature` of a token that has `logprob` at 1, as if there were only one other token."""
    rest = math.log(max(1e-300, -math.expm1(min(logprob, -1e-12))))
    own = logprob / temperature
    return own - max(own, rest / temperature) - math.log1p(math.exp(-abs(own - rest / temperature)))
