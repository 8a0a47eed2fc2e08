"""LRU cache of encoded prompts with their pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Lock

from mixpo.errors import ModelError, SourceError
from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.types import Group, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, encode
from mixpo.vlm.trial import trial_prompt

CACHE_BYTES = 256 * 2**20
"""Size limit, pixels included; the least recently used entries are evicted first."""
MOST_LENGTHS = 8192
"""Lengths that are remembered, of prompts whose group does not say it."""

Key = tuple[str, str, int, int, int]
"""Question, prompt, and the limits of its images: equal questions of two sources may differ in these."""


class PromptCache:
    """Encodes prompts with their images, and caches them. images: limits, also by source and domain.

    Threads that ask for the same prompt wait for one of them to encode it.
    """

    def __init__(self, vlm: Vlm, images: ImageTable, max_bytes: int = CACHE_BYTES) -> None:
        self.vlm = vlm
        self.images = images
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Key, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._lengths: dict[Key, int] = {}
        self._lock, self._encoding = Lock(), dict[Key, Future[EncodedPrompt]]()

    def of(self, question: Question, prompt: str) -> EncodedPrompt:
        """The prompt of a question as model input. Raises SourceError, ImageError or ModelError naming the question."""
        key = self._key(question, prompt)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            other = self._encoding.get(key)
            if other is None:
                own = self._encoding[key] = Future()
        if other is not None:
            return other.result()
        try:
            own.set_result(self._encode(question, prompt))
        except BaseException as error:
            own.set_exception(error)
        with self._lock:
            del self._encoding[key]
            if own.exception() is None:
                self._keep(key, own.result())
        return own.result()

    def get(self, group: Group) -> EncodedPrompt:
        """The prompt of a group."""
        return self.of(group.question, group.prompt)

    def sample(self, groups: Iterable[Group]) -> EncodedPrompt | None:
        """The first prompt with an image; where there is none, that of `trial_prompt`."""
        pictured = next((group for group in groups if group.question.images), None)
        return self.get(pictured) if pictured is not None else trial_prompt(self.vlm)

    def length(self, group: Group) -> int:
        """Tokens of a group's prompt, image tokens included; encoded only where the group does not say it."""
        if group.prompt_tokens:
            return group.prompt_tokens
        key = self._key(group.question, group.prompt)
        known = self._lengths.get(key)
        return len(self.get(group)) if known is None else known

    def _key(self, question: Question, prompt: str) -> Key:
        limits = self.images.of(question)
        return question.id, prompt, limits.tiles, limits.min_pixels, limits.max_pixels

    def _encode(self, question: Question, prompt: str) -> EncodedPrompt:
        opened, limits = [], self.images.of(question)
        try:
            for image in question.images:
                opened.append(open_image(image, limits))
            return encode(self.vlm, prompt, opened, question.history, tiles=limits.tiles)
        except (SourceError, ModelError) as error:
            raise type(error)(f"question {question.id}: {error}", code=error.code, path=error.path, key=question.id) from error
        finally:
            for picture in opened:
                picture.close()

    def _keep(self, key: Key, encoded: EncodedPrompt) -> None:
        if len(self._lengths) >= MOST_LENGTHS:
            del self._lengths[next(iter(self._lengths))]
        self._lengths[key] = len(encoded)
        self._kept[key] = encoded
        self._bytes += _size(encoded)
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(encoded: EncodedPrompt) -> int:
    tensors = (encoded.ids, *encoded.features.values(), *encoded.token_types.values())
    return sum(tensor.nbytes for tensor in tensors)
