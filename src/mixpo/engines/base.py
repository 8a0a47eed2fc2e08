"""The interface of engines: requests in, sampled responses out. Knows nothing about correctness, pairs or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mixpo.records import Sampled
from mixpo.types import ImageRef, Message

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token. stop: texts that end a response and are not part of it."""

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Responses wanted for one question.

    key: the question's id. prompt: the user's message, with one `<image>` placeholder per image. seeds: one per response.
    indices: the `Response.index` of each. prefixes: for continuations, the token ids that each response starts with; else empty.
    source, domain: of the question; they may decide the limits of its images. history: the messages before the prompt; `images` are in the
    order of the placeholders of both.
    """

    key: str
    prompt: str
    images: tuple[ImageRef, ...]
    seeds: tuple[int, ...]
    indices: tuple[int, ...]
    prefixes: tuple[tuple[int, ...], ...] = ()
    source: str = ""
    domain: str = ""
    history: tuple[Message, ...] = ()

    def slots_by_prefix(self) -> dict[tuple[int, ...], list[int]]:
        """The positions of the responses (0 for the first seed) by the prefix that they start with; all under () without prefixes."""
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot in range(len(self.seeds)):
            slots.setdefault(self.prefixes[slot] if self.prefixes else (), []).append(slot)
        return slots


def same_images(images: Sequence[ImageRef], names: Sequence[str]) -> bool:
    """Whether these are the images that a row of a file names: by digest, by path, or by the end of a path."""
    return len(images) == len(names) and all(
        name == image.digest or f"/{image.path}".endswith(f"/{name.removeprefix('./').removeprefix('/')}")
        for image, name in zip(images, names, strict=True)
    )


class Engine(Protocol):
    """Samples responses. A question that fails alone is an `error` in its Sampled; an EngineError stops the stage."""

    name: str

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """One Sampled per request, in order; its responses in the order of the seeds.

        Text and token_ids of a continuation start with its prefix of prefix_len tokens. A response that ended at a text of `params.stop`
        is `retokenised` from its text, with an end of turn.
        """

    def close(self) -> None:
        """Release memory, processes and connections."""


class SharedResource:
    """Single-slot holder for a server or model shared by consecutive stages; one at a time, since two seldom fit into memory."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._value: Any = None
        self._close: Callable[[Any], None] = lambda value: None

    def get(self, key: tuple[object, ...], open_value: Callable[[], Value], close: Callable[[Value], None]) -> Value:
        """The resource called `key`; opened now, after closing the current one, unless it is already there."""
        if self._value is None or self._key != key:
            self.close()
            self._value, self._key, self._close = open_value(), key, close
        value: Value = self._value
        return value

    def close(self) -> None:
        """Close the current resource, if any."""
        value, self._value = self._value, None
        if value is not None:
            self._close(value)
