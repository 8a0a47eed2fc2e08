"""The audit: which verdicts a person looks at, and what the marks say of the verifier.

The random sample follows from the run alone, so that it is the same for everybody and after every restart; precision and recall are
counted on it. The suspicious ones are where a second, blunt check disagrees: a good place to look, and no fair sample.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixpo.evaluate.score import wilson
from mixpo.marks import Mark
from mixpo.types import Outcome, content_id
from mixpo.verify.text import contains, normal_text
from mixpo.viewer.index import Index, place

SAMPLE = 500
"""Responses of the random sample, at most."""
SUSPECTS = 200
"""Suspicious responses that are listed, at most."""
SUSPECT_SECONDS = 3.0
"""Looking for suspicious verdicts ends after this time; shards are taken in random order."""
TAIL = 160
"""Characters at the end of a response where the second check looks for the ground truth."""

_ENDINGS = """
SELECT s.file_row_number, q.id, r.index, right(r.text, $tail), v.outcome, coalesce(v.extracted, ''), q.answer,
       CASE WHEN len(q.choices) > 0 AND length(q.answer) = 1 THEN coalesce(q.choices[ascii(q.answer) - 64], '') ELSE '' END,
       left(replace(q.text, '<image>', ''), 120)
FROM (SELECT file_row_number, id, answer, choices, text FROM read_parquet($source, file_row_number = true)) q
JOIN (SELECT file_row_number, question, unnest(responses) AS r, generate_subscripts(responses, 1) AS place
      FROM read_parquet($sample, file_row_number = true)) s ON s.file_row_number = q.file_row_number AND s.question = q.id
JOIN (SELECT file_row_number, question, unnest(verdicts) AS v, generate_subscripts(verdicts, 1) AS place
      FROM read_parquet($verify, file_row_number = true)) j
     ON j.file_row_number = s.file_row_number AND j.place = s.place AND j.question = q.id
ORDER BY 1, 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A verdict to look at: record `n` of the question, its id, and the number of the response.

    text: the beginning of the question. why: what is suspicious, or "".
    """

    n: int
    question: str
    index: int
    outcome: Outcome
    text: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
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
    """How verdicts and marks agree, with "correct" as the positive class.

    precision: of answers called correct, those that are. recall: of answers that are correct, those called so. agreed: verdicts equal
    to the mark. undecided: verdicts or marks that could not tell; they count in `agreed` only. table: by (verdict, mark).
    """

    marked: int
    precision: Share
    recall: Share
    agreed: Share
    table: Mapping[tuple[str, str], int]


OUTCOME: Mapping[str, Outcome] = {"c": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}
"""The letters of the index."""


def agreement(judged: Iterable[tuple[Item, Mark]]) -> Agreement:
    """Figures of marked verdicts."""
    table: Counter[tuple[str, str]] = Counter((item.outcome, mark.outcome) for item, mark in judged)
    decided = {key: count for key, count in table.items() if "undecided" not in key}
    both = table["correct", "correct"]
    return Agreement(
        marked=table.total(),
        precision=Share(hits=both, n=sum(count for (verdict, _), count in decided.items() if verdict == "correct")),
        recall=Share(hits=both, n=sum(count for (_, mark), count in decided.items() if mark == "correct")),
        agreed=Share(hits=sum(count for (verdict, mark), count in table.items() if verdict == mark), n=table.total()),
        table=dict(table),
    )


class Audit:
    """The samples of one run. They are made when first asked for, and again when the run changes."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._made: dict[tuple[str, int, int], list[Item]] = {}

    def sample(self, kind: str, round_: int) -> list[Item]:
        """The items of the "random" or the "suspicious" sample, in the order in which they are looked at."""
        key = (kind, round_, self.index.edition)
        if key not in self._made:
            self._made = {k: items for k, items in self._made.items() if k[2] == self.index.edition}
            self._made[key] = list(self._random(round_) if kind == "random" else self._suspicious(round_))
        return self._made[key]

    def marked(self, round_: int, marks: Mapping[tuple[int, str, int], Mark], kind: str) -> Agreement:
        """What the marks say of the verdicts in a sample ("random" or "suspicious")."""
        items = ((item, marks.get((round_, item.question, item.index))) for item in self.sample(kind, round_))
        return agreement((item, mark) for item, mark in items if mark is not None)

    def _random(self, round_: int) -> Iterator[Item]:
        """Questions in an order that depends on their ids alone, one response of each, chosen in the same way."""
        query = (
            "SELECT q.n, q.id, q.text, j.outcomes FROM judged j JOIN question q ON q.n = j.n "
            f"WHERE j.round = ? AND j.outcomes != '' ORDER BY md5('audit ' || q.id), q.n LIMIT {SAMPLE}"
        )
        for n, question, text, outcomes in self.index.rows(query, round_):
            position = int(content_id("audit", round_, question), 16) % len(outcomes)
            yield Item(n=n, question=question, index=position, outcome=OUTCOME[outcomes[position]], text=text)

    def _suspicious(self, round_: int) -> Iterator[Item]:
        begun, found = time.monotonic(), 0
        blocks = [block for block in self.index.blocks(round_) if {"sample", "verify"} <= block.made.keys()]
        for block in sorted(blocks, key=lambda block: content_id("audit", round_, block.number)):
            for item in self._suspects(round_, block.number):
                yield item
                found += 1
                if found == SUSPECTS:
                    return
            if time.monotonic() - begun > SUSPECT_SECONDS:
                return

    def _suspects(self, round_: int, number: int) -> Iterator[Item]:
        block = self.index.block(number, round_)
        if block is None:
            return
        values: dict[str, object] = {"source": str(block.source), "tail": TAIL}
        values |= {kind: str(block.made[kind]) for kind in ("sample", "verify")}
        with self.index.cursor() as cursor:
            rows = cursor.execute(_ENDINGS, values).fetchall()
        common = majorities((question, extracted) for _, question, _, _, _, extracted, *_ in rows)
        for row, question, index, ending, outcome, extracted, answer, choice, text in rows:
            agrees = common.get(question) == normal_text(extracted) if extracted else False
            if why := doubt(ending, outcome, (answer, choice), agrees):
                yield Item(n=place(number, row), question=question, index=index, outcome=outcome, text=text, why=why)


def majorities(extracted: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The answer that more than two thirds of a question's responses share, where there is one and there are at least four."""
    answers: dict[str, Counter[str]] = {}
    for question, answer in extracted:
        answers.setdefault(question, Counter())[normal_text(answer)] += 1
    tops = {question: (counts.most_common(1)[0], counts.total()) for question, counts in answers.items()}
    return {question: answer for question, ((answer, count), total) in tops.items() if answer and total >= 4 and 3 * count > 2 * total}


def doubt(ending: str, outcome: str, truths: Sequence[str], in_majority: bool) -> str:
    """Why a verdict deserves a look, or "": the end of the response is searched for the ground truth, letter by letter."""
    if outcome == "undecided":
        return "the checker could not decide"
    text = normal_text(ending)
    there = any(contains(text, normal_text(truth)) for truth in truths)
    if outcome == "correct" and not there:
        return "called correct, but the ground truth is not written near the end"
    if outcome == "wrong" and there:
        return "called wrong, but the ground truth is written near the end"
    if outcome == "malformed" and there:
        return "no clear answer was found, but the ground truth is written near the end"
    if outcome == "wrong" and in_majority:
        return "called wrong, but most answers to this question agree with it: the ground truth may be wrong"
    return ""
