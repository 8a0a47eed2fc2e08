"""A model's tokenizer and chat template as engines use them, and stop texts. Loads torch when first used, never on import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from mixpo.errors import SourceError
from mixpo.types import Message, Response

if TYPE_CHECKING:
    from PIL.Image import Image

    from mixpo.vlm.load import Vlm


class Codec(Protocol):
    """Text to token ids and back. `encode` appends an end-of-turn id, `decode` drops it."""

    def encode(self, text: str) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TokenCodec:
    """Tokenizer and chat template of a model, with or without its weights (see `mixpo.vlm.tokenizer_only`)."""

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a response, end of turn included. Raises SourceError for control tokens in it."""
        from mixpo.vlm.prompt import tokenize_response

        return tokenize_response(self._vlm, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response without control tokens."""
        from mixpo.vlm.prompt import decode

        return decode(self._vlm, ids)

    def prompt_text(self, prompt: str, history: Sequence[Message] = ()) -> str:
        """A prompt after its history in the chat template, with one placeholder per image, up to where the response begins."""
        from mixpo.vlm.prompt import render_prompt

        return render_prompt(self._vlm, prompt, history)

    def prompt_ids(self, prompt: str, images: Sequence[Image] = (), tiles: int = 0, history: Sequence[Message] = ()) -> tuple[int, ...]:
        """Ids of a prompt after its history, with as many image tokens as in training. tiles: as for `encode`."""
        from mixpo.vlm.prompt import encode

        return tuple(encode(self._vlm, prompt, images, history, tiles=tiles).ids.tolist())

    def tile_arguments(self, tiles: int) -> dict[str, int]:
        """The tile limit as a keyword argument of the processor; none for 0."""
        from mixpo.vlm.load import tile_setting

        return {tile_setting(self._vlm.processor): tiles} if tiles else {}

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Ids of rendered text: control tokens are parsed, the tokenizer's own first token is included."""
        return tuple(self._vlm.processor.tokenizer(text)["input_ids"])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end the model's turn."""
        return self._vlm.end_ids

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that are not part of a response's text, ends of turn included."""
        from mixpo.vlm.prompt import control_ids

        return control_ids(self._vlm)

    @cached_property
    def banned(self) -> tuple[int, ...]:
        """Ids that must not be sampled: image tokens first, then other control tokens except ends of turn."""
        from mixpo.vlm.prompt import image_token_ids

        images = image_token_ids(self._vlm)
        return tuple(sorted(self.control - set(self.end_ids), key=lambda token: (token not in images, token)))

    @cached_property
    def _largest_id(self) -> int:
        return int(max(self._vlm.processor.tokenizer.get_vocab().values()))

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether all ids are within the vocabulary. Larger ones decode to nothing, and a model may have no embedding for them."""
        return max(ids, default=0) <= self._largest_id

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """Texts of the control tokens; a tokenizer parses them anywhere in a text."""
        return tuple(filter(None, self._vlm.processor.tokenizer.convert_ids_to_tokens(sorted(self.control))))

    def holds_control(self, text: str, ids: Sequence[int] = ()) -> bool:
        """Whether a response contains a control token such as an image token; an end of turn may end `ids`."""
        inner = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        return not self.control.isdisjoint(inner) or any(name in text for name in self.control_texts)

    def decode_plain(self, ids: Sequence[int]) -> str:
        """Text of a response without any special token, also those that belong to it (`<ref>`)."""
        return str(self._vlm.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def response_ids(self, text: str, ended: bool) -> tuple[int, ...]:
        """Ids made from the text of a response, with an end of turn if it `ended`; empty if the text contains a control token."""
        try:
            ids = self.encode(text)
        except SourceError:
            return ()
        return ids if ended else ids[:-1]


def continues_control_token() -> SourceError:
    """What to raise for a continuation whose prefix contains a control token."""
    return SourceError("the prefix to continue contains an image token or another control token of the model", code="prefix-control-token")


def prompt_too_long(length: int, new: int, limit: int) -> SourceError:
    """What to raise for a prompt of `length` tokens that leaves no room for `new` ones."""
    return SourceError(
        f"a prompt of {length} tokens and up to {new} new ones do not fit into the model's {limit}; "
        "shorten the question, lower image.max_pixels or lower max_new_tokens",
        code="prompt-too-long",
    )


def stop_test(codec: Codec, stop: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """A test whether generated ids have just completed one of the texts. Decodes the last few ids only, so its cost is constant."""
    # A character takes at most four tokens; the text may begin inside one token and end inside another.
    window = 4 * max(map(len, stop)) + 2

    def ends(ids: Sequence[int]) -> bool:
        tail = codec.decode(ids[-window:])
        return any(text in tail for text in stop)

    return ends


def truncate_at_stop(response: Response, codec: TokenCodec, stop: Sequence[str]) -> Response:
    """The response up to the first stop text, retokenised; unchanged if it contains none.

    The prefix of a continuation is not searched.
    """
    prefix_text = codec.decode(response.token_ids[: response.prefix_len])
    ends = [at for text in stop if (at := response.text.find(text, len(prefix_text))) >= 0]
    if not ends:
        return response
    rest = response.text[len(prefix_text) : min(ends)]
    prefix = response.token_ids[: response.prefix_len]
    made = codec.response_ids(rest, ended=True)
    return replace(
        response,
        text=prefix_text + rest,
        token_ids=prefix + made if made else (),
        finish="stop",
        logprobs=(),
        prefix_len=len(prefix) if made else 0,
        retokenised=True,
    )
