"""From pairs to groups: the unique responses of a question as token ids, and pairs as indices into them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from typing import NamedTuple

from mixpo.errors import SourceError, TrainError
from mixpo.records import Drop, Scored
from mixpo.train.hold import pack, unpack
from mixpo.types import Group, Origin, Pair, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import context_limit, image_token_ids, tokenize_response

PROMPT_TOO_LONG = "the prompt leaves no room for a response within the limit of tokens"
TOO_LONG = "longer than the limit of tokens"
SAME_TOKENS = "both sides are the same tokens"
CONTROL_TOKEN = "a side holds a control token"
EMPTY = "a side is empty"


class _UnusablePairError(Exception):
    """A pair that cannot be trained on; its text is the drop reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedPairs:
    """The group of one question; `group.pairs` is empty if every pair was dropped. repeats: as in `Scored`."""

    group: Group
    repeats: tuple[int, ...] = ()
    dropped: tuple[Drop, ...] = ()


def make_group(vlm: Vlm, question: Question, prompt: str, pairs: Sequence[Pair], prompt_length: int, max_length: int) -> GroupedPairs:
    """Tokenize responses, deduplicate them, and drop (and count) pairs that cannot be trained on.

    prompt: the user message as rendered for sampling. prompt_length: its tokens with template and images. A pair is dropped when
    prompt + response exceeds `max_length` or the model's context; nothing is truncated. Raises TrainError when the prompt alone
    exceeds it, when a response has no trainable token, or when ids are outside the vocabulary: then template or data are broken.
    """
    limit = min(max_length, context_limit(vlm))
    if pairs and prompt_length >= limit:
        raise TrainError(
            f"question {question.id}: its prompt of {prompt_length} tokens (with images) leaves no room for a response in {limit}; "
            "raise train.max_length up to what the model has positions for, make images smaller, or leave the question out",
            code="prompt-too-long",
            key=question.id,
        )
    responses: dict[tuple[int, ...], int] = {}
    kept: list[tuple[int, int]] = []
    origins: list[Origin] = []
    repeats: list[int] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        try:
            sides = (_ids(vlm, question, pair, "chosen"), _ids(vlm, question, pair, "rejected"))
        except _UnusablePairError as reason:
            dropped[str(reason)] += 1
            continue
        if sides[0] == sides[1]:
            dropped[SAME_TOKENS] += 1
        elif prompt_length + max(map(len, sides)) > limit:
            dropped[f"{TOO_LONG} ({limit})"] += 1
        else:
            kept.append((responses.setdefault(sides[0], len(responses)), responses.setdefault(sides[1], len(responses))))
            origins.append(pair.origin)
            repeats.append(pair.repeat)
    group = Group(
        question=question,
        prompt=prompt,
        responses=tuple(responses),
        pairs=tuple(kept),
        prompt_tokens=prompt_length,
        origins=tuple(origins),
    )
    return GroupedPairs(
        group=group,
        repeats=tuple(repeats) if any(repeat > 1 for repeat in repeats) else (),
        dropped=tuple(Drop(reason=reason, count=count) for reason, count in sorted(dropped.items())),
    )


class ReferenceLogps(NamedTuple):
    """Log-probs of the responses of a group under the reference, empty with an online one.

    sums: over their tokens. tokens: of each token, encoded as in `mixpo.train.hold`; empty where nothing needs them.
    """

    sums: tuple[float, ...] = ()
    tokens: tuple[bytes, ...] = ()


def to_record(grouped: GroupedPairs, logps: ReferenceLogps) -> Scored:
    """The record of a group."""
    group = grouped.group
    return Scored(
        question=group.question.id,
        responses=group.responses,
        logps=logps.sums,
        chosen=tuple(chosen for chosen, _ in group.pairs),
        rejected=tuple(rejected for _, rejected in group.pairs),
        repeats=grouped.repeats,
        dropped=grouped.dropped,
        prompt_tokens=(group.prompt_tokens,) if group.responses else (),
        origins=group.origins,
        token_logps=(pack(group.responses, logps.tokens),) if logps.tokens else (),
    )


def join_records(parts: Mapping[int, Scored]) -> Scored:
    """One record for the groups of a question, each under a prompt of its own, by the number of the prompt."""
    if len(parts) == 1 and 0 in parts:
        return parts[0]
    starts = dict(zip(parts, accumulate((len(part.responses) for part in parts.values()), initial=0), strict=False))
    dropped: Counter[str] = Counter()
    for part in parts.values():
        dropped.update({drop.reason: drop.count for drop in part.dropped})
    return Scored(
        question=next(iter(parts.values())).question,
        responses=tuple(response for part in parts.values() for response in part.responses),
        logps=tuple(logp for part in parts.values() for logp in part.logps),
        chosen=tuple(starts[number] + chosen for number, part in parts.items() for chosen in part.chosen),
        rejected=tuple(starts[number] + rejected for number, part in parts.items() for rejected in part.rejected),
        dropped=tuple(Drop(reason=reason, count=count) for reason, count in sorted(dropped.items())),
        prompts=tuple(number for number, part in parts.items() for _ in part.responses),
        prompt_tokens=tuple(length for part in parts.values() for length in part.prompt_tokens),
        origins=tuple(origin for part in parts.values() for origin in part.origins),
        token_logps=tuple(packed for part in parts.values() for packed in part.token_logps),
    )


def split_record(record: Scored) -> dict[int, Scored]:
    """The parts that `join_records` joined and that have pairs, by the number of the prompt."""
    prompts = record.prompts or (0,) * len(record.responses)
    parts = {}
    of_prompts = zip(dict.fromkeys(prompts), record.prompt_tokens or repeat(0), record.token_logps or repeat(b""), strict=False)
    for number, length, packed in of_prompts:
        places = {place: new for new, place in enumerate(place for place, of_prompt in enumerate(prompts) if of_prompt == number)}
        kept = [place for place, chosen in enumerate(record.chosen) if chosen in places]
        if kept:
            parts[number] = Scored(
                question=record.question,
                responses=tuple(record.responses[place] for place in places),
                logps=tuple(record.logps[place] for place in places) if record.logps else (),
                chosen=tuple(places[record.chosen[place]] for place in kept),
                rejected=tuple(places[record.rejected[place]] for place in kept),
                repeats=tuple(record.repeats[place] for place in kept) if record.repeats else (),
                prompt_tokens=(length,) if length else (),
                origins=tuple(record.origins[place] for place in kept) if record.origins else (),
                token_logps=(packed,) if packed else (),
            )
    return parts


def from_record(question: Question, prompt: str, record: Scored) -> Group:
    """The group of a record of the reference stage. Raises TrainError when the record is of another question."""
    if record.question != question.id:
        raise TrainError(
            f"question {question.id}: its reference record is that of {record.question}; run the reference stage with --force",
            code="reference-record-mismatch",
            key=question.id,
        )
    pairs = tuple(zip(record.chosen, record.rejected, strict=True))
    return Group(
        question=question,
        prompt=prompt,
        responses=record.responses,
        pairs=pairs,
        reference=record.logps or None,
        prompt_tokens=next(iter(record.prompt_tokens), 0),
        origins=record.origins,
        token_reference=unpack(record.responses, record.token_logps[0]) if record.token_logps else None,
    )


def repeated(group: Group, repeats: Sequence[int]) -> Iterator[Group]:
    """The group, and once more for each further time that an epoch trains on some of its pairs."""
    yield group
    for times in range(2, max(repeats, default=1) + 1):
        again = [place for place, repeat in enumerate(repeats) if repeat >= times]
        origins = tuple(group.origins[place] for place in again) if group.origins else ()
        yield replace(group, pairs=tuple(group.pairs[place] for place in again), origins=origins)


def data_digest(groups: Iterable[Group]) -> str:
    """Digest of the training data (prompts, images, responses, pairs, reference log-probs, in order): 16 hexadecimal digits."""
    total = hashlib.sha256()
    for group in groups:
        images = [image.digest for image in group.question.images]
        tokens = [one.hex() for one in group.token_reference or ()]
        row = (group.question.id, images, group.prompt, group.responses, group.pairs, group.reference, group.origins, group.forks, tokens)
        total.update(json.dumps(row, ensure_ascii=False).encode())
    return total.hexdigest()[:16]


def _ids(vlm: Vlm, question: Question, pair: Pair, side: str) -> tuple[int, ...]:
    """Token ids of one response. Raises _UnusablePairError to drop the pair, TrainError when template or data are broken."""
    text, ids = (pair.chosen, pair.chosen_ids) if side == "chosen" else (pair.rejected, pair.rejected_ids)
    if not ids and not text.strip():
        raise _UnusablePairError(EMPTY)
    if not ids:
        ids = _tokenise(vlm, question, pair, text, side)
    if not image_token_ids(vlm).isdisjoint(ids):
        raise _UnusablePairError(CONTROL_TOKEN)
    vocabulary = int(vlm.model.get_input_embeddings().weight.shape[0])
    if max(ids) >= vocabulary or min(ids) < 0:
        raise TrainError(
            f"question {question.id}, pair {pair.id}: ids {min(ids)} to {max(ids)} do not fit the model's vocabulary ({vocabulary}); "
            "these responses were sampled from another model, sample and pair again",
            code="token-ids-out-of-range",
            key=question.id,
        )
    return ids


def _tokenise(vlm: Vlm, question: Question, pair: Pair, text: str, side: str) -> tuple[int, ...]:
    try:
        ids = tokenize_response(vlm, text)
    except SourceError:
        raise _UnusablePairError(CONTROL_TOKEN) from None
    if set(ids) <= set(vlm.end_ids):
        raise TrainError(
            f"question {question.id}, pair {pair.id}: no token of the {side} response would be trained, because the tokenizer and chat "
            f"template of {vlm.folder or 'this model'} turn {text[:40]!r} into nothing; use the files of the model's family",
            code="response-not-trainable",
            key=question.id,
        )
    return ids
