"""MathVerse (testmini; vision only: 788 problems whose text is in the image): by letter or by value, with subjects and subfields.

Source of format and rules: the benchmark's `testmini.json`, `extract_answer_s1.py` and `score_answer_s2.py`: a language model extracts
the answer, equal text is right, and a language model decides the rest. In its place stands the verifier here: values, not wording.
"""

from __future__ import annotations

import re

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Extraction, Fields
from mixpo.evaluate.benchmarks.extraction import PROMPT, read
from mixpo.evaluate.benchmarks.files import images_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, by_facts
from mixpo.evaluate.benchmarks.rules import check_option, letters
from mixpo.types import Question
from mixpo.verify.check import judge
from mixpo.verify.judgement import Judgement, Options

VERSION = "Vision Only"
"""The version of the problems that the paper reports; rows of other versions are not read."""
ASKED = "The question is shown in the image."
"""Where a row has no text of its own."""
_OPTION = re.compile(r"(?m)^\s*([A-H])\s*[:.]\s*(.+)$")


def row(fields: Fields) -> Draft:
    """A row of testmini.json, of the Parquet files, or of VLMEvalKit's table (metadata as text)."""
    whole = text_of(fields, "question_for_eval", "question", default="")
    options = _OPTION.findall(whole.partition("Choices:")[2])
    choices = tuple(text.strip() for _, text in options) if [letter for letter, _ in options] == letters(len(options)) else ()
    is_choice = text_of(fields, "question_type", default="multi-choice" if choices else "free-form") == "multi-choice"
    answer = text_of(fields, "answer")
    if is_choice and answer not in letters(8):
        raise SourceError(f"answer {answer[:20]!r} is no option letter", code="gold-not-an-option")
    meta = _metadata(fields.get("metadata"))
    facts = {"id": text_of(fields, "sample_index", "index", "key"), "version": text_of(fields, "problem_version", default=VERSION)}
    facts |= {"subject": str(meta.get("subject", "")), "subfield": str(meta.get("subfield", ""))}
    return Draft(
        text=text_of(fields, "question", default="") or ASKED,
        images=images_of(fields),
        answer=answer,
        kind="choice" if is_choice else "formula",
        choices=choices if is_choice else (),
        domain=facts["subject"],
        facts=facts,
    )


def _metadata(value: object) -> Fields:
    if isinstance(value, str):
        return dict(re.findall(r"""['"](\w+)['"]\s*:\s*['"]([^'"]*)['"]""", value))
    return value if isinstance(value, dict) else {}


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own comparison: options by letter or text, other answers by value."""
    if question.kind == "choice":
        return check_option(extracted, question, facts, options)
    return judge(extracted, question.answer or "", "auto", options)


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """Equal text is right; what the released script asks a language model is decided by the verifier."""
    if extracted.strip() == (question.answer or "").strip():
        return Judgement("correct", "same text")
    return check_robust(extracted, question, facts, options)


def quick(text: str, question: Question, facts: Fields) -> str | None:
    """A response that is the very text of the answer, or an option letter, needs no judge."""
    answer = text.strip()
    return answer if not answer or answer == question.answer or (question.kind == "choice" and answer in letters(8)) else None


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse (vision only)",
    row=row,
    measures=(ACCURACY,),
    breakdown=by_facts("subject", "subfield"),
    splits=(("testmini",),),
    files=("testmini.json", "MathVerse_MINIVOnly.tsv"),
    joined=lambda places, folder, answers: (
        place for place in places if not isinstance(place, tuple) or place[1].get("problem_version", VERSION).replace("_", " ") == VERSION
    ),
    checks={"robust": check_robust, "paper": check_paper, "judge": check_paper},
    extraction=Extraction(prompt=PROMPT, quick=quick, read=read),
)
