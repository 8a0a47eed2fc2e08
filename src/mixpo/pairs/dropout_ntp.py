"""Dropout Next-Token Prediction (DropoutNTP, MPO section 3.2): pairs for questions without a known answer.

A sampled response is truncated and completed by the model without the image: the response is chosen, the completion rejected. Also
here: where a response is cut, and patterns for completions that mention the missing image. Knows nothing about engines.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING

from mixpo.engines.base import Request
from mixpo.pairs.provenance import length_ratio, make_pair
from mixpo.recipe import PairsTable
from mixpo.types import IMAGE_TOKEN, Pair, Question, Response

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm

Cut = Callable[[Sequence[int], float], int]
"""How many leading token ids to keep for a ratio, on a boundary where the text is whole."""


def continuation_request(
    question: Question, responses: Sequence[Response], prompt: str, table: PairsTable, seed: int, cut: Cut
) -> Request | None:
    """What to ask of the engine for the rejected sides of a question: no image, each answer's kept token ids, its index and a seed.

    prompt: the user's message without any `<image>` mark. Answers that cannot be cut (nothing or everything would be kept) are
    dropped; None when nothing remains. Which answers are continued does not depend on the order of the inputs.
    """
    if IMAGE_TOKEN in prompt:
        raise ValueError(f"question {question.id}: the prompt of a continuation must hold no {IMAGE_TOKEN}")
    kept = []
    for response in selected(question, responses, table, seed)[0]:
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


def selected(question: Question, responses: Sequence[Response], table: PairsTable, seed: int) -> tuple[list[Response], Counter[str]]:
    """The answers that are continued without the image, and the drops."""
    return select(responses, table.max_dropout_per_question, f"{seed}/dropout/{question.id}")


def select(responses: Sequence[Response], limit: int, key: str) -> tuple[list[Response], Counter[str]]:
    """At most `limit` answers to continue, finished by themselves and distinct in text, drawn at random by `key`; and the drops."""
    drops: Counter[str] = Counter()
    distinct: dict[str, Response] = {}
    for response in sorted(responses, key=lambda r: r.index):
        reason = _unfit(response)
        if reason:
            drops[reason] += 1
        elif distinct.setdefault(response.text.strip(), response) is not response:
            drops["duplicate"] += 1
    candidates = list(distinct.values())
    if len(candidates) <= limit:
        return candidates, drops
    drops["over_cap"] += len(candidates) - limit
    taken = random.Random(key).sample(candidates, limit)
    return sorted(taken, key=lambda r: r.index), drops


def dropout_pairs(
    question: Question, responses: Sequence[Response], continuations: Sequence[Response], table: PairsTable, seed: int
) -> tuple[list[Pair], Counter[str]]:
    """Pairs of the continued answers, and what was dropped, by reason (see `provenance.REASONS`).

    continuations: whatever the engine wrote for `continuation_request`, in any order. One that hit the length limit is kept: it is
    the rejected side, and `statistics` counts it.
    """
    continued, drops = selected(question, responses, table, seed)
    by_index = {continuation.index: continuation for continuation in continuations}
    pairs = []
    for response in continued:
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
    from rapidfuzz.distance import Prefix

    if continuation.finish == "error":
        return "continuation_error"
    kept = continuation.prefix_len
    if not 0 < kept < len(chosen.token_ids) or continuation.token_ids[:kept] != chosen.token_ids[:kept]:
        return "wrong_prefix"
    if continuation.token_ids == chosen.token_ids or continuation.text.strip() == chosen.text.strip():
        return "identical"
    # What both begin with holds the kept part, so only what was written without the image is searched.
    shared = Prefix.similarity(chosen.text, continuation.text)
    if table.drop_blind and missing_image_phrase(continuation.text, shared):
        return "blind"
    if table.max_length_ratio and length_ratio(chosen, continuation) > table.max_length_ratio:
        return "length_ratio"
    return ""


def _seed(seed: int, question: Question, index: int) -> int:
    """A seed for one continuation that depends on nothing but what it is for. 31 bits suit every engine."""
    return random.Random(f"{seed}/continue/{question.id}/{index}").getrandbits(31)


# --- truncation ---------------------------------------------------------------------------------------------------------


def cut(vlm: Vlm, token_ids: Sequence[int], ratio: float) -> int:
    """`cut_tokens` with the tokenizer of `vlm`."""
    from mixpo.vlm.prompt import decode

    return cut_tokens(token_ids, ratio, vlm.end_ids, lambda ids: decode(vlm, ids))


def cut_tokens(token_ids: Sequence[int], ratio: float, end_ids: Collection[int], decode: Callable[[Sequence[int]], str]) -> int:
    """Number of leading tokens to keep: `ratio` of the response without its end tokens; 0 if no cut leaves a token on each side.

    Cuts between tokens, so it works for languages without spaces. Moves left while a cut would split a character: byte-level
    tokenizers spread many Chinese characters over several tokens.
    """
    length = content_length(token_ids, end_ids)
    return whole_tokens(token_ids, min(int(ratio * length), length - 1), decode)


def content_length(token_ids: Sequence[int], end_ids: Collection[int]) -> int:
    """Number of tokens of a response without its end tokens."""
    length = len(token_ids)
    while length and token_ids[length - 1] in end_ids:
        length -= 1
    return length


def whole_tokens(token_ids: Sequence[int], kept: int, decode: Callable[[Sequence[int]], str]) -> int:
    """`kept`, or fewer tokens where that many would end within a character; at least 0."""
    while kept > 0 and decode(token_ids[:kept]).endswith("\N{REPLACEMENT CHARACTER}"):
        kept -= 1
    return max(kept, 0)


# --- missing image ------------------------------------------------------------------------------------------------------

# The image itself must be the object: "I cannot see a dog in the picture" and "there is no picture on the wall" are descriptions.
_IMG = r"(?:images?|pictures?|photos?|photographs?|screenshots?|figures?|diagrams?|charts?|attachments?)\b(?!['’]s)"
_DET = r"(?:(?:the|any|an?|this|that|these|your|actual|original|attached|uploaded|provided|such|specific)\s+){0,3}"
_NOT = r"(?:cannot|can(?:'t|’t| not)|could(?:n't|n’t| not)|unable to|not able to|do(?:n't|n’t| not)|did(?:n't|n’t| not))"
_SEE = r"(?:see|view|access|open|display|load|analy[sz]e|inspect|examine|look at|process|interpret|receive)"
_GIVEN = r"(?:provided|attached|included|given|uploaded|supplied|shared|available|accessible|visible|shown|loaded|displayed)"
_IS = r"(?:is|are|was|were|has been|have been|seems to be|appears to be)"
_TU = r"(?:图片|图像|照片|图表|截图|图(?![片像表形案]))(?!上|里|中|内(?!容))"
_GEI = r"(?:提供|上传|附上|附带|给出|发送|分享|显示|加载)"

PATTERNS: dict[str, str] = {
    "cannot see the image": rf"\b{_NOT}\s+(?:\w+\s+){{0,2}}?{_SEE}\s+{_DET}{_IMG}(?!\s+(?:on|of|hanging)\b)",
    "no access to the image": rf"(?:\bno|\bnot\s+have|n['’]t\s+have)\s+(?:any\s+)?access\s+to\s+{_DET}{_IMG}",
    "no ability to see images": r"(?:\bnot|n['’]t)\s+have\s+the\s+(?:ability|capability)\s+to\s+(?:directly\s+)?(?:see|view|access)\b",
    "no image provided": rf"\bno\s+(?:actual\s+)?{_IMG}\s+(?:{_IS}\s+)?(?:here|{_GIVEN}|to\s+(?:refer|look|analy[sz]e|describe))\b",
    "there is no image": (
        rf"\bthere\s+(?:is|was|are|were)(?:\s+no|n['’]t\s+an?|\s+not\s+an?)\s+{_IMG}"
        r"(?!\s+(?:on|of|in(?!\s+(?:your|this|the\s+(?:message|question|prompt)))|hanging)\b)"
    ),
    "the image is not provided": (
        rf"\b{_IMG}\s+(?:you\s+\w+\s+)?(?:is|are|was|were|has|have|could|can|does)\s*(?:not|n['’]t)\s+(?:been\s+|be\s+)?{_GIVEN}\b(?!\s+with)"
    ),
    "you did not provide an image": rf"\byou\s+(?:have|did|had)\s*(?:not|n['’]t)\s+(?:yet\s+)?\w+\s+{_DET}{_IMG}",
    "without seeing the image": (
        rf"\bwithout\s+(?:(?:seeing|viewing|being able to (?:see|view)|(?:having\s+)?access to|looking at)\s+{_DET}{_IMG}"
        r"|(?:the|your)\s+(?:actual\s+|attached\s+)?(?:image|picture|photo)\b(?!['’]s))"
    ),
    "please provide the image": (
        r"\b(?:please|could you|can you|if you)\s+(?:\w+\s+)?(?:provide|upload|share|attach|send|supply)\s+(?:me\s+)?(?:with\s+)?"
        rf"{_DET}{_IMG}"
    ),
    "as a text model": r"\bas\s+an?\s+(?:text[- ](?:based|only)|(?:large\s+)?language|AI)(?:\s+AI|\s+language)?\s+(?:model|assistant)\b",
    "zh: cannot see": (
        r"(?:无法|不能|没法|没办法|未能|看不到|看不见|见不到)(?:直接|实际)?(?:看到|查看|看见|访问|打开|识别|分析|观察|浏览|获取|接收)?"
        rf"(?:您|你)?(?:所)?(?:{_GEI})?(?:的)?(?:任何|这张|该|此|具体的?)?{_TU}"
    ),
    "zh: no image provided": rf"(?:没有|未|并未|没)(?:有)?(?:{_GEI}|看到|收到)(?:任何|相关的?|具体的?|一张)?(?:的)?{_TU}",
    "zh: there is no image": r"(?:这里|此处|题目|题中|问题)(?:中)?(?:并)?没有(?:任何)?(?:图片|图像|照片|附图|配图)",
    "zh: the image is not provided": rf"(?:图片|图像|照片|附图)(?:并)?(?:没有|未能|未|无法|不能)(?:被)?(?:{_GEI}|查看|看到|打开)",
    "zh: please provide": rf"请(?:您|你)?(?:先|再|重新)?(?:{_GEI})(?:一下|相关的?|一张|清晰的?|该|这张){{0,2}}(?:的)?{_TU}",
    "zh: as a text model": r"作为(?:一个|一名|一款)?(?:基于)?(?:纯)?(?:文本|文字|语言|AI|人工智能)[^，。,.\n]{0,6}(?:模型|助手)",
}
"""What each pattern stands for, and the pattern (matched without regard to case). All quantifiers are bounded or over single words."""


@cache
def _compiled() -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}


def missing_image_phrase(text: str, start: int = 0) -> str | None:
    """The name of the first pattern with a match that reaches past `start` characters of the text, or None.

    `start` is how much of the text was there before; a match that ends within it is not what was newly written, one that begins
    there and is completed after it is.
    """
    for name, pattern in _compiled().items():
        if any(match.end() > start for match in pattern.finditer(text)):
            return name
    return None
