"""Chooses the layout of micro-batches: the fastest one whose log-probs equal those of the plain layout on real data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixpo.errors import first_line
from mixpo.plural import amount
from mixpo.train.batch import PACKED, Batch, Chunk, Layout
from mixpo.train.collate import collate, row_layout
from mixpo.train.logps import Scorer
from mixpo.train.losses import ResponseLogps
from mixpo.train.prefix_tree import PrefixTree, build_prefix_tree
from mixpo.types import Group
from mixpo.vlm.families import why_not_packed, why_not_varlen
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest difference of a response's mean log-prob per token from the plain layout. A wrong layout differs by far more than 0.1."""

NOISE_FACTOR = 8.0
"""Changes above this multiple of the rounding error count as leakage."""
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 5e-4}
"""Upper bound of the relative rounding error of a log-prob."""

MODEL_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What an unknown architecture may raise in a layout that does not suit it."""

PromptOf = Callable[[Group], EncodedPrompt]


def choose_layout(vlm: Vlm, sample: Sequence[Chunk], prompt_of: PromptOf, precision: torch.dtype) -> tuple[Layout, str]:
    """The layout to use, and a sentence for the log with the reason.

    sample: from `check_sample`. A layout must reproduce the log-probs of the plain one, and in a packed layout changing the tokens of
    one response must not change the log-prob of another.
    """
    plain = _score(vlm, sample, prompt_of, "plain", precision)
    reason = why_not_packed(vlm.model)
    no_kernel = _why_no_varlen(vlm, precision)
    for layout in () if reason else PACKED:
        reason = no_kernel if layout == "varlen" else ""
        reason = reason or _problem(vlm, sample, prompt_of, layout, precision, plain)
        if not reason:
            form = "varlen kernel" if layout == "varlen" else f"length-bucketed SDPA ({no_kernel})"
            checked = f"(checked on {amount(len(plain.sums), 'response')})"
            return layout, f"packed rows, every prompt computed once {checked}; attention: {form}"
        no_kernel = reason
    shared = _problem(vlm, sample, prompt_of, "shared", precision, plain)
    if not shared:
        return "shared", f"padded rows, one per response, images computed once: {reason}"
    return "plain", f"padded rows, one per response, each with its own images: {reason}; {shared}"


def _why_no_varlen(vlm: Vlm, precision: torch.dtype) -> str:
    """Why the varlen kernel cannot be used; "" if it may work."""
    if vlm.device.type != "cuda":
        return "the varlen kernel needs an NVIDIA GPU"
    return "the varlen kernel has no float32" if precision == torch.float32 else why_not_varlen(vlm.model)


def _problem(vlm: Vlm, sample: Sequence[Chunk], prompt_of: PromptOf, layout: Layout, precision: torch.dtype, plain: ResponseLogps) -> str:
    """Why a layout cannot be used; "" if it can."""
    try:
        logps = _score(vlm, sample, prompt_of, layout, precision)
        gap = float(((logps.sums - plain.sums).abs() / plain.lengths).max())
        if not gap <= TOLERANCE[precision]:  # true for NaN
            return f"the {layout} layout would change log-probs by {gap:.2g} per token"
        if layout in PACKED and (leak := _leakage(vlm, sample, prompt_of, layout, precision, logps.sums)):
            return f"a response would notice the others' tokens (by {leak:.2g})"
    except MODEL_ERRORS as error:
        return f"the {layout} layout fails with {type(error).__name__}: {first_line(error)}"
    return ""


def _leakage(vlm: Vlm, sample: Sequence[Chunk], prompt_of: PromptOf, layout: Layout, precision: torch.dtype, before: Tensor) -> float:
    """The largest change of a response's log-prob when tokens of other responses are changed; 0 if it is within rounding.

    In most models nothing changes at all. With routed experts, the number of tokens per expert affects rounding; that error is measured
    on a row that holds everything twice, and bounded by `ROUNDING` because a leak would change that row too.
    """
    twice = _score(vlm, [*sample, *sample], prompt_of, layout, precision).sums[: len(before)]
    noise = (twice - before).abs().max().clamp(max=ROUNDING[precision] * before.abs())
    rounding = torch.finfo(torch.float32).eps * before.abs() + noise
    for inner in (False, True):
        batch = collate(vlm, sample, prompt_of, layout)
        kept = _perturb(vlm, batch, sample, prompt_of, inner=inner)
        if kept.all():
            continue
        after: Tensor = _forward(vlm, batch, layout, precision).sums
        change = ((after - before).abs() * kept.to(before.device)).nan_to_num(float("inf"))
        if bool((change > NOISE_FACTOR * rounding).any()):
            return float(change.max())
    return 0.0


def _perturb(vlm: Vlm, batch: Batch, sample: Sequence[Chunk], prompt_of: PromptOf, inner: bool) -> Tensor:
    """Change the tokens of one branch of each group, in place: the first leaf, or (inner) the first branch with children.

    Returns (R,) bool: responses that do not contain the changed branch.
    """
    ids, kept, known = batch.inputs["input_ids"], list[bool](), sorted(set(batch.target.tolist()))
    following = dict(zip(known, [*known[1:], *known[:1]], strict=True))
    for span, prefix_tree in zip(*row_layout(vlm, sample, [prompt_of(chunk.group) for chunk in sample]), strict=True):
        parents = {branch.parent for branch in prefix_tree.branches}
        chosen = next((number for number in range(len(prefix_tree.branches)) if (number in parents) == inner), None)
        paths = span.paths()
        positions = [] if chosen is None else paths[chosen][-len(prefix_tree.branches[chosen].tokens) :].tolist()
        for position in positions:
            ids[0, position] = following[int(ids[0, position])]
        kept += [set(positions).isdisjoint(paths[end].tolist()) for end in prefix_tree.end_branches]
    return torch.tensor(kept)


def _score(vlm: Vlm, sample: Sequence[Chunk], prompt_of: PromptOf, layout: Layout, precision: torch.dtype) -> ResponseLogps:
    return _forward(vlm, collate(vlm, sample, prompt_of, layout), layout, precision)


@torch.no_grad()
def _forward(vlm: Vlm, batch: Batch, layout: Layout, precision: torch.dtype) -> ResponseLogps:
    scores: ResponseLogps = Scorer(vlm.model, layout, precision)(batch)
    return scores


def check_sample(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Up to two small chunks for the layout check: of the questions with the fewest and the most images."""
    ordered = sorted(chunks, key=lambda chunk: len(chunk.group.question.images))
    chosen = [*(chunk for chunk in ordered[:1] if chunk.group.question.id != ordered[-1].group.question.id), ordered[-1]]
    return [_informative(chunk) for chunk in chosen]


def _informative(chunk: Chunk) -> Chunk:
    """The chunk with two of its responses; with three if two of them share a prefix."""
    prefix_tree = build_prefix_tree([chunk.group.responses[response] for response in chunk.responses])
    shared = next((branch.parent for branch in prefix_tree.branches if branch.parent >= 0), None)
    first = list[int]()
    if shared is not None:
        first = [number for number, end in enumerate(prefix_tree.end_branches) if _passes_through(prefix_tree, end, shared)][:2]
    rest = [number for number in range(len(chunk.responses)) if number not in first]
    numbers = sorted([*first, *rest[: 1 if first else 2]])
    return Chunk(chunk.group, tuple(chunk.responses[number] for number in numbers), ())


def _passes_through(prefix_tree: PrefixTree, end: int, branch: int) -> bool:
    """Whether the path from the prompt to the end of one branch passes through another."""
    while end >= 0 and end != branch:
        end = prefix_tree.branches[end].parent
    return end == branch
