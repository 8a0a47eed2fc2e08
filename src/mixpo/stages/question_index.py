"""What later stages must know of the questions to plan: RUN/<stage>/index.json, next to the shards of questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mixpo import sealed
from mixpo.errors import RunError
from mixpo.run import Stage
from mixpo.types import Question, content_id

INDEX = "index.json"

REPLAY = "replay/source"
"""The folder with the SFT rows of [train.replay]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionIndex:
    """What later stages must know of the questions to plan, shard by shard.

    open: questions without an answer. kinds / domains / sources: digests of the answer kinds, domains and sources, which are no
    part of the shard's name because they do not change what is sampled.
    """

    shards: tuple[str, ...]
    sizes: tuple[int, ...]
    open: tuple[int, ...]
    kinds: tuple[str, ...]
    domains: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return sum(self.sizes)


NOTHING = QuestionIndex(shards=(), sizes=(), open=(), kinds=(), domains=(), sources=())
"""Where there is no source, or it was never read."""


def load_index(stage: Stage) -> QuestionIndex | None:
    """The index of the last time the source was read, or None."""
    path = stage.folder / INDEX
    try:
        return QuestionIndex(**{name: tuple(values) for name, values in sealed.load(path).items()})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        message = f"{path}: not an index of this version ({error}); delete it and run again"
        raise RunError(message, code="index-broken", path=path) from None


def shard_name(number: int, block: Sequence[Question]) -> str:
    """The name of a shard of questions: its number and the digest of their ids."""
    return f"{number:05d}-{content_id([question.id for question in block])}"


def index_of(blocks: Iterable[Sequence[Question]]) -> QuestionIndex:
    """The index of questions in blocks; memory does not grow with the blocks' content."""
    parts = [_part(number, block) for number, block in enumerate(blocks)]
    return QuestionIndex(**{name: tuple(part[column] for part in parts) for column, name in enumerate(QuestionIndex.__dataclass_fields__)})


def _part(number: int, block: Sequence[Question]) -> tuple[Any, ...]:
    """One entry of each field of QuestionIndex."""
    return (
        shard_name(number, block),
        len(block),
        sum(question.answer is None for question in block),
        content_id([question.kind for question in block]),
        content_id([question.domain for question in block]),
        content_id([question.source for question in block]),
    )
