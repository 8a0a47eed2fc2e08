"""Chooses the layout of micro-batches: the fastest one whose log-probs equal those of each response alone on real data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mixpo.errors import TrainError
from mixpo.plural import amount
from mixpo.train.batch import PACKED, Batch, Chunk, Layout
from mixpo.train.collate import collate, row_layout
from mixpo.train.compiled import CompiledLayers
from mixpo.train.logps import Scorer
from mixpo.train.losses import ResponseLogps
from mixpo.train.prefix_tree import PrefixTree, build_prefix_tree
from mixpo.train.vision_attention import groups_windows, refuse_grouping, windows_grouped
from mixpo.types import Group, Question
from mixpo.vlm.families import MODEL_ERRORS, described, why_not_packed, why_not_varlen
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest difference of a response's mean log-prob per token from that of the response alone. A wrong layout differs by more than 0.1."""
GRADIENT_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.3}
"""Largest difference of gradients in parts of their norm."""
MOST_CHECKED = 9
"""Questions that the check scores."""

NOISE_FACTOR = 8.0
"""Changes above this multiple of the rounding error count as leakage."""
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 5e-4}
"""Upper bound of the relative rounding error of a log-prob."""

PromptOf = Callable[[Group], EncodedPrompt]

TOGETHER = 3
"""Chunks in one forward pass of the check."""


def choose_layout(
    vlm: Vlm,
    sample: Sequence[Chunk],
    prompt_of: PromptOf,
    precision: torch.dtype,
    gradients: bool = False,
    scorer: Scorer | None = None,
) -> tuple[Layout, str]:
    """The layout to use, and a sentence for the log with the reason.

    sample: from `check_sample`. A layout must reproduce the log-probs of every response alone, as the family's own forward pass gives
    them, and in a packed layout changing the tokens of one response must not change the log-prob of another. gradients: a layout must
    also give the gradients of a response alone. scorer: of a sharded model, which all ranks check together; it is left in any layout.
    Raises TrainError for a family whose forward pass fails.
    """
    parts = [sample[first : first + TOGETHER] for first in range(0, len(sample), TOGETHER)]
    check = _Check(vlm=vlm, parts=parts, prompt_of=prompt_of, scorer=scorer or Scorer(vlm.model, "single", precision), gradients=gradients)
    check.score_alone()
    seen = check.vision()
    reason = why_not_packed(vlm.model)
    no_kernel = _why_no_varlen(vlm, precision)
    for layout in () if reason else PACKED:
        reason = no_kernel if layout == "varlen" else ""
        reason = reason or check.problem(layout)
        if not reason:
            form = "varlen kernel" if layout == "varlen" else f"length-bucketed SDPA ({no_kernel})"
            checked = f"(checked on {amount(sum(len(part.sums) for part in check.alone), 'response')})"
            return layout, f"packed rows, every prompt computed once {checked}; attention: {form}{seen}"
        no_kernel = reason
    if not (shared := check.problem("shared")):
        return "shared", f"padded rows, one per response, images computed once: {reason}{seen}"
    if not (plain := check.problem("plain")):
        return "plain", f"padded rows, one per response, each with its own images: {reason}; {shared}"
    return "single", f"one forward pass per response, which is slow: {reason}; {shared}; {plain}"


def compile_layers(
    vlm: Vlm, sample: Sequence[Chunk], prompt_of: PromptOf, scorer: Scorer, layout: Layout, gradients: bool = False
) -> CompiledLayers:
    """Compile the decoder layers for `scorer`, once they give what each response alone gives without, in the layout that was chosen.

    Raises TrainError where they do not, or where there is nothing to compile.
    """
    kind = vlm.model.config.model_type
    if layout == "single":
        raise TrainError(
            f"train.compile: {kind} scores every response alone, which is not compiled; leave it off for this model",
            code="compile-not-supported",
            key="train.compile",
        )
    parts = [sample[first : first + TOGETHER] for first in range(0, len(sample), TOGETHER)]
    scorer.compiled = CompiledLayers(vlm.model)
    check = _Check(vlm=vlm, parts=parts, prompt_of=prompt_of, scorer=scorer, gradients=gradients)
    check.score_alone()
    if problem := check.problem(layout):
        raise TrainError(
            f"train.compile: {kind}: compiled, {problem}; leave it off for this model", code="compile-not-exact", key="train.compile"
        )
    scorer.layout = layout
    return scorer.compiled


def agree(layout: Layout, note: str, reference: str) -> tuple[Layout, str]:
    """The training's layout given that of the reference stage: no faster one, because the reference stage refused it."""
    order = get_args(Layout)
    if reference not in order or (layout in PACKED and reference in PACKED) or order.index(layout) >= order.index(reference):
        return layout, note
    return cast(Layout, reference), f"rows as in the reference stage ({reference}), which refused the {layout} layout"


def _why_no_varlen(vlm: Vlm, precision: torch.dtype) -> str:
    """Why the varlen kernel cannot be used; "" if it may work."""
    if vlm.device.type != "cuda":
        return "the varlen kernel needs an NVIDIA GPU"
    return "the varlen kernel has no float32" if precision == torch.float32 else why_not_varlen(vlm.model)


@dataclass(kw_only=True)
class _Check:
    """What a layout is compared with. parts: chunks that are scored together. alone: the log-probs of their responses alone."""

    vlm: Vlm
    parts: Sequence[Sequence[Chunk]]
    prompt_of: PromptOf
    scorer: Scorer
    gradients: bool
    alone: list[ResponseLogps] = field(default_factory=list)

    def score_alone(self) -> None:
        """Score every response alone. Raises TrainError where the family's own forward pass fails."""
        try:
            self.alone = [self._score(part, "single") for part in self.parts]
        except torch.OutOfMemoryError:
            raise
        except MODEL_ERRORS as error:
            raise TrainError(
                f"{self.vlm.model.config.model_type}: the forward pass of a prompt and its response fails with {described(error)}; "
                "this family cannot be trained, choose one of docs/families.md",
                code="family-forward-fails",
            ) from error

    def vision(self) -> str:
        """Compare the vision tower with grouped windows (see `windows_grouped`) with the family's own; without, where they differ.

        A clause for the log, "" for families without windows.
        """
        model = self.vlm.model
        pictured = [chunk for part in self.parts for chunk in part if chunk.group.question.images]
        if not pictured or not groups_windows(model):
            return ""
        problem = self._vision_problem(pictured)
        if problem:
            refuse_grouping(model)
            return f"; vision: window by window, because grouped windows {problem}"
        return "; vision: windows grouped, a few calls per layer"

    def _vision_problem(self, pictured: Sequence[Chunk]) -> str:
        """What the packed and shared layouts would get wrong with grouped windows; "" if nothing. The rows are those of `single`."""
        try:
            for part, alone in zip(self.parts, self.alone, strict=True):
                with windows_grouped(self.vlm.model):
                    logps = self._score(part, "single")
                gap = float(((logps.sums - alone.sums).abs() / alone.lengths).max())
                if not gap <= TOLERANCE[self.scorer.precision]:  # true for NaN
                    return f"would change log-probs by {gap:.2g} per token"
            if not self.gradients:
                return ""
            chunk = min(pictured, key=lambda chunk: sum(map(len, chunk.group.responses)))
            own = self._gradient(chunk, "single")
            with windows_grouped(self.vlm.model):
                return self._gradient_gap(self._gradient(chunk, "single"), own)
        except MODEL_ERRORS as error:
            return f"fail with {described(error)}"

    def problem(self, layout: Layout) -> str:
        """Why a layout cannot be used; "" if it can."""
        precision = self.scorer.precision
        try:
            for part, alone in zip(self.parts, self.alone, strict=True):
                logps = self._score(part, layout)
                gap = float(((logps.sums - alone.sums).abs() / alone.lengths).max())
                if not gap <= TOLERANCE[precision]:  # true for NaN
                    return f"the {layout} layout would change log-probs by {gap:.2g} per token"
                if layout in PACKED and (leak := self._leakage(part, layout, logps.sums)):
                    return f"a response would notice the others' tokens (by {leak:.2g})"
            return self._gradient_problem(layout) if self.gradients else ""
        except MODEL_ERRORS as error:
            return f"the {layout} layout fails with {described(error)}"

    def _score(self, sample: Sequence[Chunk], layout: Layout) -> ResponseLogps:
        return self._forward(collate(self.vlm, sample, self.prompt_of, layout), layout)

    @torch.no_grad()
    def _forward(self, batch: Batch, layout: Layout) -> ResponseLogps:
        self.scorer.layout = layout
        scores: ResponseLogps = self.scorer(batch)
        return scores

    def _gradient_problem(self, layout: Layout) -> str:
        """Compare gradients of the smallest chunk's responses, in some parameters."""
        chunk = min((chunk for part in self.parts for chunk in part), key=lambda chunk: sum(map(len, chunk.group.responses)))
        gap = self._gradient_gap(self._gradient(chunk, layout), self._gradient(chunk, "single"))
        return gap and f"the {layout} layout {gap}"

    def _gradient_gap(self, ours: Tensor, alone: Tensor) -> str:
        gap = float((ours - alone).norm() / alone.norm().clamp(min=torch.finfo(torch.float32).tiny))
        return "" if gap <= GRADIENT_TOLERANCE[self.scorer.precision] else f"would change gradients by {gap:.2g} of their norm"

    def _gradient(self, chunk: Chunk, layout: Layout) -> Tensor:
        """(N,) the gradients of all `_watched` parameters, whole where those are sharded."""
        model, scorer = self.vlm.model, self.scorer
        if isinstance(scorer, FSDPModule):
            scorer.reshard()  # after a forward pass without gradient, the outermost parameters are still gathered
        watched, scorer.layout = _watched(model), layout
        with torch.enable_grad():
            sums = scorer(collate(self.vlm, [chunk], self.prompt_of, layout)).sums
            loss = (sums * torch.linspace(1, 2, len(sums)).to(sums)).sum()
            loss.backward(inputs=None if isinstance(scorer, FSDPModule) else watched)  # shards get theirs from the gathered parameters
        known = [torch.zeros_like(p) if p.grad is None else p.grad for p in watched]
        model.zero_grad(set_to_none=True)
        return torch.cat([(value.full_tensor() if isinstance(value, DTensor) else value).flatten().float() for value in known])

    def _leakage(self, sample: Sequence[Chunk], layout: Layout, before: Tensor) -> float:
        """The largest change of a response's log-prob when tokens of other responses are changed; 0 if it is within rounding.

        In most models nothing changes at all. With routed experts, the number of tokens per expert affects rounding; that error is
        measured on a row that holds everything twice, and bounded by `ROUNDING` because a leak would change that row too.
        """
        twice = self._score([*sample, *sample], layout).sums[: len(before)]
        noise = (twice - before).abs().max().clamp(max=ROUNDING[self.scorer.precision] * before.abs())
        rounding = torch.finfo(torch.float32).eps * before.abs() + noise
        for inner in (False, True):
            batch = collate(self.vlm, sample, self.prompt_of, layout)
            kept = _perturb(self.vlm, batch, sample, self.prompt_of, inner=inner)
            if kept.all():
                continue
            after: Tensor = self._forward(batch, layout).sums
            change = ((after - before).abs() * kept.to(before.device)).nan_to_num(float("inf"))
            if bool((change > NOISE_FACTOR * rounding).any()):
                return float(change.max())
        return 0.0


def _watched(model: nn.Module) -> list[nn.Parameter]:
    """Trained parameters whose gradients the check compares: all vectors, or the smallest matrix of each shape where none are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    return vectors or sorted(trained, key=lambda parameter: parameter.numel())[:8]


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


def check_sample(groups: Iterable[Group]) -> list[Chunk]:
    """Small chunks of groups that differ in what a layout may get wrong (see `different`)."""
    chosen = different(groups, lambda group: group.question, lambda group: max(map(len, group.responses)))
    return [_informative(Chunk(group, tuple(range(len(group.responses))), ())) for group in chosen]


Item = TypeVar("Item")


def different(items: Iterable[Item], question_of: Callable[[Item], Question], length_of: Callable[[Item], int]) -> list[Item]:
    """Up to `MOST_CHECKED` items of a data set: two with the most images, the fewest, one image, the longest, the first of each source."""
    best: dict[str, list[tuple[Any, Item]]] = {"most": [], "fewest": [], "one": [], "longest": []}
    for item in items:
        question = question_of(item)
        images = len(question.images)
        ranks = {"most": -images, "fewest": images, "one": abs(images - 1), "longest": -length_of(item)}
        for name, rank in ranks.items():
            best[name] = sorted([*best[name], ((rank, question.id), item)], key=lambda pair: pair[0])[: 2 if name == "most" else 1]
        best.setdefault(f"source {question.source}", [(None, item)])
    unique = {id(item): item for ranked in best.values() for _, item in ranked}
    return list(unique.values())[:MOST_CHECKED]


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
