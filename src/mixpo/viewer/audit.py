"""The audit of the verifier: which responses a person labels, and how its verdicts agree with the labels.

The random sample follows from the run alone, so that it is the same for everybody and after a restart; precision and recall are
computed on it. The suspicious sample has the verdicts that `verify.second_opinion` doubts: good for finding errors, but biased.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mixpo.evaluate.statistics import wilson
from mixpo.human_labels import HumanLabel
from mixpo.pairs.provenance import judged_responses
from mixpo.recipe import VerifyTable
from mixpo.records import Judged, Sampled, read_rows
from mixpo.types import Outcome, Question, content_id
from mixpo.verify.second_opinion import doubts
from mixpo.viewer.index import OUTCOME, RunIndex, place
from mixpo.viewer.layout import ShardGroup
from mixpo.viewer.text import brief

SAMPLE = 500
"""Responses of the random sample, at most."""
SUSPECTS = 200
"""Suspicious responses that are listed, at most."""
SUSPECT_SECONDS = 0.5
"""The search for suspicious verdicts ends after this time; it reads shards in random order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditItem:
    """A response to label: record `n` of its question, the id of the question, the index of the response, and the verdict.

    text: the beginning of the question. why: why the verdict is suspicious, or "".
    """

    n: int
    question: str
    index: int
    outcome: Outcome
    text: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share with its Wilson interval; of nothing where `n` is 0."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return wilson(self.hits, self.n) if self.n else (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of verdicts with human labels, with "correct" as the positive class.

    agreed: verdicts equal to the label. Undecided verdicts and labels count in `agreed` only. table: counts by (verdict, label).
    """

    labelled: int
    precision: Proportion
    recall: Proportion
    agreed: Proportion
    table: Mapping[tuple[str, str], int]


def agreement(labelled: Iterable[tuple[AuditItem, HumanLabel]]) -> Agreement:
    """The agreement over labelled responses."""
    table: Counter[tuple[str, str]] = Counter((item.outcome, label.outcome) for item, label in labelled)
    decided = {key: count for key, count in table.items() if "undecided" not in key}
    both = table["correct", "correct"]
    return Agreement(
        labelled=table.total(),
        precision=Proportion(hits=both, n=sum(count for (verdict, _), count in decided.items() if verdict == "correct")),
        recall=Proportion(hits=both, n=sum(count for (_, label), count in decided.items() if label == "correct")),
        agreed=Proportion(hits=sum(count for (verdict, label), count in table.items() if verdict == label), n=table.total()),
        table=dict(table),
    )


class AuditSamples:
    """The samples of one run, made on demand and again when the run changes."""

    def __init__(self, index: RunIndex, settings: VerifyTable) -> None:
        self.index = index
        self.settings = settings
        self._made: dict[tuple[str, int, int], list[AuditItem]] = {}
        self._seen: dict[int, float] = {}

    def sample(self, kind: str, round_: int) -> list[AuditItem]:
        """The items of the "random" or the "suspicious" sample, in the order of labelling."""
        key = (kind, round_, self.index.edition)
        if key not in self._made:
            self._made = {k: items for k, items in self._made.items() if k[2] == self.index.edition}
            self._made[key] = list(self._random(round_) if kind == "random" else self._suspicious(round_))
        return self._made[key]

    def agreement(self, round_: int, labels: Mapping[tuple[int, str, int], HumanLabel], kind: str) -> Agreement:
        """The agreement on a sample ("random" or "suspicious")."""
        items = ((item, labels.get((round_, item.question, item.index))) for item in self.sample(kind, round_))
        return agreement((item, label) for item, label in items if label is not None)

    def _random(self, round_: int) -> Iterator[AuditItem]:
        """Questions in an order that depends on their ids alone, one response of each, chosen in the same way."""
        query = (
            "SELECT q.n, q.id, q.text, j.outcomes FROM judged j JOIN question q ON q.n = j.n "
            f"WHERE j.round = ? AND j.outcomes != '' ORDER BY md5('audit ' || q.id), q.n LIMIT {SAMPLE}"
        )
        for n, question, text, outcomes in self.index.rows(query, round_):
            position = int(content_id("audit", round_, question), 16) % len(outcomes)
            yield AuditItem(n=n, question=question, index=position, outcome=OUTCOME[outcomes[position]], text=text)

    def seen(self, round_: int) -> float:
        """The share of the verified shards that were searched for suspicious verdicts."""
        return self._seen.get(round_, 0.0)

    def _suspicious(self, round_: int) -> Iterator[AuditItem]:
        """Verdicts that another check contradicts come first, then doubtful ones."""
        begun, sure, unsure = time.monotonic(), list[AuditItem](), list[AuditItem]()
        blocks = [block for block in self.index.blocks(round_) if {"sample", "verify"} <= block.made.keys()]
        searched = 0
        for block in sorted(blocks, key=lambda block: content_id("audit", round_, block.number)):
            for item, is_sure in self._suspects(block):
                (sure if is_sure else unsure).append(item)
            searched += 1
            if len(sure) >= SUSPECTS or time.monotonic() - begun > SUSPECT_SECONDS:
                break
        self._seen[round_] = searched / len(blocks) if blocks else 1.0
        yield from [*sure, *unsure][:SUSPECTS]

    def _suspects(self, block: ShardGroup) -> Iterator[tuple[AuditItem, bool]]:
        """The doubtful verdicts of a block, and whether another check says otherwise."""
        rows = zip(
            read_rows(block.source, Question),
            read_rows(block.made["sample"], Sampled),
            read_rows(block.made["verify"], Judged),
            strict=False,
        )
        for row, (question, sampled, judged) in enumerate(rows):
            responses = judged_responses(sampled, judged)
            if not question.id == sampled.question == judged.question or len(responses) != len(judged.verdicts):
                continue  # made from other questions than those of now
            doubtful = doubts(question, responses, judged.verdicts, self.settings)
            for response, verdict, doubt in zip(responses, judged.verdicts, doubtful, strict=True):
                if doubt is not None:
                    item = AuditItem(
                        n=place(block.number, row),
                        question=question.id,
                        index=response.index,
                        outcome=verdict.outcome,
                        text=brief(question.text),
                        why=doubt.why,
                    )
                    yield item, doubt.says is not None
