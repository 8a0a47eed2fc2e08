"""Pairs for questions without a known answer (Dropout Next-Token Prediction): cut an answer and let the model finish it without the image.

The whole answer is chosen, the one finished blindly is rejected. Knows nothing about engines, tokenizers or correctness.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from mixpo.engines.base import Request
from mixpo.pairs.blind import blind_phrase
from mixpo.pairs.provenance import length_ratio, make_pair, shared_beginning
from mixpo.recipe import PairsTable
from mixpo.types import IMAGE_MARK, Pair, Question, Response

Cut = Callable[[Sequence[int], float], int]
"""How many leading token ids to keep for a ratio, on a boundary where the text is whole."""


def continuation_request(
    question: Question, responses: Sequence[Response], prompt: str, table: PairsTable, seed: int, cut: Cut
) -> Request | None:
    """What to ask of the engine for the rejected sides of a question: no image, each answer's kept token ids, its index and a seed.

    prompt: the user's message without any `<image>` mark. Answers that cannot be cut (nothing or everything would be kept) are
    left out; None when nothing remains. Which answers are continued does not depend on the order of the inputs.
    """
    if IMAGE_MARK in prompt:
        raise ValueError(f"question {question.id}: the prompt of a continuation must hold no {IMAGE_MARK}")
    kept = []
    for response in select(question, responses, table, seed)[0]:
        length = cut(response.token_ids, table.dropout_ratio)
        if 0 < length < len(response.token_ids):
            kept.append((response.index, response.token_ids[:length]))
    if not kept:
        return None
    return Request(
        key=question.id,
        prompt=prompt,
        images=(),
        seeds=tuple(_seed(seed, question, index) for index, _ in kept),
        indices=tuple(index for index, _ in kept),
        prefixes=tuple(prefix for _, prefix in kept),
    )


def select(question: Question, responses: Sequence[Response], table: PairsTable, seed: int) -> tuple[list[Response], Counter[str]]:
    """The answers that are continued: finished by themselves, distinct in text, at most `max_dropout_per_question`; and the drops."""
    drops: Counter[str] = Counter()
    distinct: dict[str, Response] = {}
    for response in sorted(responses, key=lambda r: r.index):
        reason = _unfit(response)
        if reason:
            drops[reason] += 1
        elif distinct.setdefault(response.text.strip(), response) is not response:
            drops["duplicate"] += 1
    candidates = list(distinct.values())
    limit = table.max_dropout_per_question
    if len(candidates) <= limit:
        return candidates, drops
    drops["over_cap"] += len(candidates) - limit
    taken = random.Random(f"{seed}/dropout/{question.id}").sample(candidates, limit)
    return sorted(taken, key=lambda r: r.index), drops


def dropout_pairs(
    question: Question, responses: Sequence[Response], continuations: Sequence[Response], table: PairsTable, seed: int
) -> tuple[list[Pair], Counter[str]]:
    """Pairs of the continued answers, and what was left out by reason (see `provenance.REASONS`).

    continuations: whatever the engine wrote for `continuation_request`, in any order. One that hit the length limit is kept: it is
    the rejected side, and `statistics` counts it.
    """
    selected, drops = select(question, responses, table, seed)
    by_index = {continuation.index: continuation for continuation in continuations}
    pairs = []
    for response in selected:
        continuation = by_index.get(response.index)
        reason = "no_continuation" if continuation is None else _objection(response, continuation, table)
        if reason or continuation is None:
            drops[reason] += 1
        else:
            pairs.append(make_pair(question.id, response, continuation, "dropout_ntp"))
    return pairs, drops


def _unfit(response: Response) -> str:
    if response.finish == "error":
        return "error"
    if response.finish == "length":
        return "length_capped"
    return "" if response.token_ids and response.text.strip() else "empty"


def _objection(chosen: Response, continuation: Response, table: PairsTable) -> str:
    """Why an answer and its continuation make no pair, or ""."""
    if continuation.finish == "error":
        return "continuation_error"
    kept = continuation.prefix_len
    if not 0 < kept < len(chosen.token_ids) or continuation.token_ids[:kept] != chosen.token_ids[:kept]:
        return "wrong_prefix"
    if continuation.token_ids == chosen.token_ids or continuation.text.strip() == chosen.text.strip():
        return "identical"
    # What both begin with holds the kept part, so only what was written without the image is searched.
    if table.drop_blind and blind_phrase(continuation.text, shared_beginning(chosen.text, continuation.text)):
        return "blind"
    if table.max_length_ratio and length_ratio(chosen, continuation) > table.max_length_ratio:
        return "length_ratio"
    return ""


def _seed(seed: int, question: Question, index: int) -> int:
    """A seed for one continuation that depends on nothing but what it is for. 31 bits suit every engine."""
    return random.Random(f"{seed}/continue/{question.id}/{index}").getrandbits(31)
