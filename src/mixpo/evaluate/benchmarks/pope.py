"""POPE: is an object in the image? Yes or no, in the categories adversarial, popular and random.

Source of format and rules: InternVL's and LLaVA's `eval_pope.py` and the data card lmms-lab/POPE. Answers are joined to labels by
the question's number, never by order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, Marked, Place
from mixpo.evaluate.benchmarks.files import images_of, text_of
from mixpo.evaluate.benchmarks.rules import accuracy, same, share
from mixpo.types import Question, Skipped
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.yes_no import check_yes_no

CATEGORIES = ("adversarial", "popular", "random")
SUFFIX = "Answer the question using a single word or phrase."
Key = tuple[str, str]
"""Category and question number."""


def row(fields: Fields) -> Draft:
    """A row of the Parquet files, of VLMEvalKit's table (categories joined by commas) or of InternVL's JSONL with its labels."""
    answer = text_of(fields, "answer", "label").lower()
    if answer not in ("yes", "no"):
        raise SourceError(f"answer {answer[:20]!r} is neither yes nor no")
    categories = [name.strip() for name in text_of(fields, "category").lower().split(",")]
    if unknown := set(categories) - set(CATEGORIES):
        raise SourceError(f"category {sorted(unknown)[0]!r} is none of {', '.join(CATEGORIES)}")
    return Draft(
        text=text_of(fields, "question", "text").removesuffix(SUFFIX).strip(),
        images=images_of(fields),
        answer=answer,
        kind="yes_no",
        domain=categories[0] if len(categories) == 1 else "",
        facts={"id": text_of(fields, "question_id", "index", "id", "key"), "categories": categories},
    )


def joined(places: Iterable[Place | Skipped], folder: Path, answers: Path | None) -> Iterator[Place | Skipped]:
    """Adds the labels of `coco_pope_<category>.json` where the questions have none."""
    labels: dict[Key, Fields] | None = None
    for place in places:
        if isinstance(place, Skipped) or {"answer", "label"} & set(place[1]):
            yield place
            continue
        if labels is None:
            labels = _labels(answers or folder)
        where, fields = place
        key = (text_of(fields, "category").lower(), text_of(fields, "question_id"))
        if key not in labels:
            raise SourceError(
                f"{where}: no label for question {key[1]} of {key[0]!r}; set source.answers to the folder of coco_pope_*.json"
            )
        label = labels[key]
        if text_of(label, "text") not in text_of(fields, "text", "question"):
            raise SourceError(f"{where}: question {key[1]} of {key[0]!r} is another one than in the labels; they are of different versions")
        yield where, {**fields, "answer": text_of(label, "label")}


def _labels(folder: Path) -> dict[Key, Fields]:
    """The labels by category and question number. They are JSONL, whatever their name says."""
    from mixpo.sources.jsonl import lines

    found: dict[Key, Fields] = {}
    for category in CATEGORIES:
        for path in sorted({*folder.glob(f"**/*pope_{category}.json"), *folder.glob(f"**/*pope_{category}.jsonl")}):
            for place in lines(path):
                if not isinstance(place, Skipped):
                    found[category, text_of(place[1], "question_id")] = place[1]
    return found


def check_paper(said: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The official reading: up to the first full stop, the words No, not and no mean no, everything else means yes.

    So `**No**`, "NO", "I cannot tell" and an empty answer all count as yes.
    """
    words = said.partition(".")[0].replace(",", "").split(" ")
    answer = "no" if {"No", "not", "no"} & set(words) else "yes"
    return same(answer == question.answer, "answers")


def check_robust(said: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """Yes or no as words; an answer with both or neither is undecided, which is no yes."""
    return check_yes_no(said, question.answer or "", options)


def says_yes(marked: Marked) -> bool:
    """Right about a yes, or wrong about a no."""
    return marked.right if marked.question.answer == "yes" else marked.outcome == "wrong"


def retrieval(rows: Sequence[Marked]) -> tuple[float, float, float]:
    """Precision, recall and F1 with "yes" as the positive class; 0 where nothing was found."""
    hits = sum(row.right and row.question.answer == "yes" for row in rows)
    said, wanted = sum(map(says_yes, rows)), sum(row.question.answer == "yes" for row in rows)
    precision, recall = hits / said if said else 0.0, hits / wanted if wanted else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def table(rows: Sequence[Marked]) -> list[Figure]:
    """The mean of the categories' F1 (the paper's POPE), F1 over all rows pooled, and five figures for each category."""
    parts = {name: [row for row in rows if name in row.facts["categories"]] for name in CATEGORIES}
    parts = {name: found for name, found in parts.items() if found}
    pooled = [row for found in parts.values() for row in found]
    means = [retrieval(found)[2] for found in parts.values()]
    figures = [
        Figure(name="F1 (mean of categories)", value=100 * math.fsum(means) / len(means) if means else math.nan, n=len(pooled)),
        Figure(name="F1 (pooled)", value=100 * retrieval(pooled)[2], n=len(pooled)),
        accuracy(pooled),
    ]
    for name, found in parts.items():
        precision, recall, f1 = retrieval(found)
        n = len(found)
        figures += [
            Figure(name="F1", value=100 * f1, n=n, group=name),
            accuracy(found, group=name),
            Figure(name="precision", value=100 * precision, n=n, group=name),
            Figure(name="recall", value=100 * recall, n=n, group=name),
            share("yes ratio", [says_yes(row) for row in found], group=name),
        ]
    return figures


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    row=row,
    table=table,
    splits=(("test",), CATEGORIES),
    files=("llava_pope_test.jsonl",),
    joined=joined,
    direct="{question}\n" + SUFFIX,
    checks={"robust": check_robust, "paper": check_paper},
)
