"""Repeated rows of a benchmark: counted and logged, never dropped, because the published scores count every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mixpo.evaluate.benchmarks import facts_of
from mixpo.plural import amount
from mixpo.types import Question, content_id

REPEATED_ROWS = "repeated rows"
REPEATED_QUESTIONS = "repeated questions"
SEVERAL_CATEGORIES = "rows in several categories"

WORDS = {
    REPEATED_ROWS: (
        "row occurs",
        "rows occur",
        "more than once in the files; each counts, as in the published scores (is a file there twice?)",
    ),
    REPEATED_QUESTIONS: (
        "row repeats",
        "rows repeat",
        "the question of an earlier row (same text, images, choices) under another number or category; each is answered and counts",
    ),
    SEVERAL_CATEGORIES: ("row belongs", "rows belong", "to several categories and counts in each of them"),
}
"""Singular, plural, and the rest of the sentence."""


def count_duplicates(blocks: Iterable[list[Question]], counts: Counter[str]) -> Iterator[list[Question]]:
    """The same blocks; `counts` is updated with their repeated rows."""
    seen: set[int] = set()
    for block in blocks:
        for question in block:
            facts = facts_of(question)
            asked = int(content_id(question.text, [image.digest for image in question.images], list(question.choices)), 16)
            twice = "repeat" in facts
            kinds = {
                REPEATED_ROWS: twice,
                REPEATED_QUESTIONS: asked in seen and not twice,
                SEVERAL_CATEGORIES: len(facts.get("categories", ())) > 1,
            }
            counts.update(name for name, holds in kinds.items() if holds)
            seen.add(asked)
        yield block


def messages(counts: Counter[str]) -> list[str]:
    """One sentence per kind that occurs."""
    return [f"{amount(counts[name], one, several)} {rest}" for name, (one, several, rest) in WORDS.items() if counts[name]]
