"""What stands in a benchmark more than once: counted and said, never left out, because the published scores count every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mixpo.evaluate.benchmarks import facts_of
from mixpo.plural import amount
from mixpo.types import Question, content_id

TWICE = "rows that stand twice"
AGAIN = "questions asked again"
SEVERAL = "rows in several categories"

WORDS = {
    TWICE: (
        "row stands",
        "rows stand",
        "in the files more than once; each counts, as in the published scores (is the same file there twice?)",
    ),
    AGAIN: (
        "row asks",
        "rows ask",
        "what an earlier row asks (same text, images, choices) under another number or category; each is answered and counts",
    ),
    SEVERAL: ("row belongs", "rows belong", "to several categories and counts in each of them"),
}
"""For one row, for several, and how either goes on."""


def counted(blocks: Iterable[list[Question]], counts: Counter[str]) -> Iterator[list[Question]]:
    """The same blocks; `counts` grows by what is in them more than once."""
    seen: set[int] = set()
    for block in blocks:
        for question in block:
            facts = facts_of(question)
            asked = int(content_id(question.text, [image.digest for image in question.images], list(question.choices)), 16)
            twice = "repeat" in facts
            kinds = {TWICE: twice, AGAIN: asked in seen and not twice, SEVERAL: len(facts.get("categories", ())) > 1}
            counts.update(name for name, holds in kinds.items() if holds)
            seen.add(asked)
        yield block


def said(counts: Counter[str]) -> list[str]:
    """A sentence for each kind that there is."""
    return [f"{amount(counts[name], one, several)} {rest}" for name, (one, several, rest) in WORDS.items() if counts[name]]
