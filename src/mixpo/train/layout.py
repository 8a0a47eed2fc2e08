"""Which layout of micro-batches a model gets: the fastest one that gives the plain layout's log-probs on real rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mixpo.train.batch import Layout, Piece
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.losses import ResponseLogps
from mixpo.types import Group
from mixpo.vlm.families import why_not_packed
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""How far a response's mean log-prob per token may be from the plain layout's. A wrong layout is off by far more than 0.1."""

FOREIGN = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""Whatever a foreign architecture raises only means that it is not laid out like the ones that are known."""

PromptOf = Callable[[Group], EncodedPrompt]


def choose_layout(vlm: Vlm, sample: Sequence[Piece], prompt_of: PromptOf, precision: torch.dtype) -> tuple[Layout, str]:
    """The layout to use, and a sentence that says which it is and why.

    sample: from `sample_of`. Every layout but the plain one must give its log-probs, and in the tree layout no response may
    notice that another one's tokens are changed.
    """
    plain = _score(vlm, sample, prompt_of, "plain", precision)
    reason = why_not_packed(vlm.model) or _problem(vlm, sample, prompt_of, "tree", precision, plain)
    if not reason:
        return "tree", f"every prompt is computed once for all of its responses (checked on {len(plain.sums)} responses)"
    shared = _problem(vlm, sample, prompt_of, "shared", precision, plain)
    if not shared:
        return "shared", f"every response gets a row of its own, images are computed once: {reason}"
    return "plain", f"every response gets a row and an image pass of its own: {reason}; {shared}"


def _problem(vlm: Vlm, sample: Sequence[Piece], prompt_of: PromptOf, layout: Layout, precision: torch.dtype, plain: ResponseLogps) -> str:
    """Why a layout cannot be used; "" if it can."""
    try:
        found = _score(vlm, sample, prompt_of, layout, precision)
        gap = float(((found.sums - plain.sums).abs() / plain.lengths).max())
        if not gap <= TOLERANCE[precision]:  # true for NaN
            return f"the {layout} layout would change log-probs by {gap:.2g} per token"
        if layout == "tree" and (leak := _leak(vlm, sample, prompt_of, precision, found)):
            return f"a response would notice the others' tokens (by {leak:.2g})"
    except FOREIGN as error:
        return f"the {layout} layout fails with {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def _leak(vlm: Vlm, sample: Sequence[Piece], prompt_of: PromptOf, precision: torch.dtype, before: ResponseLogps) -> float:
    """The largest change of any other log-prob when the first response of each piece gets other tokens. Must be exactly 0."""
    changed = [piece._replace(group=replace(piece.group, responses=_others(piece))) for piece in sample]
    after = _score(vlm, changed, prompt_of, "tree", precision)
    firsts = [sum(len(piece.responses) for piece in sample[:number]) for number in range(len(sample))]
    kept = torch.ones(len(before.sums), dtype=torch.bool, device=before.sums.device)
    kept[firsts] = False
    return float((after.sums - before.sums)[kept].abs().max()) if kept.any() else 0.0


def _others(piece: Piece) -> tuple[tuple[int, ...], ...]:
    """The group's responses, the piece's first one with every token replaced by another of the group's tokens."""
    responses = list(piece.group.responses)
    known = sorted({token for response in responses for token in response})
    following = dict(zip(known, [*known[1:], known[0]], strict=True))
    responses[piece.responses[0]] = tuple(following[token] for token in responses[piece.responses[0]])
    return tuple(responses)


@torch.no_grad()
def _score(vlm: Vlm, sample: Sequence[Piece], prompt_of: PromptOf, layout: Layout, precision: torch.dtype) -> ResponseLogps:
    scores: ResponseLogps = Scorer(vlm.model, layout, precision)(collate(vlm, sample, prompt_of, layout))
    return scores


def sample_of(pieces: Sequence[Piece]) -> list[Piece]:
    """Up to two pieces, of two responses each, for the check of the layout: the one with the fewest images before that with most."""
    ordered = sorted(pieces, key=lambda piece: len(piece.group.question.images))
    chosen = [*(piece for piece in ordered[:1] if piece.group.question.id != ordered[-1].group.question.id), ordered[-1]]
    return [Piece(piece.group, piece.responses[:2], ()) for piece in chosen]
