"""POPE: is an object in the image? Yes or no, in the categories adversarial, popular and random.

Source of format and rules: InternVL's and LLaVA's `eval_pope.py` and the data card lmms-lab/POPE. Answers are joined to labels by
the question's number, never by order.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, GradedRow, Measure, Place
from mixpo.evaluate.benchmarks.files import images_of, text_at, text_of
from mixpo.evaluate.benchmarks.metrics import measured
from mixpo.evaluate.benchmarks.rules import same
from mixpo.evaluate.statistics import Term, cluster_of
from mixpo.types import Question, Skipped
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.yes_no import check_yes_no, read_yes_no

CATEGORIES = ("adversarial", "popular", "random")
SUFFIX = "Answer the question using a single word or phrase."
_FILE = re.compile(r"pope_(adversarial|popular|random)\.jsonl?\b")
Key = tuple[str, str]
"""Category and question number."""


def row(fields: Fields) -> Draft:
    """A row of the Parquet files, of VLMEvalKit's table (categories joined by commas) or of InternVL's JSONL with its labels."""
    answer = text_of(fields, "answer", "label").lower()
    if answer not in ("yes", "no"):
        raise SourceError(f"answer {answer[:20]!r} is neither yes nor no", code="gold-not-yes-or-no")
    if not fields.get("category"):
        raise SourceError("no category; add it, or name the file coco_pope_random.json (popular, adversarial)", code="field-missing")
    categories = [name.strip() for name in text_of(fields, "category").lower().split(",")]
    if unknown := set(categories) - set(CATEGORIES):
        raise SourceError(f"category {sorted(unknown)[0]!r} is none of {', '.join(CATEGORIES)}", code="unknown-category")
    return Draft(
        text=text_of(fields, "question", "text").removesuffix(SUFFIX).strip(),
        images=images_of(fields),
        answer=answer,
        kind="yes_no",
        domain=categories[0] if len(categories) == 1 else "",
        facts={"id": text_of(fields, "question_id", "index", "id", "key"), "categories": categories},
    )


def joined(places: Iterable[Place | Skipped], folder: Path, answers: Path | None) -> Iterator[Place | Skipped]:
    """Adds the category that a file's name states (`coco_pope_<category>.json`), and the labels of these files where there are none."""
    labels: dict[Key, Fields] | None = None
    for place in map(_with_category, places):
        if isinstance(place, Skipped) or {"answer", "label"} & set(place[1]) or not {"question_id", "category"} <= set(place[1]):
            yield place
            continue
        if labels is None:
            labels = _labels(answers or folder)
        where, fields = place
        key = (text_at(place, "category").lower(), text_at(place, "question_id"))
        if key not in labels:
            raise SourceError(
                f"{where}: no label for question {key[1]} of {key[0]!r}; set source.answers to the folder of coco_pope_*.json",
                code="label-missing",
                path=where,
            )
        label = labels[key]
        if text_at((f"label of question {key[1]}", label), "text") not in text_at(place, "text", "question"):
            raise SourceError(
                f"{where}: question {key[1]} of {key[0]!r} is another one than in the labels; they are of different versions",
                code="label-mismatch",
                path=where,
            )
        yield where, {**fields, "answer": label.get("label")}


def _with_category(place: Place | Skipped) -> Place | Skipped:
    if isinstance(place, Skipped) or place[1].get("category"):
        return place
    named = _FILE.search(place[0])
    return (place[0], {**place[1], "category": named[1]}) if named else place


def _labels(folder: Path) -> dict[Key, Fields]:
    """The labels by category and question number. They are JSONL, whatever their name says."""
    from mixpo.sources.jsonl import lines

    labels: dict[Key, Fields] = {}
    for category in CATEGORIES:
        for path in sorted({*folder.glob(f"**/*pope_{category}.json"), *folder.glob(f"**/*pope_{category}.jsonl")}):
            for place in lines(path):
                if not isinstance(place, Skipped):
                    labels[category, text_at(place, "question_id")] = place[1]
    return labels


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The reading of InternVL's and LLaVA's `eval_pope.py`.

    Up to the first full stop, the words No, not and no mean no, everything else means yes. So `**No**`, "NO", "I cannot tell" and an
    empty answer all count as yes.
    """
    words = extracted.partition(".")[0].replace(",", "").split(" ")
    answer = "no" if {"No", "not", "no"} & set(words) else "yes"
    return same(answer == question.answer, "answers")


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """Yes or no as words; an answer with both or neither ("two dogs") is undecided, which is no yes."""
    if not read_yes_no(extracted):
        return Judgement("undecided", "neither yes nor no")
    return check_yes_no(extracted, question.answer or "", options)


def says_yes(row: GradedRow) -> bool:
    """Right about a yes, or wrong about a no."""
    return row.right if row.question.answer == "yes" else row.outcome == "wrong"


Value = Callable[[GradedRow], float]


def over_categories(name: str, top: Value, base: Value, *, apart: bool = False) -> Measure:
    """sum(top) / sum(base) over rows, each once for every category that it belongs to; `apart`: the mean of the categories' ratios."""

    def terms(rows: Sequence[GradedRow]) -> tuple[list[Term], int]:
        pairs = [(row, category) for row in rows for category in row.facts["categories"]]
        return [
            Term(f"{row.question.id} {category}", cluster_of(row.question), category if apart else "", top(row), base(row))
            for row, category in pairs
        ], 0  # fmt: skip

    return Measure(name=name, terms=terms)


def hit(row: GradedRow) -> float:
    """A true positive: the object is present and the answer is yes."""
    return float(row.right and row.question.answer == "yes")


def claimed(row: GradedRow) -> float:
    """A positive: the answer is yes."""
    return float(says_yes(row))


def present(row: GradedRow) -> float:
    """The object is present."""
    return float(row.question.answer == "yes")


# F1 = 2 hits / (claimed + present) is a ratio of sums; undefined if both are 0.
MEAN_F1 = over_categories("F1 (mean of categories)", lambda row: 2 * hit(row), lambda row: claimed(row) + present(row), apart=True)
"""The "Overall" of InternVL's `eval_pope.py`, which is the paper's POPE."""
POOLED_F1 = over_categories("F1 (pooled)", lambda row: 2 * hit(row), lambda row: claimed(row) + present(row))
"""The "Overall" of VLMEvalKit."""
RIGHT = over_categories("accuracy", lambda row: float(row.right), lambda row: 1.0)
OF_CATEGORY = (
    dataclasses.replace(POOLED_F1, name="F1"),
    RIGHT,
    over_categories("precision", hit, claimed),
    over_categories("recall", hit, present),
    over_categories("yes ratio", claimed, lambda row: 1.0),
)
"""The five figures of `eval_pope.py` for each category."""


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """Five figures for each category."""
    parts = {name: [of_category(row, name) for row in rows if name in row.facts["categories"]] for name in CATEGORIES}
    return [measured(measure, part, group=name) for name, part in parts.items() if part for measure in OF_CATEGORY]


def of_category(row: GradedRow, name: str) -> GradedRow:
    """The row as it counts in one of its categories."""
    return dataclasses.replace(row, facts={**row.facts, "categories": [name]})


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    row=row,
    measures=(MEAN_F1, POOLED_F1, RIGHT),
    breakdown=breakdown,
    splits=(("test",), CATEGORIES),
    files=("llava_pope_test.jsonl", "POPE.tsv"),
    joined=joined,
    direct="{question}\n" + SUFFIX,
    checks={"robust": check_robust, "paper": check_paper},
)
