"""Log-probs under the frozen reference pi_0: the training forward pass without gradient, once per unique response."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from mixpo.errors import SourceError, TrainError
from mixpo.prefetch import Prefetch, workers
from mixpo.recipe import ImageTable, TrainTable
from mixpo.records import PROMPT_REFUSED, Drop, Scored
from mixpo.train.batch import Chunk, Layout, micro_batches
from mixpo.train.collate import AHEAD, collate_ahead, on_device
from mixpo.train.groups import PROMPT_TOO_LONG, GroupedPairs, ReferenceLogps, make_group, to_record
from mixpo.train.hold import encode
from mixpo.train.layout_check import check_sample, choose_layout, compile_layers, different
from mixpo.train.logps import Scorer
from mixpo.train.losses import ResponseLogps
from mixpo.train.model import compute_dtype, weight_dtypes
from mixpo.train.prompt_cache import PromptCache
from mixpo.types import Group, Pair, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import context_limit

Row = tuple[Question, str, Sequence[Pair]]
"""A question, its rendered prompt and its pairs."""


class ReferenceScorer:
    """Scores groups under one model, exactly as training will. note: for the log, about the layout; "" until one is chosen."""

    def __init__(self, vlm: Vlm, images: ImageTable, table: TrainTable) -> None:
        """Raises TrainError for a model in float16."""
        self.vlm = vlm
        self.prompts = PromptCache(vlm, images)
        self.table = table
        self.precision = compute_dtype(weight_dtypes(vlm.model))
        self.scorer = Scorer(vlm.model, "single", self.precision)
        self.layout: Layout | None = None
        self.note = ""

    def choose(self, rows: Iterable[Row]) -> None:
        """Choose the layout on questions of the whole data set; without this, it is chosen on the first groups to score."""
        usable = (row for row in rows if row[2] and self.table.reference == "stage")
        chosen = different(usable, lambda row: row[0], lambda row: max(len(pair.chosen) + len(pair.rejected) for pair in row[2]))
        self._choose(self._group(*row).group for row in chosen)

    def _choose(self, groups: Iterable[Group]) -> None:
        if sample := check_sample(group for group in groups if group.responses):
            self.layout, self.note = choose_layout(self.vlm, sample, self.prompts.get, self.precision)
            self.scorer.layout = self.layout
            if self.table.compile:
                compile_layers(self.vlm, sample, self.prompts.get, self.scorer, self.layout)

    def records(self, rows: Sequence[Row]) -> Iterator[Scored]:
        """Yield a record per (question, rendered prompt, pairs), in order; its fields are empty if no pair is usable.

        With an online reference there are no log-probs, and no forward pass.
        """
        with Prefetch(rows, lambda row: self._group(*row), len(rows), workers()) as prepared:
            grouped = [*prepared]
        if self.table.reference == "online":
            yield from (to_record(one, ReferenceLogps()) for one in grouped)
            return
        for one, logps in zip(grouped, self.score([one.group for one in grouped]), strict=True):
            yield to_record(one, logps)

    def score(self, groups: Sequence[Group]) -> list[ReferenceLogps]:
        """Log-probs of all responses of each group in nats, and of their tokens for `train.loss.hold`. Raises TrainError if not finite."""
        chunks = [Chunk(group, tuple(range(len(group.responses))), ()) for group in groups if group.responses]
        if not chunks:
            return [ReferenceLogps() for _ in groups]
        if self.layout is None:
            self._choose(groups)
        assert self.layout is not None
        sums: dict[tuple[str, str, int], float] = {}
        tokens: dict[tuple[str, str, int], bytes] = {}
        batches = micro_batches(chunks, self.prompts.length, self.table.tokens_per_batch, self.layout)
        layout = self.layout
        with Prefetch(batches, lambda one: collate_ahead(self.vlm, one, self.prompts.get, layout), AHEAD, workers()) as prepared:
            for batch_chunks, batch in zip(batches, prepared, strict=True):
                with torch.no_grad():
                    logps: ResponseLogps = self.scorer(on_device(batch, self.vlm.device))
                owners = [(chunk.group, response) for chunk in batch_chunks for response in chunk.responses]
                keys = [(group.question.id, group.prompt, response) for group, response in owners]
                finite = (_finite(value, group) for value, (group, _) in zip(logps.sums.tolist(), owners, strict=True))
                sums.update(zip(keys, finite, strict=True))
                if self.table.loss.hold and logps.tokens is not None:
                    parts = torch.split(logps.tokens.cpu(), logps.lengths.tolist())
                    tokens.update(zip(keys, (encode(part.numpy()) for part in parts), strict=True))
        numbered = [[(group.question.id, group.prompt, response) for response in range(len(group.responses))] for group in groups]
        return [ReferenceLogps(tuple(sums[key] for key in keys), tuple(tokens[key] for key in keys if tokens)) for keys in numbered]

    def _group(self, question: Question, prompt: str, pairs: Sequence[Pair]) -> GroupedPairs:
        empty = Group(question=question, prompt=prompt, responses=(), pairs=())
        if not pairs:
            return GroupedPairs(group=empty)
        try:
            length = len(self.prompts.of(question, prompt))
        except SourceError as error:
            # Another model may have answered it: an image that this one's processor refuses costs the question, not the run.
            reason = f"{PROMPT_REFUSED}: {_location(question, pairs[0])}: {str(error).removeprefix(f'question {question.id}: ')}"
            return GroupedPairs(group=empty, dropped=(Drop(reason=reason, count=len(pairs)),))
        if question.verbatim and length >= min(self.table.max_length, context_limit(self.vlm)):
            return GroupedPairs(group=empty, dropped=(Drop(reason=PROMPT_TOO_LONG, count=len(pairs)),))
        return make_group(self.vlm, question, prompt, pairs, length, self.table.max_length)


def _location(question: Question, pair: Pair) -> str:
    """Where the question comes from: file and line of an imported pair, else its row in the source; and its images."""
    row = ", row ".join(filter(None, (question.source, question.row_id))) if question.row_id else f"question {question.id}"
    return " ".join([pair.provenance or row, *(f"({image.path})" for image in question.images)])


def _finite(value: float, group: Group) -> float:
    if value - value != 0:
        raise TrainError(
            f"question {group.question.id}: the reference model gives a response the log-probability {value}; "
            'set model.dtype = "float32" or "bfloat16", or check the weights',
            code="reference-logprob-not-finite",
            key=group.question.id,
        )
    return value
