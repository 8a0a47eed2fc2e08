"""The frozen values that pass between stages. Pure data: no file formats, no tensors, no behaviour beyond identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

AnswerKind = Literal["choice", "number", "formula", "text", "yes_no", "none"]
Finish = Literal["stop", "length", "error"]
Outcome = Literal["correct", "wrong", "malformed", "undecided"]
Origin = Literal["correctness", "format", "dropout_ntp"]

IMAGE_TOKEN = "<image>"
"""Where an image stands inside a question's text (the MMPR convention)."""


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_id(*parts: object) -> str:
    """A 16-digit hexadecimal name that depends on the content of `parts` alone (JSON-serialisable values)."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image by path; `digest` (SHA-256 of the file's bytes) is what identity and caches rest on."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One image question.

    text: holds `<image>` where each image stands; the marks always equal the images in number.
    answer: the ground truth, or None where there is none (then `kind` is "none").
    answers: all right answers where there are several, as given (ten people's, repetitions included); `answer` is then the most common.
    choices: the texts of a multiple-choice question in letter order (A, B, ...); `answer` is then a letter.
        A question of kind "choice" without them shows its options in the picture only.
    rationale: a reference answer with its reasoning, for when no sampled answer is right; may be empty.
    id: hash of text, image bytes, answers and choices; equal content has an equal id wherever it came from.
    facts: what a benchmark knows of this row besides, as JSON; "" for other questions. It is a part of the id, because a benchmark
        may ask the same thing twice.
    """

    id: str
    text: str
    images: tuple[ImageRef, ...] = ()
    answer: str | None = None
    answers: tuple[str, ...] = ()
    kind: AnswerKind = "none"
    choices: tuple[str, ...] = ()
    rationale: str = ""
    domain: str = ""
    source: str = ""
    facts: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer written by a model.

    index: number of the sample for its question, from 0; continuations carry the index of the response they continue.
    token_ids: exactly what was generated, the end-of-turn token included when finish is "stop".
    logprobs: natural-log probability of each generated token under the sampling model at temperature 1; may be empty.
    prefix_len: how many leading `token_ids` were given instead of generated (a DropoutNTP continuation); else 0.
    retokenised: the generated `token_ids` were made from the text, because the engine gave no ids or a stop text ended the answer.
    """

    question: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish: Finish = "stop"
    logprobs: tuple[float, ...] = ()
    engine: str = ""
    seed: int = 0
    prefix_len: int = 0
    retokenised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a checker says of one response.

    outcome: "malformed" = no clear final answer; "undecided" = could not tell (time-out, crash), never a negative.
    extracted: the final answer found in the response, or None.
    reason: one short phrase, for people.
    """

    question: str = ""
    index: int = 0
    outcome: Outcome
    extracted: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A chosen and a rejected response to one question, with the provenance to rebuild it.

    chosen_ids / rejected_ids: token ids as sampled (empty for pairs imported as text).
    chosen_index / rejected_index: `Response.index` of each side (-1 when imported, or the question's rationale).
    cut: number of kept tokens for "dropout_ntp" pairs, else 0.
    """

    id: str
    question: str
    chosen: str
    rejected: str
    origin: Origin
    chosen_ids: tuple[int, ...] = ()
    rejected_ids: tuple[int, ...] = ()
    chosen_index: int = -1
    rejected_index: int = -1
    chosen_answer: str | None = None
    rejected_answer: str | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the trainer eats: one question, its unique responses as token ids, and index pairs (chosen, rejected).

    prompt: the user's message as rendered for sampling, `<image>` marks included.
    reference: summed log-prob of each response under the reference policy, in the order of `responses`, or None.
    """

    question: Question
    prompt: str
    responses: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    reference: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that was left out, and why: what was dropped is listed, never silent. `where` is file:line or a row id."""

    where: str
    reason: str
    stage: str = field(default="source")
