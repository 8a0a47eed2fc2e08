"""LogicVista (448 questions): logic in diagrams, with one or several option letters as the answer; options are in the image.

Source of format and rules: the benchmark's `dataset.json` and VLMEvalKit's scoring of it: a language model finds the letters, and
their set must be the answer's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Extraction, Fields, Figure, GradedRow
from mixpo.evaluate.benchmarks.extraction import PROMPT
from mixpo.evaluate.benchmarks.extraction import read as read_short
from mixpo.evaluate.benchmarks.files import images_of, list_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, grouped
from mixpo.evaluate.benchmarks.rules import same
from mixpo.types import Question
from mixpo.verify.check import judge
from mixpo.verify.judgement import Judgement, Options

SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")
_LETTERS = re.compile(r"\(?[A-H]\)?(?:(?:\s*(?:,|;|&|and)\s*|\s*)\(?[A-H]\)?)*\.?")
"""Option letters and nothing else: "B", "(A), (C)", "A and D", "BD"."""


def row(fields: Fields) -> Draft:
    """A row of dataset.json, or of VLMEvalKit's table."""
    skills = fields.get("skill")
    answer = text_of(fields, "answer")
    if read_letters(answer) is None:
        raise SourceError(f"answer {answer[:20]!r} is no list of option letters", code="gold-not-an-option")
    known = sorted({str(skill).strip().lower() for skill in (list_of(skills) if _is_list(skills) else str(skills or "").split(","))} - {""})
    return Draft(
        text=text_of(fields, "question"),
        images=images_of(fields, folder="images"),
        answer=answer,
        kind="text" if len(read_letters(answer) or "") > 1 else "choice",
        domain="+".join(known),
        facts={"id": text_of(fields, "key", "index", "id"), "skills": known},
    )


def _is_list(value: object) -> bool:
    return not isinstance(value, str) or value.startswith("[")


def read_letters(text: str) -> str | None:
    """The option letters of an answer in alphabetical order; None where there is anything else."""
    plain = text.strip().strip("*$ ")
    return "".join(sorted(set(re.findall(r"[A-H]", re.sub(r"and", "", plain))))) if _LETTERS.fullmatch(plain) else None


def check_letters(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The same set of letters, whatever their order."""
    return same(read_letters(extracted) == read_letters(question.answer or ""), "letters")


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The set of letters, else mixpo's own reading of an option."""
    if read_letters(extracted) is not None:
        return check_letters(extracted, question, facts, options)
    return judge(extracted, question.answer or "", "choice" if question.kind == "choice" else "text", options)


def quick(text: str, question: Question, facts: Fields) -> str | None:
    """Letters alone need no judge."""
    return read_letters(text)


def read(reply: str, question: Question, facts: Fields) -> str | None:
    """The letters in a judge's reply; "" where it says that there is no answer (also "Z", as VLMEvalKit's prompt does)."""
    short = read_short(reply, question, facts)
    if short is None or not short:
        return short
    return "" if short.strip() == "Z" else read_letters(short)


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """Accuracy by skill; a row counts in each of its skills."""
    return grouped(rows, "skill", lambda row: [skill for skill in SKILLS if any(skill in own for own in row.facts["skills"])])


BENCHMARK = Benchmark(
    name="logicvista",
    title="LogicVista",
    row=row,
    measures=(ACCURACY,),
    breakdown=breakdown,
    splits=(("dataset",), ("test",)),
    files=("dataset.json", "LogicVista.tsv"),
    checks={"robust": check_robust, "paper": check_letters, "judge": check_letters},
    extraction=Extraction(prompt=PROMPT, quick=quick, read=read),
)
