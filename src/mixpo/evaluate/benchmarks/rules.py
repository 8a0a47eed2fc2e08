"""What several benchmarks share to read an answer: the released scripts' way, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mixpo.evaluate.benchmarks.base import Fields
from mixpo.evaluate.benchmarks.files import choices_of
from mixpo.sources.build import lettered, parse_options, shows
from mixpo.types import Question
from mixpo.verify import extract
from mixpo.verify.choice import check_choice
from mixpo.verify.judgement import Judgement, Options

REASONING = "Your task is to answer the question below. Give step by step reasoning. \n\nQuestion:\n\n{question}"
"""VLMEvalKit's prompt for MPO models where the whole answer is graded, and so none is announced as final; its space before the line too."""
_MARKER = re.compile(r"(Final answer:|Answer:)\s*(.*)", re.IGNORECASE)


def extract_paper(text: str, mode: str) -> str:
    """The text after the first "Final answer:" or "Answer:", to the end of that line; without one, the whole text.

    Source: the extraction of InternVL's evaluation scripts and of VLMEvalKit for MPO models. Emphasis and boxes stay. A direct answer is
    taken whole.
    """
    match = _MARKER.search(text) if mode != "direct" else None
    return match.group(2).strip() if match else text


def has_marker(text: str) -> bool:
    """Whether a response announces its final answer as `extract_paper` expects."""
    return _MARKER.search(text) is not None


def extract_robust(text: str, mode: str, choices: Sequence[str] = ()) -> str | None:
    """The final answer after the last marker, or plainly concluded, free of emphasis and boxes; None without one (mixpo's own rule).

    choices: texts of the options, one of which a conclusion has to name. A direct answer without a marker is taken whole.
    """
    answer = extract(text, "auto", choices)
    return extract(text, "whole") if answer is None and mode == "direct" else answer


EXTRACTORS: dict[str, Callable[[str, str, Sequence[str]], str | None]] = {
    "robust": extract_robust,
    "paper": lambda text, mode, choices: extract_paper(text, mode),
    "official": lambda text, mode, choices: text,
}
"""(response, mode, choices) -> extracted answer, by name. "official": a benchmark's own script, which reads the whole response."""


def same(equal: bool, what: str) -> Judgement:
    """A judgement that is one or the other."""
    return Judgement("correct", f"{what} agree") if equal else Judgement("wrong", f"{what} differ")


def check_option(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own reading of a multiple-choice answer: by letter or by text."""
    asked = Options(tolerance=options.tolerance, algebra=options.algebra, choices=question.choices)
    return check_choice(extracted, question.answer or "", asked)


def letters(count: int) -> list[str]:
    """A, B, C, ..."""
    return [chr(ord("A") + number) for number in range(count)]


def with_columns(text: str, fields: Fields) -> str:
    """A ready question with the options of the columns A, B, C, ... below it, as VLMEvalKit puts them, unless it shows options."""
    columns = choices_of(fields)
    return text if not columns or parse_options(text) or shows(text, columns) else f"{text}\n{lettered(columns)}"
