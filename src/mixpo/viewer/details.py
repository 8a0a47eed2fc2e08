"""One pair or one question with everything that the run holds about it, read from the few shards that have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from mixpo.errors import RecordError
from mixpo.pairs.branches import Step, steps
from mixpo.records import Drop, Judged, Paired, Sampled, Valued, read_row
from mixpo.types import Pair, Place, Question, Response, Verdict
from mixpo.viewer.index import RunIndex, placed
from mixpo.viewer.layout import ShardGroup

Row = TypeVar("Row", Sampled, Judged, Valued, Paired)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionDetail:
    """A question with what one round made of it.

    responses / continuations: by number of the sample. verdicts: the same, empty where nothing was judged. error: why sampling failed.
    branches / branch_verdicts: the continuations of branches and their verdicts, by `Response.index`. places: of all responses.
    """

    n: int
    question: Question
    round: int
    responses: Mapping[int, Response] = field(default_factory=dict)
    continuations: Mapping[int, Response] = field(default_factory=dict)
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    dropped: tuple[Drop, ...] = ()
    error: str = ""
    branches: Mapping[int, Response] = field(default_factory=dict)
    branch_verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    places: tuple[Place, ...] = ()

    def steps(self, index: int) -> list[Step]:
        """The steps of a response that was cut; none for others."""
        places = [place for place in self.places if place.response == index]
        return steps(self.responses[index], places, self.verdicts.get(index)) if places and index in self.responses else []


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDetail:
    """A pair, its question, and the records that its sides came from (None where they are not there, as for imported pairs)."""

    n: int
    pair: Pair
    of: QuestionDetail

    @property
    def chosen(self) -> Response | None:
        """The response that was chosen, or the continuation."""
        return (self.of.branches if self.pair.origin == "branch" else self.of.responses).get(self.pair.chosen_index)

    @property
    def rejected(self) -> Response | None:
        """The response that was rejected, or the continuation."""
        sides = {"dropout_ntp": self.of.continuations, "branch": self.of.branches}
        return sides.get(self.pair.origin, self.of.responses).get(self.pair.rejected_index)

    @property
    def verdicts(self) -> Mapping[str, Verdict | None]:
        """The verdict on each side; a continuation without the image has none."""
        verdicts = self.of.branch_verdicts if self.pair.origin == "branch" else self.of.verdicts
        blind = self.pair.origin == "dropout_ntp"
        return {"chosen": verdicts.get(self.pair.chosen_index), "rejected": None if blind else verdicts.get(self.pair.rejected_index)}


def question_at(index: RunIndex, n: int, round_: int) -> QuestionDetail:
    """Everything about the question of record `n`. Raises RecordError when the shards have changed since the index was made."""
    number, row, _ = placed(n)
    source, block = index.block(number, 0), index.block(number, round_)
    if source is None:
        raise RecordError(f"question shard {number} is gone; reload the page", code="shard-gone")
    question = read_row(source.source, Question, row)
    if block is None:
        return QuestionDetail(n=n, question=question, round=round_)
    sampled = _read(block, "sample", Sampled, row, question.id)
    continued = _read(block, "continue", Sampled, row, question.id)
    judged = _read(block, "verify", Judged, row, question.id)
    branched = _read(block, "branch", Sampled, row, question.id)
    valued = _read(block, "value", Valued, row, question.id)
    paired = _read(block, "pair", Paired, row, question.id)
    responses = sampled.responses if sampled else ()
    indices = [response.index for response in responses] or range(len(judged.verdicts) if judged else 0)
    return QuestionDetail(
        n=n,
        question=question,
        round=round_,
        responses={response.index: response for response in responses},
        continuations={response.index: response for response in (continued.responses if continued else ())},
        verdicts=dict(zip(indices, judged.verdicts, strict=False)) if judged else {},
        pairs=paired.pairs if paired else (),
        dropped=paired.dropped if paired else (),
        error=sampled.error if sampled else "",
        branches={response.index: response for response in (branched.responses if branched else ())},
        branch_verdicts={verdict.index: verdict for verdict in (valued.verdicts if valued else ())},
        places=valued.places if valued else (),
    )


def _read(block: ShardGroup, kind: str, row_type: type[Row], row: int, question: str) -> Row | None:
    """A row of one stage; None where the stage has not come so far, or was made from another question (a stale shard)."""
    if kind not in block.made:
        return None
    record = read_row(block.made[kind], row_type, row)
    return record if record.question == question else None


def pair_at(index: RunIndex, n: int, id_: str, round_: int) -> PairDetail:
    """Everything about a pair. Raises RecordError when its shard was written again since the index was made."""
    of, position = question_at(index, n, round_), placed(n)[2]
    if position >= len(of.pairs) or of.pairs[position].id != id_:
        raise RecordError(f"pair {id_} has moved; reload the page", code="pair-moved", key=id_)
    return PairDetail(n=n, pair=of.pairs[position], of=of)
