"""Request bodies and replies as plain values: OpenAI's protocol and its dialects. Knows nothing about connections.

Replies are untrusted: every part is checked before it is used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mixpo.engines.base import SamplingParams
from mixpo.engines.responses import Choice
from mixpo.engines.tokens import TokenCodec
from mixpo.images import ORIENTATION, open_image
from mixpo.recipe import ImageTable
from mixpo.types import IMAGE_TOKEN, ImageRef, Message

Dialect = Literal["negative", "zero", "generation_config", "plain", "bare"]
"""How a server takes sampling fields beyond OpenAI's protocol: top_k off as -1 or as 0, inside transformers' `generation_config`, or
not at all. "bare": no sampling fields, as reasoning models of commercial endpoints require."""

DIALECTS: tuple[Dialect, ...] = ("negative", "zero", "generation_config", "plain", "bare")
"""In the order in which they are tried; the last one only for models that are evaluated and never trained on."""

Route = Literal["ids", "prefix", "text", ""]
"""How a prefix is continued: prompt ids, an open assistant turn, rendered text, or not at all."""

ID_NAMES = ("token_ids", "response_token_ids", "output_ids")
"""Fields with token ids in replies of vLLM, SGLang and LMDeploy."""
MAX_MODEL_NAME = 100
"""Characters of a model's name that are kept."""
SENT_UNCHANGED = {"PNG": "png", "JPEG": "jpeg"}
"""Formats that every server reads; files are sent byte for byte unless their pixels have to change."""
BIAS = 100.0
"""Largest logit bias of OpenAI's protocol: forces a token; its negative bans one."""


class InvalidReplyError(Exception):
    """The reply does not follow the protocol; a retry may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The usable choices of a reply. unusable: why others were dropped. prompt_tokens: -1 when not reported."""

    choices: tuple[Choice, ...]
    unusable: tuple[str, ...] = ()
    prompt_tokens: int = -1


# --- requests -----------------------------------------------------------------------------------------------------------


def sampling_body(
    model: str, params: SamplingParams, n: int, seed: int, dialect: Dialect, ends: Sequence[int], bias: Mapping[int, float]
) -> dict[str, Any]:
    """All sampling fields of a request, so that no default of the server applies.

    ends: end-of-turn ids, for transformers' `generation_config`, which is replaced as a whole. bias: token id to logit bias.
    """
    stop = {"stop": list(params.stop)} if params.stop else {}
    if dialect == "bare":
        return {"model": model, "max_completion_tokens": params.max_new_tokens, "stream": False, **({"n": n} if n > 1 else {}), **stop}
    body: dict[str, Any] = {
        "model": model,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_new_tokens,
        "n": n,
        # Every server takes 31 bits.
        "seed": seed % 2**31,
        "stream": False,
        **stop,
    }
    if dialect == "generation_config":
        return body | {"generation_config": _transformers(params, ends, bias)}
    if bias:
        body["logit_bias"] = {str(token): value for token, value in bias.items()}
    if dialect != "plain":
        off = -1 if dialect == "negative" else 0
        body |= {"top_k": params.top_k or off, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
        body |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True}
    return body


def _transformers(params: SamplingParams, ends: Sequence[int], bias: Mapping[int, float]) -> str:
    settings = {"do_sample": params.temperature > 0, "temperature": params.temperature or 1.0, "top_k": params.top_k, "top_p": params.top_p}
    kept = {"sequence_bias": [[[token], value] for token, value in bias.items()]} if bias else {}
    return json.dumps({**settings, **kept, "eos_token_id": list(ends), "pad_token_id": ends[0] if ends else None})


def user_message(prompt: str, images: Sequence[str], placeholder: str) -> dict[str, Any]:
    """The user's message with `images` (data URLs) at the placeholders. A newline right after a placeholder is dropped, as in training."""
    parts = prompt.split(placeholder)
    content: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if number > 0:
            content.append({"type": "image_url", "image_url": {"url": images[number - 1]}})
            part = part.removeprefix("\n")
        if part:
            content.append({"type": "text", "text": part})
    return {"role": "user", "content": content if images else prompt}


def conversation(history: Sequence[Message], prompt: str, images: Sequence[str], placeholder: str) -> list[dict[str, Any]]:
    """The messages of `history` and the prompt, with `images` (data URLs) at the placeholders of the user's messages, in order."""
    turns, rest = [], list(images)
    for message in (*history, Message(role="user", text=prompt)):
        if message.role != "user":
            turns.append({"role": message.role, "content": message.text})
            continue
        count = message.text.count(placeholder)
        turns.append(user_message(message.text, rest[:count], placeholder))
        del rest[:count]
    return turns


def continuation_body(
    codec: TokenCodec,
    route: Route,
    prompt: str,
    prefix: Sequence[int],
    history: Sequence[Message] = (),
    images: Sequence[str] = (),
    image_tokens: int = 0,
) -> tuple[str, dict[str, Any], int]:
    """Path and body that continue `prefix`, and the prompt tokens that the server must report if it received all of it.

    images: data URLs, which only the route "prefix" takes. image_tokens: by how much they make the prompt longer than its text.
    """
    if route == "ids":
        ids = [*codec.prompt_ids(prompt, history=history), *prefix]
        return "/completions", {"prompt": ids}, len(ids)
    begun = codec.decode(prefix)
    rendered = codec.prompt_text(prompt, history) + begun
    if route == "text":
        return "/completions", {"prompt": rendered}, len(codec.encode_raw(rendered))
    turns = [*conversation(history, prompt, images, IMAGE_TOKEN), {"role": "assistant", "content": begun}]
    body = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
    return "/chat/completions", body, len(codec.encode_raw(rendered)) + image_tokens


def image_url(ref: ImageRef, table: ImageTable) -> str:
    """A data URL with the pixels that training sees, within the limits of `table`. Raises ImageError as `open_image` does."""
    image = open_image(ref, table)
    content = Path(ref.path).read_bytes()
    with Image.open(BytesIO(content)) as header:
        upright = header.getexif().get(ORIENTATION, 1) == 1
        plain = header.mode in ("RGB", "L") and header.size == image.size and upright and not header.has_transparency_data
        kind = SENT_UNCHANGED.get(header.format or "")
    return data_url(content, kind) if plain and kind else data_url(encode_png(image), "png")


def encode_png(image: Image.Image) -> bytes:
    """Lossless, with the fastest compression, which dominates the time."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """The image inside the URL: no server has to read a file or fetch anything."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# --- replies ------------------------------------------------------------------------------------------------------------


def parse_completion(reply: object, eval_only: bool = False) -> Completion:
    """A chat or text completion. Raises InvalidReplyError when it is none.

    eval_only: the response is only graded, so its reasoning may come separately and may use up the length limit.
    """
    if not isinstance(reply, Mapping) or not isinstance(choices := reply.get("choices"), list):
        error = f" but an error: {one_line(reply['error'])}" if isinstance(reply, Mapping) and reply.get("error") else ""
        raise InvalidReplyError(f"the reply has no list of choices{error}")
    named = reply.get("model")
    model = "".join(filter(str.isprintable, named))[:MAX_MODEL_NAME] if isinstance(named, str) else ""
    parsed = [_choice(choice, eval_only, model) for choice in _in_order(choices)]
    usage = reply.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return Completion(
        choices=tuple(choice for choice in parsed if isinstance(choice, Choice)),
        unusable=tuple(why for why in parsed if isinstance(why, str)),
        prompt_tokens=count if isinstance(count, int) else -1,
    )


def _in_order(choices: Sequence[object]) -> Sequence[object]:
    """Choices sorted by index, so that equal replies give equal samples in any order; unsorted where indices are missing or repeated."""
    numbers = [choice.get("index") if isinstance(choice, Mapping) else None for choice in choices]
    whole = [number for number in numbers if isinstance(number, int)]
    if len(set(whole)) < len(choices):
        return choices
    return [choices[at] for at in sorted(range(len(whole)), key=whole.__getitem__)]


def _choice(choice: object, eval_only: bool, model: str) -> Choice | str:
    """The choice, or why it cannot be used."""
    if not isinstance(choice, Mapping):
        raise InvalidReplyError("a choice is no object")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if not eval_only and isinstance(message, Mapping) and (message.get("reasoning_content") or message.get("reasoning")):
        raise InvalidReplyError("the server takes the reasoning out of the answers; start it without a reasoning parser")
    if eval_only and text is None and choice.get("finish_reason") == "length":
        text = ""
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        return f"finish_reason {one_line(finish)}"
    if not isinstance(text, str):
        return "no text" + (" but a tool call" if isinstance(message, Mapping) and message.get("tool_calls") else "")
    logprobs, ids = _logprobs(choice.get("logprobs"))
    given = next((choice[name] for name in ID_NAMES if choice.get(name)), None)
    if isinstance(given, list) and all(map(_is_id, given)):
        ids = tuple(given)
    return Choice(text=text, stopped=finish == "stop", ids=ids, logprobs=logprobs, model=model)


def _is_id(token: object) -> bool:
    return type(token) is int and 0 <= token < 2**31


def _logprobs(value: object) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Log-probs, and token ids where the server adds them (llama.cpp); empty where there are none."""
    if not isinstance(value, Mapping):
        return (), ()
    if isinstance(entries := value.get("content"), list):
        entries = [entry for entry in entries if isinstance(entry, Mapping)]
        numbers = [entry.get("logprob") for entry in entries]
        ids = [entry.get("id") for entry in entries]
    else:
        listed = value.get("token_logprobs")
        numbers, ids = listed if isinstance(listed, list) else [], []
    if not numbers or not all(isinstance(number, (int, float)) for number in numbers):
        return (), ()
    known = all(map(_is_id, ids))
    return tuple(float(number) for number in numbers if number is not None), tuple(ids) if known else ()


def one_line(value: object) -> str:
    """A value from a server as one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())[:300]


def error_reason(status: int, body: str) -> str:
    """Status and body of an error as one short line."""
    text = one_line(body[:2000])
    return f"HTTP {status}: {text}" if text else f"HTTP {status}"
