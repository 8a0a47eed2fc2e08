"""From a PreferenceRow to a Question and a Pair: the checks that all formats share. Raises SourceError with the reason to skip a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.sources.build import described, whole
from mixpo.sources.images import Pictures
from mixpo.types import IMAGE_TOKEN, ImageRef, Message, Pair, Question, content_id
from mixpo.verify.kinds import guess_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """One pair as its format gives it, not yet checked.

    prompt: the messages up to the last user turn. chosen, rejected: the two responses. images: one image or a list (path, bytes, Pillow,
    or {"bytes", "path"}), in the order of the `<image>` tokens; without tokens they go in front of the first user turn.
    """

    prompt: Sequence[Message]
    chosen: object
    rejected: object
    images: object = None
    answer: object = None
    domain: object = None


def build(row: PreferenceRow, pictures: Pictures, *, where: str, source: str, domain: str = "", repeat: int = 1) -> tuple[Question, Pair]:
    """The question and the pair of a row. source: name of the collection. repeat: how often one epoch trains on the pair."""
    chosen, rejected = response_of(row.chosen, "chosen"), response_of(row.rejected, "rejected")
    if chosen.strip() == rejected.strip():
        raise SourceError("chosen and rejected are the same text", code="preference-equal-sides")
    images = pictures.all(row.images)
    messages = _with_tokens(_checked(row.prompt), len(images))
    answer = whole(row.answer, "answer").strip() if isinstance(row.answer, str) else ""
    question = Question(
        id=question_id(messages, images),
        text=messages[-1].text,
        images=images,
        answer=answer or None,
        kind=guess_kind(answer, ()) if answer else "none",
        domain=whole(row.domain, "domain") if isinstance(row.domain, str) and row.domain else domain,
        source=source,
        history=tuple(messages[:-1]),
        verbatim=True,
    )
    pair = Pair(
        id=content_id("imported", question.id, chosen, rejected),
        question=question.id,
        chosen=chosen,
        rejected=rejected,
        origin="imported",
        provenance=where,
        repeat=repeat,
    )
    return question, pair


def question_id(messages: Sequence[Message], images: Sequence[ImageRef]) -> str:
    """Depends on the conversation and the bytes of its images alone, so that pairs of one question share a group."""
    return content_id("imported", [[message.role, message.text] for message in messages], [image.digest for image in images])


def response_of(value: object, what: str) -> str:
    """The text of a response. Raises SourceError for anything but text, and for blank text."""
    if not isinstance(value, str):
        raise SourceError(f"{what} must be text, not {described(value)}", code="preference-not-text")
    if not value.strip():
        raise SourceError(f"{what} is empty", code="preference-empty-side")
    return whole(value, what)


def _checked(prompt: Sequence[Message]) -> list[Message]:
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


def _with_tokens(messages: list[Message], images: int) -> list[Message]:
    """The messages with one `<image>` per image, each with one line break after it, as templates and other tools differ in it."""
    tokens = sum(message.text.count(IMAGE_TOKEN) for message in messages if message.role == "user")
    if tokens == 0 and images:
        first = next(number for number, message in enumerate(messages) if message.role == "user")
        messages[first] = replace(messages[first], text=f"{IMAGE_TOKEN}\n" * images + messages[first].text)
    elif tokens != images:
        raise SourceError(
            f"the prompt has {amount(tokens, f'{IMAGE_TOKEN} token')} but {amount(images, 'image')}", code="preference-image-count"
        )
    # The line break belongs to the token: formats that write images as parts do not have it.
    return [replace(m, text=re.sub(rf"{IMAGE_TOKEN}\n?", f"{IMAGE_TOKEN}\n", m.text)) if m.role == "user" else m for m in messages]
