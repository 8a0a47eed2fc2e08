"""The one seam between mixpo and whatever writes answers. Knows nothing about correctness, pairs or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mixpo.records import Sampled
from mixpo.types import ImageRef

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token. stop: texts that end an answer and are no part of it."""

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Responses wanted for one question.

    key: the question's id. prompt: the user's message; `<image>` marks stand where images go and equal them in number.
    seeds: one per wanted response. indices: the `Response.index` of each.
    prefixes: for continuations, the token ids that each response starts with; empty for plain sampling.
    """

    key: str
    prompt: str
    images: tuple[ImageRef, ...]
    seeds: tuple[int, ...]
    indices: tuple[int, ...]
    prefixes: tuple[tuple[int, ...], ...] = ()


class Engine(Protocol):
    """Writes responses. One bad question is an `error` in its Sampled; an EngineError means nothing can go on."""

    name: str

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """One Sampled for each request, in the order of the requests; responses in the order of its seeds.

        A continuation's text and token_ids start with its prefix, and prefix_len says how long that is.
        An answer that ended at a text of `params.stop` is known as text alone: `retokenised`, with an end of turn.
        """

    def close(self) -> None:
        """Give back memory, processes and connections."""


class Keep:
    """Holds one thing at a time, since two models seldom fit beside each other."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._held: Any = None
        self._end: Callable[[Any], None] = lambda value: None

    def take(self, key: tuple[object, ...], open_it: Callable[[], Value], end: Callable[[Value], None]) -> Value:
        """What is held under `key`, opened now where something else is. end: how it is closed."""
        if self._held is None or self._key != key:
            self.close()
            self._held, self._key, self._end = open_it(), key, end
        held: Value = self._held
        return held

    def close(self) -> None:
        """Close what is held."""
        held, self._held = self._held, None
        if held is not None:
            self._end(held)
