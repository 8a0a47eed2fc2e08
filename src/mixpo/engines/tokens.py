"""What an engine outside of this process needs to know of the model's tokens. Loads torch when first used, never on import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from mixpo.errors import SourceError
from mixpo.types import Response

if TYPE_CHECKING:
    from PIL.Image import Image

    from mixpo.vlm.load import Vlm


class Codec(Protocol):
    """Text to token ids and back. `encode` ends with an end-of-turn id, `decode` leaves that out."""

    def encode(self, text: str) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Words:
    """The tokens and the chat template of a model, with or without its weights (see `mixpo.vlm.tokenizer_only`)."""

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of an answer, end of turn included. Raises SourceError for control tokens in it."""
        from mixpo.vlm.prompt import tokenize_response

        return tokenize_response(self._vlm, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids without control tokens."""
        from mixpo.vlm.prompt import decode

        return decode(self._vlm, ids)

    def prompt_text(self, prompt: str) -> str:
        """A prompt in the chat template, one sign for each image, ending where the answer begins."""
        from mixpo.vlm.prompt import render_prompt

        return render_prompt(self._vlm, prompt)

    def prompt_ids(self, prompt: str, images: Sequence[Image] = ()) -> tuple[int, ...]:
        """Ids of a prompt, one for each image token that training sees."""
        from mixpo.vlm.prompt import encode

        return tuple(encode(self._vlm, prompt, images).ids.tolist())

    def raw_ids(self, text: str) -> tuple[int, ...]:
        """Ids of text as it stands, control tokens read as such, the tokenizer's own beginning included."""
        return tuple(self._vlm.processor.tokenizer(text)["input_ids"])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end the model's turn."""
        return self._vlm.end_ids

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that are no part of an answer's text, ends of turn included."""
        from mixpo.vlm.prompt import control_ids

        return control_ids(self._vlm)

    @cached_property
    def banned(self) -> tuple[int, ...]:
        """Ids that must never be sampled: image tokens first, then the rest of the chat format, ends of turn excepted."""
        from mixpo.vlm.prompt import image_token_ids

        images = image_token_ids(self._vlm)
        return tuple(sorted(self.control - set(self.end_ids), key=lambda token: (token not in images, token)))

    @cached_property
    def _largest_id(self) -> int:
        return int(max(self._vlm.processor.tokenizer.get_vocab().values()))

    def has(self, ids: Sequence[int]) -> bool:
        """Whether the tokenizer may know all of these ids. Larger ones decode to nothing, and a model may have no row for them."""
        return max(ids, default=0) <= self._largest_id

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """How the control tokens are written: a tokenizer reads these texts as control tokens wherever they stand."""
        return tuple(filter(None, self._vlm.processor.tokenizer.convert_ids_to_tokens(sorted(self.control))))

    def holds_control(self, text: str, ids: Sequence[int] = ()) -> bool:
        """Whether an image token or another control token stands in a generated answer; an end of turn may end `ids`."""
        inner = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        return not self.control.isdisjoint(inner) or any(name in text for name in self.control_texts)

    def bare(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids without any special token, also without those that are words of an answer (`<ref>`)."""
        return str(self._vlm.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def answer_ids(self, text: str, ended: bool) -> tuple[int, ...]:
        """Ids made from the text of an answer, with the end of turn if it `ended`; none where a control token stands in it."""
        try:
            ids = self.encode(text)
        except SourceError:
            return ()
        return ids if ended else ids[:-1]


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
