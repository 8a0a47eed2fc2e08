"""Log-probs under the reference policy: the trainer's own forward pass without gradient, once for each unique response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mixpo.errors import TrainError
from mixpo.recipe import ImageTable, TrainTable
from mixpo.records import Scored
from mixpo.train.batch import Layout, Piece, micro_batches
from mixpo.train.collate import collate
from mixpo.train.groups import Grouped, make_group, to_record
from mixpo.train.layout_check import choose_layout, sample_of
from mixpo.train.logps import Scorer
from mixpo.train.model import precision_of, restore_types, types_of, use_master_weights
from mixpo.train.prompt_cache import Prompts
from mixpo.types import Group, Pair, Question
from mixpo.vlm.load import Vlm


class Reference:
    """Scores groups under one model. Made by `open_reference`; `note` says which layout is used, once one is."""

    def __init__(self, vlm: Vlm, images: ImageTable, table: TrainTable, precision: torch.dtype) -> None:
        self.vlm = vlm
        self.prompts = Prompts(vlm, images)
        self.table = table
        self.precision = precision
        self.layout: Layout | None = None
        self.note = ""

    def records(self, rows: Sequence[tuple[Question, str, Sequence[Pair]]]) -> Iterator[Scored]:
        """One record for each (question, rendered prompt, pairs), in order; without pairs that can be used its fields are empty.

        With an online reference log-probs are left out, and the model is not asked.
        """
        grouped = [self._group(*row) for row in rows]
        if self.table.reference == "online":
            yield from (to_record(one, ()) for one in grouped)
            return
        for one, logps in zip(grouped, self.score([one.group for one in grouped]), strict=True):
            yield to_record(one, logps)

    def score(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """Summed log-probs of all responses of each group, in nats. Raises TrainError naming the question if one is not finite."""
        pieces = [Piece(group, tuple(range(len(group.responses))), ()) for group in groups if group.responses]
        if not pieces:
            return [() for _ in groups]
        if self.layout is None:
            self.layout, self.note = choose_layout(self.vlm, sample_of(pieces), self.prompts.get, self.precision)
        scorer = Scorer(self.vlm.model, self.layout, self.precision)
        found: dict[tuple[str, str, int], float] = {}
        for batch_pieces in micro_batches(pieces, self.prompts.length, self.table.tokens_per_batch, self.layout):
            batch = collate(self.vlm, batch_pieces, self.prompts.get, self.layout)
            with torch.no_grad():
                sums = scorer(batch).sums.tolist()
            owners = [(piece, response) for piece in batch_pieces for response in piece.responses]
            for (piece, response), value in zip(owners, sums, strict=True):
                found[piece.group.question.id, piece.group.prompt, response] = _finite(value, piece.group)
        return [tuple(found[g.question.id, g.prompt, response] for response in range(len(g.responses))) for g in groups]

    def _group(self, question: Question, prompt: str, pairs: Sequence[Pair]) -> Grouped:
        if not pairs:
            return Grouped(group=Group(question=question, prompt=prompt, responses=(), pairs=()))
        length = len(self.prompts.of(question, prompt))
        return make_group(self.vlm, question, prompt, pairs, length, self.table.max_length)


@contextmanager
def open_reference(vlm: Vlm, images: ImageTable, table: TrainTable) -> Iterator[Reference]:
    """A Reference that computes exactly as training will; the model is given back as it was."""
    # Beside an adapter weights keep their types while training, and so here.
    had = use_master_weights(vlm.model) if table.lora is None else types_of(vlm.model)
    try:
        yield Reference(vlm, images, table, precision_of(had))
    finally:
        restore_types(vlm.model, had)


def _finite(value: float, group: Group) -> float:
    if value - value != 0:
        raise TrainError(
            f"question {group.question.id}: the reference model gives a response the log-probability {value}; "
            'set model.dtype = "float32" or "bfloat16", or check the weights'
        )
    return value
