"""M3CoT (test, about 2,300 questions): multiple choice with context, in domains and topics; up to seven options.

Source of format and rules: the data card LightChen2333/M3CoT; InternVL's ScienceQA script, which the paper used for it ("paper"); the
benchmark's own `metric.py` ("official").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields
from mixpo.evaluate.benchmarks.files import choices_of, images_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, by_facts
from mixpo.evaluate.benchmarks.rules import check_option, letters, same
from mixpo.plural import amount
from mixpo.sources.build import lettered
from mixpo.types import Question
from mixpo.verify.judgement import Judgement, Options


def row(fields: Fields) -> Draft:
    """A row of the Parquet files, or of the ScienceQA form in which the gold is the number of the option."""
    choices = choices_of(fields, "choices")
    if len(choices) < 2:
        raise SourceError(f"has {amount(len(choices), 'choice')}", code="options-missing")
    context = text_of(fields, "context", "hint", default="")
    asked = "\n".join([*([context] if context else []), _asked(fields), lettered(choices)])
    facts = {"id": text_of(fields, "id", "question_id", "image_id", "key", default=""), "choices": list(choices)}
    facts |= {"domain": text_of(fields, "domain", default=""), "topic": text_of(fields, "topic", "category", default="")}
    return Draft(
        text=asked,
        images=[] if all(fields.get(name) in (None, "", []) for name in ("image", "decoded_image", "image_path")) else images_of(fields),
        answer=_letter(fields.get("answer"), len(choices)),
        kind="choice",
        choices=choices,
        domain=facts["domain"] or facts["topic"],  # type: ignore[arg-type]
        facts=facts,
    )


def _asked(fields: Fields) -> str:
    """The question; published answers have it in the first message of a chat, between "[Question]" and "[Choices]"."""
    messages = fields.get("messages")
    if isinstance(messages, list) and messages and "[Question]" in str(messages[0]):
        return str(messages[0]).partition("[Question]")[2].partition("[Choices]")[0].strip()
    return text_of(fields, "question")


def _letter(answer: object, count: int) -> str:
    """A letter, or the number of the option from 0 (2.0 in tables that had an empty place)."""
    known = letters(count)
    text = str(answer).strip().removesuffix(".0")
    if text.isdigit() and int(text) < count:
        return known[int(text)]
    if text.strip("().") in known:
        return text.strip("().")
    raise SourceError(f"answer {answer!r} is none of the {amount(count, 'option')}", code="gold-not-an-option")


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """InternVL's rule: a lone letter, a leading option letter, the first option whose text is contained, or `x.` and `(x)`.

    So "A cat" is A, "1" is found inside "10", and "b" and "**B**" are wrong. The script knows five letters; this knows all.
    """
    return same(read_paper(extracted.strip(), question.choices) == question.answer, "letters")


def read_paper(extracted: str, choices: Sequence[str]) -> str:
    """What InternVL's script takes for the answer."""
    known = letters(len(choices))
    if len(extracted) < 2:
        return extracted
    if extracted[0] in known:
        return extracted[0]
    for letter, text in zip(known, choices, strict=True):
        if text in extracted:
            return letter
    if extracted[1] == ".":
        return extracted[0]
    return extracted[1] if len(extracted) > 2 and extracted[0] == "(" and extracted[2] == ")" else extracted


def check_official(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The rule of the benchmark's own `metric.py`, on the whole response, or on what follows the last "[Answer]".

    The last "(X)"; else the last option, in the order of options, whose text is contained; else the last one whose letter stands as
    a word, upper case before lower case. So "A cat" is A unless an option's text is in it, and "a" is A.
    """
    return same(read_official(extracted, question.choices) == question.answer, "letters")


def read_official(extracted: str, choices: Sequence[str]) -> str | None:
    """What the benchmark's own script takes for the answer; None where it finds nothing."""
    _, marker, behind = extracted.rpartition("[Answer]")
    text = re.split(r"\[Rationale\]|\[Context\]", behind, maxsplit=1)[0] if marker else extracted
    bracketed = re.findall(r"\(([A-Za-z])\)", text)
    if bracketed:
        return str(bracketed[-1]).upper()
    known = letters(len(choices))
    words = re.sub(r"[\n.,!?]", " ", text).split(" ")
    ways: tuple[Callable[[str, str], bool], ...] = (
        lambda letter, choice: choice.lower() in text.lower(),
        lambda letter, choice: letter in words,
        lambda letter, choice: letter.lower() in words,
    )
    for holds in ways:
        letters_held = [letter for letter, choice in zip(known, choices, strict=True) if holds(letter, choice)]
        if letters_held:
            return letters_held[-1]
    return None


BENCHMARK = Benchmark(
    name="m3cot",
    title="M3CoT",
    row=row,
    measures=(ACCURACY,),
    breakdown=by_facts("domain", "topic"),  # as the benchmark's own `metric.py`
    splits=(("test",),),
    files=("test.jsonl",),
    direct="{question}\nAnswer with the option's letter from the given choices directly.",
    checks={"robust": check_option, "paper": check_paper, "official": check_official},
)
