"""Conversations as other tools write them, as Messages. Raises SourceError with the reason a row is skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from mixpo.errors import SourceError
from mixpo.sources.build import described, short, whole
from mixpo.types import IMAGE_TOKEN, Message, Role

ROLES: dict[str, str] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    "system": "system",
}
"""Names of roles, in any case."""

KEYS = (("role", "content"), ("from", "value"))
"""Names of the two fields of a message."""

UNSPOKEN = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Fields of a message next to its content that a response would be without."""

IMAGE_PLACES = ("image", "path", "url", "image_url")
"""Fields of a part that may hold its image."""


def messages_of(
    value: object,
    what: str,
    role: Role = "user",
    keys: tuple[str, str] | None = None,
    roles: Mapping[str, str] = ROLES,
) -> tuple[list[Message], list[object]]:
    """The messages of a field, and the images that are written inside of them.

    value: text (one message of `role`), a message, or a list of messages. keys, roles: names of a file that has its own.
    """
    value = parsed(value)
    if isinstance(value, str):
        return [Message(role=role, text=value)], []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise SourceError(f"{what} must be text or a list of messages, not {described(value)}", code="preference-wrong-type")
    images: list[object] = []
    return [_message(one, what, images, keys, roles) for one in value], images


def parsed(value: object) -> object:
    """The messages of a text that is JSON of a list of them, as tables without nested types hold it; anything else as it is."""
    if not isinstance(value, str) or not value.startswith("[{"):
        return value
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return messages if all(isinstance(m, dict) and any(m.keys() >= set(keys) for keys in KEYS) for m in messages) else value


def _message(value: object, what: str, images: list[object], keys: tuple[str, str] | None, roles: Mapping[str, str]) -> Message:
    names = keys or next((names for names in KEYS if isinstance(value, dict) and names[0] in value), KEYS[0])
    if not isinstance(value, dict) or names[0] not in value or names[1] not in value:
        raise SourceError(f"{what} must hold messages with {names[0]} and {names[1]}, not {described(value)}", code="preference-wrong-type")
    role = roles.get(str(value[names[0]])) or roles.get(str(value[names[0]]).casefold())
    if role is None:
        raise SourceError(
            f"{what}: the role {str(value[names[0]])[:40]!r} is not supported (system, user, assistant)", code="preference-role"
        )
    if extra := next((name for name in UNSPOKEN if value.get(name)), ""):
        raise SourceError(f"{what}: a message has {extra}, which is not supported", code="preference-message-field", key=extra)
    return Message(role=cast(Role, role), text=_text(value[names[1]], what, images))


def _text(content: object, what: str, images: list[object]) -> str:
    """The text of a message, with `<image>` for each part that is an image."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SourceError(
            f"{what}: the content of a message must be text or a list of parts, not {described(content)}", code="preference-wrong-type"
        )
    pieces = []
    for part in content:
        fields = {name: inner for name, inner in part.items() if inner is not None} if isinstance(part, dict) else {}
        kind = fields.get("type") or next((name for name in ("image", "image_url", "text") if name in fields), None)
        if isinstance(part, str):
            pieces.append(part)
        elif kind == "text" and isinstance(fields.get("text"), str):
            pieces.append(fields["text"])
        elif kind in ("image", "image_url"):
            pieces.append(f"{IMAGE_TOKEN}\n")
            images.extend(_image_in(fields[name]) for name in IMAGE_PLACES if name in fields)
        else:
            raise SourceError(f"{what}: a part of type {short(kind)} is not supported (text, image)", code="preference-part")
    return "".join(pieces)


def _image_in(value: object) -> object:
    """The image of a part; OpenAI's form wraps its address in an object."""
    return value["url"] if isinstance(value, dict) and "url" in value else value


def history_of(value: object) -> list[object]:
    """The texts of earlier turns, from a list of [question, answer]."""
    turns = value or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise SourceError("history must be a list of [question, answer]", code="preference-wrong-type")
    return [text for turn in turns for text in turn]


def turns_in(texts: Sequence[object]) -> list[dict[str, object]]:
    """Texts of the user and the assistant in turn, as messages."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def checked_turns(prompt: Sequence[Message]) -> list[Message]:
    """The prompt as user and assistant turns in turn, after at most one system message; it ends with the user."""
    roles = [message.role for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        raise SourceError("the prompt has no user turn", code="preference-no-prompt")
    if turns[-1] != "user":
        raise SourceError("the prompt must end with a user turn, not with the assistant's", code="preference-turn-order")
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise SourceError(f"user and assistant turns must alternate, not {', '.join(roles)}", code="preference-turn-order")
    for message in prompt:
        whole(message.text, f"the {message.role} message")
    if not prompt[-1].text.replace(IMAGE_TOKEN, "").strip() and IMAGE_TOKEN not in prompt[-1].text:
        raise SourceError("the last user turn is empty", code="preference-no-prompt")
    return list(prompt)


@dataclass(frozen=True, slots=True)
class Turns:
    """The conversation of a source's row. images: those written inside of it. response: the assistant's turn that it ends with, or ""."""

    question: object
    history: tuple[Message, ...] = ()
    images: Sequence[object] = ()
    response: str = ""


def turns_of(row: Mapping[str, object]) -> Turns:
    """The question of a source's row with the messages before it.

    `messages` (or `conversations`) end with the user turn that is the question, with a response to it, or stand before a `question`.
    """
    value = row.get("messages") or row.get("conversations")
    if not value:
        return Turns(row.get("question"))
    messages, inline = messages_of(value, "messages")
    question = row.get("question")
    if question is None:
        response = messages.pop().text if len(messages) > 1 and messages[-1].role == "assistant" else ""
        *history, last = checked_turns(messages)
        return Turns(last.text, tuple(history), inline, response)
    checked_turns([*messages, Message(role="user", text=str(question))])
    return Turns(question, tuple(messages), inline)


def response_text(messages: Sequence[Message], what: str) -> str:
    """The text of the last message, which must be the assistant's."""
    if not messages or messages[-1].role != "assistant":
        last = f"the {messages[-1].role}'s" if messages else "nothing"
        raise SourceError(f"{what} must end with the assistant's turn, not with {last}", code="preference-turn-order")
    return messages[-1].text


def common_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """What two whole conversations share: all but their last turns, which alone may differ."""
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise SourceError(
            "chosen and rejected differ before their last turns; the preference must be about the last turn",
            code="preference-prompts-differ",
        )
    return list(chosen[:-1])


def split_last(chosen: object, rejected: object) -> tuple[str, str, str]:
    """What two texts begin with, up to a word's end, as the prompt, and the rest of both."""
    from rapidfuzz.distance import Prefix

    if not isinstance(chosen, str) or not isinstance(rejected, str):
        wrong = chosen if not isinstance(chosen, str) else rejected
        raise SourceError(f"chosen and rejected must be text or lists of messages, not {described(wrong)}", code="preference-wrong-type")
    begin = chosen[: Prefix.similarity(chosen, rejected)]
    begin = begin[: max(begin.rfind(" "), begin.rfind("\n")) + 1]
    if not begin.strip():
        raise SourceError("there is no prompt, and chosen and rejected do not begin with one", code="preference-no-prompt")
    return begin.rstrip(), chosen[len(begin) :], rejected[len(begin) :]
