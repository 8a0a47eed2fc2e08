"""MMMU (validation, 900 questions): college subjects, several images in a question, multiple choice and a few open answers.

Source of format and rules: the data card MMMU/MMMU and the benchmark's `eval_utils.py`. Where its parser finds no option it draws one at
random; here the draw depends on the question alone.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields
from mixpo.evaluate.benchmarks.files import choices_of, images_of, list_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, by_facts
from mixpo.evaluate.benchmarks.rules import check_option, letters, same
from mixpo.plural import amount
from mixpo.sources.build import lettered
from mixpo.types import IMAGE_TOKEN, Question
from mixpo.verify.check import judge
from mixpo.verify.judgement import Judgement, Options

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
}  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."
_IMAGE = re.compile(r"<image (\d)>")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
"""Numbers with commas, in scientific notation, and plain ones."""


def row(fields: Fields) -> Draft:
    """A row of the Parquet files (image_1 to image_7, referred to in the text), or of VLMEvalKit's table."""
    choices = choices_of(fields, "options")
    golds = _golds(fields.get("answer"))
    if not golds or golds == ["?"]:
        raise SourceError("no answer; the answers of the test split are not public, use validation", code="answer-missing")
    if choices and golds[0] not in letters(len(choices)):
        raise SourceError(f"answer {golds[0][:20]!r} is none of {amount(len(choices), 'option')}", code="gold-not-an-option")
    number = text_of(fields, "id", "index", "key")
    subject = text_of(fields, "category", default="") or "_".join(number.split("_")[1:-1])
    text = "\n".join([text_of(fields, "question"), *([lettered(choices)] if choices else [])])
    asked, images = _placed(text, fields)
    return Draft(
        text=asked,
        images=images,
        answer=golds[0],
        kind="choice" if choices else "text",
        choices=choices,
        domain=subject,
        facts={
            "id": number,
            "subject": subject,
            "discipline": next((name for name, subjects in DISCIPLINES.items() if subject.replace(" ", "_") in subjects), ""),
            "golds": golds,
            "direct": f"{asked}\n{LETTER if choices else PHRASE}",
        },
    )


def _golds(value: object) -> list[str]:
    """The answer, or several accepted ones, which a file holds as the text of a list."""
    text = "" if value is None else str(value).strip()
    return [str(item).strip() for item in list_of(text)] if text.startswith("['") or text.startswith('["') else [text] if text else []


def _placed(text: str, fields: Fields) -> tuple[str, list[object]]:
    """The text with an image token at each reference, and the images in that order; without references the images stand first."""
    if fields.get("image_1") is None:
        listed = images_of(fields)
        numbered = {str(number): image for number, image in enumerate(listed, start=1)}
    else:
        numbered = {str(number): fields[f"image_{number}"] for number in range(1, 8) if fields.get(f"image_{number}") is not None}
    named = [number for number in _IMAGE.findall(text) if number in numbered]
    if not named:
        return _IMAGE.sub("", text), list(numbered.values())
    placed = _IMAGE.sub(lambda match: IMAGE_TOKEN if match[1] in numbered else "", text)
    return placed, [numbered[number] for number in named]


def check_official(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The benchmark's own parser on the whole response."""
    if question.choices:
        return same(read_choice(extracted, question) == question.answer, "letters")
    return same(open_matches(extracted, facts["golds"]), "answers")


def read_choice(response: str, question: Question) -> str:
    """The last "(X)", else the last letter between spaces, else, in more than five words, the option whose text is last; else a draw."""
    text = response
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    known = letters(len(question.choices))
    for form in ("({})", " {} "):
        places = {text.rfind(form.format(letter)): letter for letter in known if form.format(letter) in text}
        if places:
            return places[max(places)]
    texts = [(text.lower().rfind(choice.lower()), letter) for letter, choice in zip(known, question.choices, strict=True)]
    held = [(place, letter) for place, letter in texts if place >= 0]
    if held and len(text.split()) > 5:
        # Of two texts that begin at one place the script takes the first option.
        return max(held, key=lambda item: item[0])[1]
    return random.Random(question.id).choice(known)


def open_matches(response: str, golds: Sequence[str]) -> bool:
    """Whether one of the answers is among the numbers, or inside the texts, that follow words such as "is" or "answer" in the response."""
    wanted = [value for gold in golds for value in normalised(gold)]
    for value in _candidates(response):
        if value in wanted or (isinstance(value, str) and any(isinstance(gold, str) and gold in value for gold in wanted)):
            return True
    return False


def _candidates(response: str) -> list[str | float]:
    lines = re.split(r"\.\s(?=[A-Z])|\n", response.strip().strip(".").lower())
    keys = []
    for number, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        tails = [line.rpartition(indicator)[2].strip() for indicator in indicators if indicator in line]
        # In the order of the indicators: an empty tail resets the search, as in the script.
        shortest = functools.reduce(lambda best, tail: tail if not best or len(tail) < len(best) else best, tails, "")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(shortest)
    keys = keys or [response.strip().strip(".").lower()]
    numbers = [number for key in keys for pattern in _NUMBERS for number in re.findall(pattern, key)]
    return [value for text in (*keys, *numbers) for value in normalised(text)]


def normalised(text: str) -> list[str | float]:
    """A number rounded to two decimals, else lower case; one letter gets a space on either side, so that it matches words only."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def check_robust(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """mixpo's own comparison: options by letter or text, open answers by value; any of several accepted answers."""
    if question.choices:
        return check_option(extracted, question, facts, options)
    judgements = [judge(extracted, gold, "auto", options) for gold in facts["golds"]]
    return next((judged for outcome in ("correct", "undecided") for judged in judgements if judged[0] == outcome), judgements[0])


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    row=row,
    measures=(ACCURACY,),
    breakdown=by_facts("discipline", "subject"),
    splits=(("validation",), ("val",)),
    files=("MMMU_DEV_VAL.tsv",),
    checks={"robust": check_robust, "paper": check_official, "official": check_official},
)
