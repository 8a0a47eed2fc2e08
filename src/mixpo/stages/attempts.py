"""Retries of failed questions. The number of attempts is part of a shard's key: a retry makes a new shard, which makes stale what was
computed from the old one; the responses of the old one are reused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixpo import sealed
from mixpo.errors import RunError
from mixpo.records import Sampled, write_text
from mixpo.run import ATTEMPTS, Stage
from mixpo.types import Question


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The attempts of one stage's shards. first: the inputs of its job as they are for the first attempt."""

    stage: Stage
    settings: Mapping[str, Any]
    first: tuple[str, ...]
    counts: Mapping[int, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the job."""
        return tuple(_named(shard, self.counts.get(number, 0)) for number, shard in enumerate(self.first))

    def kept(self, number: int) -> dict[str, Sampled]:
        """By question, what the earlier attempt at a shard brought; empty for the first one."""
        shard = self.before(number)
        rows = self.stage.read(shard, Sampled) if shard and self.stage.path(shard).exists() else []
        return {row.question: row for row in rows if not row.error}

    def before(self, number: int) -> str:
        """The name of a shard at the attempt before; "" for the first one."""
        count = self.counts.get(number, 0)
        if not count:
            return ""
        named = [_named(shard, count - 1) if position == number else shard for position, shard in enumerate(self.first)]
        return self.stage.plan(self.settings, named).shards[number]

    def merged(self, number: int, questions: Iterable[Question], responses: Iterator[Sampled]) -> Iterator[Sampled]:
        """One row for each question, in order: kept, or the next of `responses` where it is its own, or empty."""
        attempt, kept, response = self.counts.get(number, 0) + 1, self.kept(number), None
        for question in questions:
            if question.id in kept:
                yield kept[question.id]
                continue
            response = response or next(responses, None)
            if response is not None and response.question == question.id:
                yield replace(response, attempts=attempt)
                response = None
            else:
                yield Sampled(question=question.id, attempts=attempt)


def attempts_of(stage: Stage, settings: Mapping[str, Any], first: Sequence[str]) -> Attempts:
    """The attempts recorded for a stage. Raises RunError when the file is broken."""
    return Attempts(stage=stage, settings=settings, first=tuple(first), counts=_load(stage))


def raise_attempts(stage: Stage, numbers: Iterable[int]) -> None:
    """Record one more attempt at these shards."""
    counts = _load(stage)
    for number in numbers:
        counts[number] = counts.get(number, 0) + 1
    write_text(stage.folder / ATTEMPTS, sealed.dumps({str(number): count for number, count in sorted(counts.items())}))


def _load(stage: Stage) -> dict[int, int]:
    path = stage.folder / ATTEMPTS
    if not path.exists():
        return {}
    try:
        return {int(number): int(count) for number, count in sealed.load(path).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: broken ({error}); delete it, and the failed questions count as asked once", code="file-broken", path=path
        ) from None


def _named(shard: str, count: int) -> str:
    return f"{shard} attempt {count + 1}" if count else shard
