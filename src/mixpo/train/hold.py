"""What `train.loss.hold` needs of a group: the forks of its responses, and the log-probs of their tokens under the reference.

Log-probs are float16 in little-endian order: 2 bytes per token, with a relative error of at most 2^-11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Prefix

from mixpo.types import Group

STORED = np.dtype("<f2")
"""Type of a stored log-prob."""


class HeldResponse(NamedTuple):
    """The tokens of one response. reference: (tokens,) log pi_0, 0 where unknown. held: (tokens,) bool, False for forks."""

    reference: NDArray[Any]
    held: NDArray[Any]


def held_response(group: Group, number: int) -> HeldResponse:
    """Response `number` of a group; nothing is held in a group without forks, such as an SFT row."""
    length = len(group.responses[number])
    reference, held = np.zeros(length), np.zeros(length, dtype=bool)
    if group.forks is not None:
        held[:] = True
        held[list(group.forks[number])] = False
    if group.token_reference is not None:
        reference[:] = np.frombuffer(group.token_reference[number], STORED)
    return HeldResponse(reference, held)


def held_pairs(group: Group, pairs: Sequence[tuple[int, int]]) -> list[bool]:
    """For each of these pairs of a group whether its chosen response is held: not where it is a DropoutNTP pair."""
    dropout = {pair for pair, origin in zip(group.pairs, group.origins, strict=False) if origin == "dropout_ntp"}
    return [pair not in dropout for pair in pairs]


# --- forks -------------------------------------------------------------------------------------------------------------


def with_forks(group: Group) -> Group:
    """The group with the forks of all its pairs but DropoutNTP pairs, whose two sides part wherever the response was cut.

    A fork is a token that continues a beginning after which the two sides of some pair differ, also where that beginning is the prompt
    alone. Every response with this beginning has a fork there, whatever its token: the pair moves the probabilities of all of them.
    """
    forks: list[set[int]] = [set() for _ in group.responses]
    for (chosen, rejected), held in zip(group.pairs, held_pairs(group, group.pairs), strict=True):
        first, second = group.responses[chosen], group.responses[rejected]
        place = Prefix.similarity(first, second)
        for number, response in enumerate(group.responses) if held else ():
            if len(response) > place and response[:place] == first[:place]:
                forks[number].add(place)
    return replace(group, forks=tuple(tuple(sorted(places)) for places in forks))


# --- storage -----------------------------------------------------------------------------------------------------------


def encode(logps: NDArray[Any]) -> bytes:
    """The log-probs of one response's tokens, as stored."""
    return logps.clip(min=np.finfo(STORED).min).astype(STORED).tobytes()


def pack(responses: Sequence[tuple[int, ...]], encoded: Sequence[bytes]) -> bytes:
    """The encoded log-probs of responses to one prompt, with common beginnings once."""
    return b"".join(encoded[number][shared * STORED.itemsize :] for number, _, shared in _shared(responses))


def unpack(responses: Sequence[tuple[int, ...]], packed: bytes) -> tuple[bytes, ...]:
    """The encoded log-probs of each response, as given to `pack`."""
    encoded, start = [b""] * len(responses), 0
    for number, before, shared in _shared(responses):
        end = start + (len(responses[number]) - shared) * STORED.itemsize
        encoded[number] = encoded[before][: shared * STORED.itemsize] + packed[start:end]
        start = end
    return tuple(encoded)


def _shared(responses: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, int, int]]:
    """Each response in sorted order: its number, that of the one before, and how many tokens they have in common."""
    order = sorted(range(len(responses)), key=lambda number: responses[number])
    yield from ((number, number, 0) for number in order[:1])
    for before, number in pairwise(order):
        yield number, before, Prefix.similarity(responses[before], responses[number])
