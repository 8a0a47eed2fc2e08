"""CRPE: does the model see existence and relations? Every question is in the file four times, with rotated options.

Source of format and rules: the data card OpenGVLab/CRPE, the all-seeing project's `eval_crpe.py` (CircularEval: a question counts
only if all its rotations are right) and VLMEvalKit's row check. The paper's column is the mean of subject, predicate and object.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, GradedRow, Measure
from mixpo.evaluate.benchmarks.files import choices_of, images_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, measured
from mixpo.evaluate.benchmarks.rules import check_option, letters, same, with_columns
from mixpo.evaluate.statistics import Term, cluster_of
from mixpo.sources.build import parse_options
from mixpo.types import Question, content_id
from mixpo.verify.judgement import Judgement, Options

RELATION = ("subject", "predicate", "object")


def row(fields: Fields) -> Draft:
    """A row of the official JSONL, or of VLMEvalKit's table, whose answer may be a letter or the whole option line."""
    text = text_of(fields, "text", "question")
    choices = parse_options(text) or choices_of(fields)
    if not choices:
        raise SourceError("shows no options", code="options-missing")
    text = with_columns(text, fields)
    answer = _letter(text_of(fields, "correct_option", "answer"), choices)
    stem = re.split(r"\n\s*\(?A\s*[.):]", text)[0]
    images = images_of(fields)
    facts = {
        "id": text_of(fields, "question_id", "index", "key", default=""),
        "category": text_of(fields, "category").lower().removeprefix("crpe_"),
        # Grouped by what is asked, not by order: rows may be shuffled, and letters rotate.
        "group": content_id(stem, sorted(choices), str(images), choices[letters(len(choices)).index(answer)]),
    }
    return Draft(text=text, images=images, answer=answer, kind="choice", choices=choices, domain=facts["category"], facts=facts)


def _letter(answer: str, choices: Sequence[str]) -> str:
    """Of the correct option, which is given as a letter ("B", "(B)"), as its line ("B. under the table") or as its text."""
    known = letters(len(choices))
    if answer in choices:
        return known[list(choices).index(answer)]
    line = re.match(r"\(?([A-Za-z])(?:[).:\s]|$)", answer)
    if line is None or line[1].upper() not in known:
        raise SourceError(f"the correct option {answer[:40]!r} is none of {len(choices)}", code="gold-not-an-option")
    return line[1].upper()


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """VLMEvalKit's rule: a reply of one character, or one that begins with A to D, by its first character; else the option's text
    must occur in the reply. "Based on" counts as B."""
    answer = extracted.strip()
    if len(answer) == 1 or answer[:1] in ("A", "B", "C", "D"):
        return same(answer[:1] == question.answer, "letters")
    gold = question.choices[letters(len(question.choices)).index(question.answer or "A")].lower()
    return same(bool(answer) and gold in answer.lower(), "texts")


def related(rows: Sequence[GradedRow]) -> Sequence[GradedRow]:
    """The rows about relations, which the published figures are of; all where there are none (the existence file)."""
    return [row for row in rows if row.facts["category"] in RELATION] or rows


def circular(rows: Sequence[GradedRow]) -> tuple[list[Term], int]:
    """A question counts as right if all its rotations are. One with a rotation missing (under --limit) cannot count."""
    questions: dict[str, list[GradedRow]] = {}
    for row in related(rows):
        questions.setdefault(row.facts["group"], []).append(row)
    whole = {name: part for name, part in questions.items() if len({row.question.answer for row in part}) == len(part[0].question.choices)}
    terms = [
        Term(name, cluster_of(part[0].question), part[0].facts["category"], float(all(row.right for row in part)), 1.0)
        for name, part in whole.items()
    ]
    return terms, len(questions) - len(whole)


CIRCULAR = Measure(name="circular accuracy (mean of categories)", terms=circular)
"""CircularEval, as `eval_crpe.py` gives it; the mean of subject, predicate and object is the paper's column."""
ROWS = dataclasses.replace(ACCURACY, name="row accuracy", terms=lambda rows: ACCURACY.terms(related(rows)))
"""Of rows, whatever the other rotations, as VLMEvalKit gave it at the time of the paper."""


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """Both for each category."""
    parts = {name: [row for row in rows if row.facts["category"] == name] for name in (*RELATION, "exist")}
    others = sorted({row.facts["category"] for row in rows} - set(parts))
    parts |= {name: [row for row in rows if row.facts["category"] == name] for name in others}
    return [
        measured(measure, part, name=measure.name.partition(" (")[0], group=name)
        for name, part in parts.items()
        if part
        for measure in (CIRCULAR, ROWS)
    ]


BENCHMARK = Benchmark(
    name="crpe",
    title="CRPE",
    row=row,
    measures=(CIRCULAR, ROWS),
    breakdown=breakdown,
    splits=(("crpe_relation",),),
    files=("crpe_relation.jsonl", "crpe_relation.tsv", "CRPE_RELATION.tsv"),
    checks={"robust": check_option, "paper": check_paper},
)
