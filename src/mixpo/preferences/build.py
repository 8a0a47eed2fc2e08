"""From a PreferenceRow to a Question and a Pair: the checks that all formats share. Raises SourceError with the reason to skip a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixpo.errors import SourceError
from mixpo.sources.build import described, whole, with_tokens
from mixpo.sources.images import Pictures
from mixpo.sources.messages import checked_turns
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
    messages = _canonical(checked_turns(row.prompt), len(images))
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


def _canonical(messages: Sequence[Message], images: int) -> list[Message]:
    """The messages with one `<image>` per image and one line break after each, as templates and other tools differ in it."""
    # The line break belongs to the token: formats that write images as parts do not have it.
    return [
        replace(m, text=re.sub(rf"{IMAGE_TOKEN}\n?", f"{IMAGE_TOKEN}\n", m.text)) if m.role == "user" else m
        for m in with_tokens(messages, images)
    ]
