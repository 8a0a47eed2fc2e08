"""MathVision (MATH-V; test 3,040, testmini 304 questions): competition problems, by letter or by value, in 16 subjects.

Source of format and rules: the data card MathLLMs/MathVision and VLMEvalKit's scoring of it (what needs no language model, then a
language model, then letter or value); its `eval` of model text is replaced by computer algebra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Extraction, Fields
from mixpo.evaluate.benchmarks.extraction import PROMPT, read
from mixpo.evaluate.benchmarks.files import choices_of, images_of, text_of
from mixpo.evaluate.benchmarks.mathvision_official import extract_official, same_official
from mixpo.evaluate.benchmarks.metrics import ACCURACY, by_facts
from mixpo.evaluate.benchmarks.rules import check_option, letters, same, with_columns
from mixpo.sources.build import lettered
from mixpo.types import Question
from mixpo.verify.check import judge
from mixpo.verify.judgement import Judgement, Options

HINTS = {
    True: "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    False: "Hint: Please answer the question and provide the final answer at the end.",
}
"""In front of a direct question, by whether it has options; VLMEvalKit's tables come with them."""
_IMAGE_MARKS = re.compile(r"^(?:[ \t]*<image\d*>)+[ \t]*\n|(?:[ \t]*<image\d*>)+[ \t]*(?=(\S)?)", re.MULTILINE)
"""With the line where nothing else stands, else with the spaces around them; the group is what follows on the line."""
LAST_WORDS = 4
"""A letter in front of these may be an article."""
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def row(fields: Fields) -> Draft:
    """A row of the Parquet files, of the official JSON, or of VLMEvalKit's table (hint, question and choices in one text)."""
    choices = choices_of(fields, "options", "choices")
    text = _IMAGE_MARKS.sub(lambda marks: " " if marks[1] else "", text_of(fields, "question")).strip()
    if "Question:" in text:
        direct = with_columns(text, fields)
        asked = with_columns(text.partition("Question:")[2].replace("Choices:\n", "").strip(), fields)
    else:
        body = lettered(choices, "({letter}) {option}")
        direct = "\n".join([HINTS[bool(choices)], f"Question: {text}", *(["Choices:", body] if choices else [])])
        asked = f"{text}\n{body}" if choices else text
    facts: dict[str, Any] = {"id": text_of(fields, "id", "index", "key"), "direct": direct}
    facts |= {"subject": text_of(fields, "subject", "category", default=""), "level": text_of(fields, "level", default="")}
    return Draft(
        text=asked,
        images=images_of(fields),
        answer=_letter(text_of(fields, "answer"), choices),
        kind="choice" if choices else "formula",
        choices=choices,
        domain=facts["subject"],
        facts=facts,
    )


def _letter(answer: str, choices: Sequence[str]) -> str:
    """The gold of a question with options is a letter, or the text of an option."""
    if choices and answer not in letters(len(choices)) and answer in choices:
        return letters(len(choices))[list(choices).index(answer)]
    return answer


def infer_letter(extracted: str, choices: Sequence[str]) -> str | None:
    """The one option letter that stands as a word of its own, else (also where several do) the one option whose text is contained.

    Source: VLMEvalKit's `can_infer` at the time of the paper. "A" as an article counts.
    """
    known = letters(len(choices))
    words = extracted.translate(_PUNCTUATION).split()
    named = [letter for letter in known if letter in words]
    if len(named) == 1 or (not named and "Z" in words):
        return named[0] if named else None
    held = [letter for letter, text in zip(known, choices, strict=True) if text.lower() in extracted.lower()]
    return held[0] if len(held) == 1 else None


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """VLMEvalKit's scoring: a letter by `infer_letter`; other answers by equal text, or equal value (there by `eval` and sympy)."""
    if question.choices:
        return same(infer_letter(extracted, question.choices) == question.answer, "letters")
    if extracted.strip().lower() == (question.answer or "").strip().lower():
        return Judgement("correct", "same text")
    return judge(extracted, question.answer or "", "formula", options)


def quick(text: str, question: Question, facts: Fields) -> str | None:
    """What VLMEvalKit takes without a language model: the one option letter, if it stands at the end, or the very text of the answer."""
    answer = text.strip()
    if not question.choices:
        return answer if not answer or answer.lower() == (question.answer or "").lower() else None
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in letters(len(question.choices)) if letter in words]
    at_the_end = len(named) == 1 and words.index(named[0]) >= len(words) - LAST_WORDS
    return named[0] if at_the_end else None if answer else ""


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own comparison: options by letter or text, other answers by value, also where the answer is none of the options."""
    if question.answer in letters(len(question.choices)):
        return check_option(extracted, question, facts, options)
    return judge(extracted, question.answer or "", "auto", options)


def check_official(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """MATH-V's own `evaluate.py` on the whole response."""
    return check_given(extract_official(extracted), question, facts, options)


def check_given(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The comparison of MATH-V's `evaluate.py`: the gold letter or the text of its option, as text or to two decimals."""
    known, gold = letters(len(question.choices)), question.answer or ""
    golds = [gold, *([question.choices[known.index(gold)]] if gold in known else [])]
    return same(any(same_official(one, extracted) for one in golds), "answers")


BENCHMARK = Benchmark(
    name="mathvision",
    title="MathVision",
    row=row,
    measures=(ACCURACY,),
    breakdown=by_facts("subject", "level"),  # as the leaderboard of the data card
    splits=(("testmini",),),
    files=("MathVision_MINI.tsv",),
    checks={"robust": check_robust, "paper": check_paper, "official": check_official, "judge": check_paper, "given": check_given},
    extraction=Extraction(prompt=PROMPT, quick=quick, read=read),
)
