"""Bodies of requests and what comes back, as plain values. Knows the protocol and its dialects; nothing about connections.

What a server sends is untrusted: every part is checked before it is used.
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
from mixpo.engines.tokens import Words
from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef

Dialect = Literal["negative", "zero", "generation_config", "plain", "bare"]
"""How a server takes the sampling fields outside of OpenAI's protocol: top_k switched off by -1 or by 0, inside transformers' own
`generation_config`, or not at all. "bare": no sampling field whatever, as models that reason before they answer want it."""

DIALECTS: tuple[Dialect, ...] = ("negative", "zero", "generation_config", "plain", "bare")
"""In the order in which they are tried; the last only for models whose answers are marked and never trained on."""

Route = Literal["ids", "prefix", "text", ""]
"""How an answer that has begun is continued: prompt ids, the assistant's message left open, rendered text, or not at all."""

ID_NAMES = ("token_ids", "response_token_ids", "output_ids")
"""Where the ids of an answer stand in the replies of vLLM, SGLang and LMDeploy."""
MOST_NAME = 100
"""Characters of a model's name that are kept."""
AS_THEY_ARE = {"PNG": "png", "JPEG": "jpeg"}
"""Formats that every server reads. Files in them are sent byte for byte when nothing has to be done to their pixels."""
BIAS = 100.0
"""The largest bias that OpenAI's protocol knows: with it a token is always drawn, with its negative never."""


class GarbledError(Exception):
    """What came back is no answer in this protocol; asking again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Everything usable in one reply. unusable: why each of the other choices was left out. prompt_tokens: -1 when not said."""

    choices: tuple[Choice, ...]
    unusable: tuple[str, ...] = ()
    prompt_tokens: int = -1


# --- out ---------------------------------------------------------------------------------------------------------------


def sampling(
    model: str, params: SamplingParams, n: int, seed: int, dialect: Dialect, ends: Sequence[int], bias: Mapping[int, float]
) -> dict[str, Any]:
    """Every field that decides an answer besides the prompt: none is left to what the server takes for its default.

    ends: ids that end a turn, for transformers' settings, which are replaced as a whole. bias: by token id, what is added to its logit.
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
        # 31 bits are what every server takes.
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


def user_turn(prompt: str, pictures: Sequence[str], mark: str) -> dict[str, Any]:
    """The user's message: `pictures` (data addresses) at the marks. A newline right after a mark goes, as in training."""
    parts = prompt.split(mark)
    content: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if number > 0:
            content.append({"type": "image_url", "image_url": {"url": pictures[number - 1]}})
            part = part.removeprefix("\n")
        if part:
            content.append({"type": "text", "text": part})
    return {"role": "user", "content": content if pictures else prompt}


def continuation(words: Words, route: Route, prompt: str, prefix: Sequence[int]) -> tuple[str, dict[str, Any], int]:
    """Path, body and the number of prompt tokens that the server must count when an answer that begins with `prefix` arrives whole."""
    if route == "ids":
        ids = [*words.prompt_ids(prompt), *prefix]
        return "/completions", {"prompt": ids}, len(ids)
    begun = words.decode(prefix)
    rendered = words.prompt_text(prompt) + begun
    if route == "text":
        return "/completions", {"prompt": rendered}, len(words.raw_ids(rendered))
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": begun}]
    body = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
    return "/chat/completions", body, len(words.raw_ids(rendered))


def address_of(ref: ImageRef, table: ImageTable) -> str:
    """A data address of the image within the limits of `table`. Raises ImageError as `open_image` does."""
    image = open_image(ref, table)
    content = Path(ref.path).read_bytes()
    with Image.open(BytesIO(content)) as header:
        upright = header.getexif().get(0x0112, 1) == 1
        plain = header.mode in ("RGB", "L") and header.size == image.size and upright and not header.has_transparency_data
        kind = AS_THEY_ARE.get(header.format or "")
    return data_address(content, kind) if plain and kind else data_address(png(image), "png")


def png(image: Image.Image) -> bytes:
    """Lossless, compressed little: most of the time goes there."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_address(content: bytes, kind: str) -> str:
    """The image in the address itself: no server has to read a file or fetch anything."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# --- in ----------------------------------------------------------------------------------------------------------------


def parse(reply: object, foreign: bool = False) -> Reply:
    """What a chat or text completion holds. Raises GarbledError when it is none.

    foreign: the answer is only marked, so reasoning may stand apart from it, and may have used up its length.
    """
    if not isinstance(reply, Mapping) or not isinstance(choices := reply.get("choices"), list):
        error = f" but an error: {short(reply['error'])}" if isinstance(reply, Mapping) and reply.get("error") else ""
        raise GarbledError(f"the reply holds no list of choices{error}")
    named = reply.get("model")
    model = "".join(filter(str.isprintable, named))[:MOST_NAME] if isinstance(named, str) else ""
    found = [_choice(choice, foreign, model) for choice in _in_order(choices)]
    usage = reply.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return Reply(
        choices=tuple(choice for choice in found if isinstance(choice, Choice)),
        unusable=tuple(why for why in found if isinstance(why, str)),
        prompt_tokens=count if isinstance(count, int) else -1,
    )


def _in_order(choices: Sequence[object]) -> Sequence[object]:
    """Choices by their index, so that the same answers are the same samples however they came; as they are where these are no numbers
    of their own."""
    numbers = [choice.get("index") if isinstance(choice, Mapping) else None for choice in choices]
    whole = [number for number in numbers if isinstance(number, int)]
    if len(set(whole)) < len(choices):
        return choices
    return [choices[at] for at in sorted(range(len(whole)), key=whole.__getitem__)]


def _choice(choice: object, foreign: bool, model: str) -> Choice | str:
    """The answer, or why it is none that can be used."""
    if not isinstance(choice, Mapping):
        raise GarbledError("a choice is no object")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if not foreign and isinstance(message, Mapping) and (message.get("reasoning_content") or message.get("reasoning")):
        raise GarbledError("the server takes the reasoning out of the answers; start it without a reasoning parser")
    if foreign and text is None and choice.get("finish_reason") == "length":
        text = ""
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        return f"finish_reason {short(finish)}"
    if not isinstance(text, str):
        return "no text" + (" but a call of a tool" if isinstance(message, Mapping) and message.get("tool_calls") else "")
    logprobs, ids = _logprobs(choice.get("logprobs"))
    given = next((choice[name] for name in ID_NAMES if choice.get(name)), None)
    if isinstance(given, list) and all(map(_is_id, given)):
        ids = tuple(given)
    return Choice(text=text, stopped=finish == "stop", ids=ids, logprobs=logprobs, model=model)


def _is_id(token: object) -> bool:
    return type(token) is int and 0 <= token < 2**31


def _logprobs(value: object) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Log-probs, and ids where the server puts them beside (llama.cpp); empty where it gives none."""
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


def short(value: object) -> str:
    """Something that a server sent, in one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())[:300]


def reason_of(status: int, body: bytes) -> str:
    """One short line out of an error's body."""
    text = short(body[:2000].decode(errors="replace"))
    return f"HTTP {status}: {text}" if text else f"HTTP {status}"
