"""MathVista (testmini, 1,000 questions): multiple choice, integers, decimals and lists, with tasks and skills.

Source of format and rules: the data card AI4Math/MathVista and the benchmark's own `extract_answer.py` (what needs no language model,
then a language model) and `calculate_score.py` (normalise, then compare as text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Extraction, Fields, Figure, GradedRow
from mixpo.evaluate.benchmarks.extraction import PROMPT, read
from mixpo.evaluate.benchmarks.files import choices_of, images_of, list_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, by_facts, grouped
from mixpo.evaluate.benchmarks.rules import check_option, letters, same, with_columns
from mixpo.plural import amount
from mixpo.sources.build import lettered
from mixpo.types import AnswerKind, Question
from mixpo.verify.compare_numbers import check_number
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.number import read_numbers
from mixpo.verify.text import check_text

HINTS = {
    "choice": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float1": "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the final value, "
    "e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "Hint: Please answer the question requiring a floating-point number with two decimal places and provide the final value, "
    "e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Hint: Please answer the question requiring a Python list as an answer and provide the final list, "
    "e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
"""Where a file has no ready `query`; the wording of the benchmark's own queries."""
DETAILS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade")
"""Published breakdowns other than skills."""
_FORMS: dict[str, AnswerKind] = {"integer": "number", "float": "number", "list": "text", "text": "text"}


def row(fields: Fields) -> Draft:
    """A row of the Parquet files, of the official JSON, or of VLMEvalKit's table."""
    known = {**(fields.get("metadata") or {}), **fields}
    if not any(fields.get(name) for name in ("question", "query")):
        raise SourceError(
            "has no question: annot_testmini.json holds annotations only; read testmini.json, the Parquet files of "
            "AI4Math/MathVista, or an output file of MathVista",
            code="questions-missing",
        )
    choices = choices_of(fields, "choices")
    answer = text_of(fields, "answer", default="") or text_of(fields, "answer_option", default="")
    if not answer:
        hidden = "; the answers of the test split are not public, use testmini" if known.get("split") != "testmini" else ""
        raise SourceError(f"no answer{hidden}", code="answer-missing")
    is_choice = text_of(known, "question_type", default="multi_choice" if choices else "free_form") == "multi_choice"
    form = text_of(known, "answer_type", default="text")
    facts: dict[str, Any] = {name: text_of(known, name, default="") for name in DETAILS}
    facts |= {"id": text_of(fields, "pid", "index", "key"), "skills": _skills(known.get("skills"))}
    facts |= {"precision": _precision(text_of(known, "precision", default="0")), "answer": answer}
    return Draft(
        text=_query(fields, choices, is_choice, form, facts["precision"]),
        images=images_of(fields),
        answer=_letter(answer, choices, fields) if is_choice else answer,
        kind="choice" if is_choice else _FORMS.get(form, "text"),
        choices=choices if is_choice else (),
        domain=facts["task"],
        facts=facts,
    )


def _skills(value: object) -> list[str]:
    """A list, also as text; a table may name a single skill without brackets."""
    if isinstance(value, str) and not value.startswith("["):
        return [value] if value else []
    return [str(skill) for skill in list_of(value)]


def _precision(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise SourceError(f"precision {text[:20]!r} is no number of decimal places", code="precision-invalid") from None


def _letter(answer: str, choices: Sequence[str], fields: Fields) -> str:
    """The gold of a choice is its text; a table also has the letter."""
    if answer in choices:
        return letters(len(choices))[list(choices).index(answer)]
    letter = text_of(fields, "answer_option", default=answer).strip("() ")
    if letter in letters(len(choices)):
        return letter
    raise SourceError(f"answer {answer[:40]!r} is not among the {amount(len(choices), 'choice')}", code="gold-not-an-option")


def _query(fields: Fields, choices: Sequence[str], is_choice: bool, form: str, precision: int) -> str:
    question = text_of(fields, "query", "question")
    if question.startswith("Hint:") or text_of(fields, "query", default=""):
        return with_columns(question, fields)
    unit = text_of(fields, "unit", default="")
    kind = "choice" if is_choice else f"float{2 if precision == 2 else 1}" if form == "float" else form
    asked = [HINTS.get(kind, HINTS["integer"]), f"Question: {question}" + (f" (Unit: {unit})" if unit else "")]
    return "\n".join([*asked, *(["Choices:", lettered(choices, "({letter}) {option}")] if is_choice else [])])


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The normalisation of the authors' `calculate_score.py`.

    A choice by its letter, else the nearest choice by edit distance, so that garbage may score.
    """
    answer = extracted.strip()
    if question.kind == "choice":
        bracketed = re.findall(r"\(([a-zA-Z])\)", answer)
        letter = bracketed[0].upper() if bracketed else answer
        known = letters(len(question.choices))
        if letter not in known:
            distances = [Levenshtein.distance(letter, choice) for choice in question.choices]
            letter = known[distances.index(min(distances))]
        # Two choices may have the same text, which is what the authors compare.
        return same(question.choices[known.index(letter)] == question.choices[known.index(question.answer or "A")], "choices")
    gold = str(facts["answer"]).strip()
    form = facts["answer_type"]
    if form in ("integer", "float"):
        try:
            number = float(answer)
            answer = str(int(number)) if form == "integer" else str(round(number, facts["precision"]))
        except (ValueError, OverflowError):
            return Judgement("wrong", "not a number")
    return same(answer == gold, "texts")


def quick(text: str, question: Question, facts: Fields) -> str | None:
    """What the authors' `extract_answer.py` takes without a language model: a response that is a choice, or nothing but a number."""
    answer = text.strip()
    if not answer or (question.kind == "choice" and answer in question.choices):
        return answer
    readers: dict[str, Callable[[str], int | float]] = {"integer": int, "float": float}
    if question.kind != "choice" and facts["answer_type"] in readers:
        try:
            return str(readers[facts["answer_type"]](answer))
        except ValueError:
            pass
    return None


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own comparison: choices by letter or text, 14.0 for 14, decimals at the precision of the answer, lists item by item."""
    gold = question.answer or ""
    if question.kind == "choice":
        return check_option(extracted, question, facts, options)
    if facts["answer_type"] == "list":
        return _check_list(extracted, gold)
    if facts["answer_type"] == "float":
        rounded = _rounded(extracted, facts["precision"])
        if rounded is not None and rounded == _rounded(gold, facts["precision"]):
            return Judgement("correct", "numbers agree at the precision of the answer")
    if question.kind == "number":
        return check_number(extracted, gold, options)
    return check_text(extracted, gold, options)


def _rounded(text: str, places: int) -> float | None:
    numbers = read_numbers(text)
    if not numbers or len(numbers) > 1 or not numbers[0].value.is_finite():
        return None
    return round(float(numbers[0].value), places)


def _check_list(extracted: str, gold: str) -> Judgement:
    answer, wanted = read_list(extracted), read_list(gold)
    if not answer or not wanted:
        return same(extracted.strip() == gold.strip(), "texts")
    return same(len(answer) == len(wanted) and all(abs(a - b) <= 1e-6 for a, b in zip(answer, wanted, strict=True)), "lists")


def read_list(text: str) -> list[float]:
    """The numbers of a list such as [1, 2.5], repetitions kept; of a text with brackets those within the last ones."""
    bracketed = re.findall(r"\[([^\[\]]*\d[^\[\]]*)\]", text)
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", bracketed[-1] if bracketed else text)]


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """The breakdowns of the benchmark's own `calculate_score.py`; a row counts in each of its skills."""
    details = by_facts("task", *(name for name in DETAILS if name != "task"))
    return [*details(rows), *grouped(rows, "skill", lambda row: row.facts["skills"])]


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista",
    row=row,
    measures=(ACCURACY,),
    breakdown=breakdown,
    splits=(("testmini",),),
    files=("MathVista_MINI.tsv",),
    checks={"robust": check_robust, "paper": check_paper, "judge": check_paper},
    extraction=Extraction(prompt=PROMPT, quick=quick, read=read),
)
