"""Encodes text with `<image>` placeholders and pixels into token ids and vision features; decodes ids.

User text is untrusted: it can never produce control tokens of the model. T tokens of one prompt, B rows, L tokens of the longest row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from mixpo.errors import ModelError, SourceError, first_line
from mixpo.plural import amount
from mixpo.types import IMAGE_TOKEN, Message
from mixpo.vlm.image_tokens import check_image_tokens
from mixpo.vlm.load import Vlm, tiles_limited
from mixpo.vlm.vetting_worker import MAX_CHARACTERS

Value = TypeVar("Value")

_PROCESSING = Lock()
"""Held while a processor works: inputs are prepared in several threads, and a processor has settings that its calls change."""
_WORDS_OF_ANSWERS = re.compile(r"(?<![a-z])(ref|box|quad|point|think|answer)(?![a-z])")
"""Special tokens with these names (such as `<ref>`, `<|box_start|>`) are response text, not chat format."""

_TOKEN_NAMES = ("image_token", "start_image_token", "end_image_token", "context_image_token", "boi_token", "eoi_token", "video_token")


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as model input, on the CPU. ids: (T,) int64, up to where the response begins.

    features: inputs of the vision tower (pixel_values, image_grid_thw, ...); empty without images.
    token_types: further per-token inputs of some families (mm_token_type_ids, token_type_ids, ...), each (T,); see `next_token_type`.
    images: how many the prompt has.
    """

    ids: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    token_types: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def encode(vlm: Vlm, prompt: str, images: Sequence[Image], history: Sequence[Message] = (), *, tiles: int = 0) -> EncodedPrompt:
    """Encode `prompt` as the last user turn of the chat template, after the messages of `history`.

    Each `<image>` placeholder of history and prompt, in this order, stands for one image. tiles: the most tiles of an image; 0 for the
    setting of the processor.

    A newline right after a placeholder is removed, because the template adds its own. Raises SourceError when placeholders and images
    differ in number, the text contains a control token or the processor rejects an image; ModelError when the number of image tokens
    does not match the model's vision features.
    """
    placeholders = sum(text.count(IMAGE_TOKEN) for text in (*(m.text for m in history if m.role == "user"), prompt))
    if placeholders != len(images):
        raise SourceError(
            f"the prompt has {amount(placeholders, f'{IMAGE_TOKEN} placeholder')} for {amount(len(images), 'image')}; "
            "give one placeholder to each image",
            code="image-count-mismatch",
        )
    text = render_prompt(vlm, prompt, history)
    if images and not any(token in text for token in vlm.processor.tokenizer.convert_ids_to_tokens(sorted(image_token_ids(vlm)))):
        raise ModelError(
            f"{vlm.folder}: the chat template writes no image token; use the template of the model's family",
            code="template-without-image-token",
            path=vlm.folder,
        )
    with _PROCESSING, tiles_limited(vlm.processor, tiles if images else 0):
        inputs = _process(vlm, text, images)
    ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask", None)
    token_types = {name: inputs.pop(name)[0] for name in list(inputs) if _is_per_token(name, inputs[name], len(ids))}
    for name, values in token_types.items():
        _check_token_type(vlm, name, values, ids)
    check_image_tokens(vlm, ids, inputs, len(images))
    return EncodedPrompt(ids, inputs, token_types, len(images))


def without_images(prompt: str) -> str:
    """The prompt without `<image>` placeholders and the newline after each."""
    return re.sub(rf"{re.escape(IMAGE_TOKEN)}\n?", "", prompt)


def render_prompt(vlm: Vlm, prompt: str, history: Sequence[Message] = ()) -> str:
    """History and prompt in the chat template as text, with the template's own image tokens, up to where the response begins.

    Raises SourceError when a message contains a control token, ModelError when the template refuses the turns or drops one.
    """
    turns = []
    for message in (*history, Message(role="user", text=prompt)):
        parts = message.text.split(IMAGE_TOKEN) if message.role == "user" else [message.text]
        for part in parts:
            _refuse_control(vlm, part)
        turns.append({"role": message.role, "content": _content(parts)})
    text = render_turns(vlm, turns, answer_follows=True)
    for message in history:
        if message.role != "user" and message.text.strip() not in text:
            raise ModelError(
                f"{vlm.folder}: the chat template drops the {message.role} message; use the template of the model's family",
                code="template-drops-message",
                path=vlm.folder,
            )
    return text


def tokenize_response(vlm: Vlm, text: str) -> tuple[int, ...]:
    """Ids of a response given as text, end-of-turn token included. Raises SourceError for control tokens in it."""
    _refuse_control(vlm, text)
    return (*vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"], turn_end_id(vlm))


def decode(vlm: Vlm, ids: Sequence[int]) -> str:
    """Text of generated ids, without control tokens; special tokens of responses (`<ref>`, `<think>`) are kept."""
    control = control_ids(vlm)
    kept = [token for token in ids if token not in control]
    return str(vlm.processor.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


# --- the vocabulary ---------------------------------------------------------------------------------------


def _cached(question: Callable[[Vlm], Value]) -> Callable[[Vlm], Value]:
    """Compute once per Vlm and store the value in it (a global cache would keep models in memory)."""

    @wraps(question)
    def answer(vlm: Vlm) -> Value:
        if question.__name__ not in vlm.cache:
            vlm.cache[question.__name__] = question(vlm)
        value: Value = vlm.cache[question.__name__]
        return value

    return answer


@_cached
def image_token_ids(vlm: Vlm) -> frozenset[int]:
    """Ids of image and video tokens and their delimiters; never sampled, not allowed in text."""
    processor, tokenizer, config = vlm.processor, vlm.processor.tokenizer, vlm.model.config
    candidates: set[Any] = {getattr(config, "image_token_index", None), getattr(config, "video_token_index", None)}
    candidates |= {getattr(config, f"{kind}_token_id", None) for kind in ("image", "video", "vision_start", "vision_end", "boi", "eoi")}
    for name in _TOKEN_NAMES:
        for owner in (processor, tokenizer):
            candidates.add(getattr(owner, f"{name}_id", None))
            if isinstance(token := getattr(owner, name, None), str):
                candidates.add(tokenizer.get_vocab().get(token))
    return frozenset(int(token) for token in candidates if isinstance(token, int) and 0 <= token < len(tokenizer))


@_cached
def control_ids(vlm: Vlm) -> frozenset[int]:
    """Ids of the chat format: image tokens, end-of-turn tokens, and all special tokens except those of responses."""
    added = vlm.processor.tokenizer.added_tokens_decoder.items()
    special = {int(token) for token, entry in added if entry.special and not _WORDS_OF_ANSWERS.search(entry.content.lower())}
    return frozenset(special | image_token_ids(vlm) | set(vlm.end_ids))


@_cached
def banned_ids(vlm: Vlm) -> Tensor:
    """(V,) bool on the model's device: ids that are never sampled, i.e. control tokens except end-of-turn, and unused rows of the head."""
    banned = torch.zeros(vlm.model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
    banned[[token for token in control_ids(vlm) if token not in vlm.end_ids]] = True
    banned[max(vlm.processor.tokenizer.get_vocab().values()) + 1 :] = True
    return banned.to(vlm.device)


@_cached
def turn_end_id(vlm: Vlm) -> int:
    """The end-of-turn id that the chat template adds to a response."""
    turns = [{"role": role, "content": _content(["x"])} for role in ("user", "assistant")]
    ids = vlm.processor.tokenizer(render_turns(vlm, turns, answer_follows=False), add_special_tokens=False)["input_ids"]
    return int(next((token for token in reversed(ids) if token in vlm.end_ids), vlm.end_ids[0]))


def context_limit(vlm: Vlm) -> int:
    """Context length of the model: the most tokens of prompt and response."""
    return int(getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


# --- parts ------------------------------------------------------------------------------------------------------------


def _refuse_control(vlm: Vlm, text: str) -> None:
    """Raise SourceError when `text` contains a control token: a question must not end its own turn."""
    tokenizer, control = vlm.processor.tokenizer, control_ids(vlm)
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token in control:
            raise SourceError(
                f"the text holds {tokenizer.convert_ids_to_tokens(token)!r}, a control token of the model; remove it",
                code="control-token-in-text",
            )


def _content(parts: Sequence[str]) -> list[dict[str, str]]:
    content: list[dict[str, str]] = []
    for number, part in enumerate(parts):
        if number > 0:
            content.append({"type": "image"})
            part = part.removeprefix("\n")
        if part:
            content.append({"type": "text", "text": part})
    return content


def render_turns(vlm: Vlm, turns: list[dict[str, Any]], answer_follows: bool) -> str:
    """A conversation in the chat template. Raises ModelError when the template refuses it or writes far more than it was given."""
    try:
        text = str(vlm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_follows))
    except Exception as error:  # a template raises whatever its expressions raise
        raise ModelError(
            f"{vlm.folder}: the chat template refuses the conversation ({first_line(error)}); use the template of the model's family",
            code="template-refuses-turn",
            path=vlm.folder,
        ) from None
    if len(text) > MAX_CHARACTERS + 10 * sum(len(str(turn)) for turn in turns):
        raise ModelError(
            f"{vlm.folder}: the chat template writes {len(text):,} characters for a short conversation; use that of the model's family",
            code="template-too-long",
            path=vlm.folder,
        )
    return text


def _process(vlm: Vlm, text: str, images: Sequence[Image]) -> dict[str, Tensor]:
    bos = vlm.processor.tokenizer.bos_token
    extra = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    try:
        batch = vlm.processor(text=[text], images=[list(images)] if images else None, return_tensors="pt", **extra)
    except Exception as error:  # the processor's settings come from the model folder and make it raise anything
        raise SourceError(f"the model's processor refuses this question: {first_line(error)}", code="processor-refuses-question") from error
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{type(vlm.processor).__name__} gives {name} in an unknown form; this family is not supported",
                code="processor-output-unknown",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{vlm.folder}: the processor makes {name} NaN or infinite; check image_mean, image_std and rescale_factor in its "
                "preprocessor_config.json",
                code="processor-output-not-finite",
                path=vlm.folder,
            )
    return dict(batch)


def _is_per_token(name: str, value: Tensor, length: int) -> bool:
    """Whether an input has a value for each of `length` tokens. Pixels have four axes or more; a grid or size has few entries."""
    return "pixel" not in name and length in value.shape[1:] and (value.shape[0] == 1 or name == "position_ids")


def _check_token_type(vlm: Vlm, name: str, values: Tensor, ids: Tensor) -> None:
    """Raise ModelError for a per-token input that cannot be extended to a response: only one that is equal for all text tokens can be."""
    if values.shape == ids.shape and not values.is_floating_point():
        text = values[~torch.isin(ids, torch.tensor(sorted(image_token_ids(vlm)), dtype=ids.dtype))]
        if len(text) == 0 or bool((text == text[-1]).all()):
            return
    raise ModelError(
        f"{vlm.model.config.model_type}: the processor gives {name}, which mixpo cannot extend from a prompt to its response; "
        "this family is not supported",
        code="token-input-unknown",
        key=name,
    )
