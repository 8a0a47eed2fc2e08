"""CRPE: does the model see existence and relations? Every question stands four times in the file, with rotated options.

Source of format and rules: the data card OpenGVLab/CRPE, the all-seeing project's `eval_crpe.py` (CircularEval: a question counts
only if all its rotations are right) and VLMEvalKit's row check. The paper's column is the mean of subject, predicate and object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, Marked
from mixpo.evaluate.benchmarks.files import images_of, text_of
from mixpo.evaluate.benchmarks.rules import accuracy, letters, option_robust, same, share
from mixpo.sources.build import parse_options
from mixpo.types import Question, content_id
from mixpo.verify.judgement import Judgement, Options

RELATION = ("subject", "predicate", "object")


def row(fields: Fields) -> Draft:
    """A row of the official JSONL, or of VLMEvalKit's table, whose answer may be a letter or the whole option line."""
    text = text_of(fields, "text", "question")
    named = [(letter, str(fields[letter])) for letter in letters(8) if fields.get(letter)]
    choices = parse_options(text) or tuple(choice for _, choice in named)
    if not choices:
        raise SourceError("shows no options")
    if named and not parse_options(text):
        text += "".join(f"\n{letter}. {choice}" for letter, choice in named)
    answer = text_of(fields, "correct_option", "answer").strip(" ()")[:1].upper()
    if answer not in letters(len(choices)):
        raise SourceError(f"the correct option {answer!r} is none of {len(choices)}")
    stem = re.split(r"\n\s*\(?A\s*[.):]", text)[0]
    images = images_of(fields)
    facts = {
        "id": text_of(fields, "question_id", "index", "key", default=""),
        "category": text_of(fields, "category").lower().removeprefix("crpe_"),
        # Grouped by what is asked, not by order: rows may be shuffled, and letters rotate.
        "group": content_id(stem, sorted(choices), str(images), choices[letters(len(choices)).index(answer)]),
    }
    return Draft(text=text, images=images, answer=answer, kind="choice", choices=choices, domain=facts["category"], facts=facts)


def check_paper(said: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """VLMEvalKit's rule: a reply of one character, or one that begins with A to D, by its first character; else the option's text
    must stand in the reply. "Based on" counts as B."""
    answer = said.strip()
    if len(answer) == 1 or answer[:1] in ("A", "B", "C", "D"):
        return same(answer[:1] == question.answer, "letters")
    gold = question.choices[letters(len(question.choices)).index(question.answer or "A")].lower()
    return same(bool(answer) and gold in answer.lower(), "texts")


def check_robust(said: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own reading of options."""
    return option_robust(said, question, options)


def table(rows: Sequence[Marked]) -> list[Figure]:
    """Circular accuracy (the mean of the relation categories, else of what there is), row accuracy, and both for each category.

    A question with a rotation missing (under --limit) is left out of the circular figures, and `excluded` counts it.
    """
    categories = {name: [row for row in rows if row.facts["category"] == name] for name in (*RELATION, "exist")}
    others = sorted({row.facts["category"] for row in rows} - set(categories))
    categories |= {name: [row for row in rows if row.facts["category"] == name] for name in others}
    found = {name: circular(part, name) for name, part in categories.items() if part}
    counted = [figure for name, figure in found.items() if name in RELATION] or list(found.values())
    main = Figure(
        name="circular accuracy (mean of subject, predicate, object)" if set(found) & set(RELATION) else "circular accuracy",
        value=math.fsum(figure.value for figure in counted) / len(counted) if counted else math.nan,
        n=sum(figure.n for figure in counted),
        excluded=sum(figure.excluded for figure in counted),
    )
    related = [row for name in RELATION for row in categories[name]] or list(rows)
    parts = [figure for name, part in categories.items() if part for figure in (found[name], accuracy(part, "row accuracy", name))]
    return [main, accuracy(related, "row accuracy"), *parts]


def circular(rows: Sequence[Marked], group: str) -> Figure:
    """The share of questions whose rotations are all right."""
    questions: dict[str, list[Marked]] = {}
    for row in rows:
        questions.setdefault(row.facts["group"], []).append(row)
    whole = [part for part in questions.values() if len({row.question.answer for row in part}) == len(part[0].question.choices)]
    figure = share("circular accuracy", [all(row.right for row in part) for part in whole], group)
    return replace(figure, excluded=len(questions) - len(whole))


BENCHMARK = Benchmark(
    name="crpe",
    title="CRPE",
    row=row,
    table=table,
    splits=(("crpe_relation",),),
    files=("crpe_relation.jsonl", "crpe_relation.tsv", "CRPE_RELATION.tsv"),
    checks={"robust": check_robust, "paper": check_paper},
)
