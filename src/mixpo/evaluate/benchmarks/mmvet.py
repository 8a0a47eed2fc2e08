"""MM-Vet (218 free answers): a judge gives each a score from 0.0 to 1.0; capabilities rec, ocr, know, gen, spat, math.

Source of format, scores and breakdowns: the benchmark's `mm-vet.json` and evaluator. The judge's instruction is in our own words (see
`prompts` of [evaluate.judge] for other ones), so its numbers are not those of the official judge prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, GradedRow, Rubric
from mixpo.evaluate.benchmarks.files import images_of, text_of
from mixpo.evaluate.benchmarks.metrics import grouped, judge_score
from mixpo.evaluate.benchmarks.rules import REASONING

PROMPT = """\
Grade an answer to a question about an image that you cannot see. You are given the reference answer.
Parts of the reference joined by <AND> must all be in the answer. Of parts joined by <OR> one is enough.
Give a mark from 0.0 (totally wrong) to 1.0 (totally right) in steps of 0.1: the share of the reference that the answer gets right.
Examples, as question | reference | answer | mark:
What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0

Question: {question}
Reference: {reference}
Answer: {answer}

Reply with the mark alone, as a number."""
_SCORE = re.compile(r"(?<![\d.\-])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?!\.?\d)")
_PARTS = re.compile(r"\s*<(AND|OR)>\s*")
"""What joins parts of a reference; the benchmark's own evaluator sets it apart by spaces before the judge sees it."""
_NUMBER = re.compile(r"-?\d*\.?\d+")


def row(fields: Fields) -> Draft:
    """A row of mm-vet.json, of the Parquet files (capabilities joined by commas), or of VLMEvalKit's table."""
    listed = fields.get("capability", fields.get("category")) or ()
    names = listed.split(",") if isinstance(listed, str) else listed
    capabilities = sorted({str(name).strip().lower() for name in names} - {""})
    return Draft(
        text=text_of(fields, "question"),
        images=images_of(fields, folder="images"),
        answer=_PARTS.sub(r" <\1> ", text_of(fields, "answer")),
        kind="text",
        domain="+".join(capabilities),
        facts={"id": text_of(fields, "question_id", "key", "index"), "capabilities": capabilities},
    )


def read(reply: str) -> tuple[float, ...] | None:
    """The one number in a reply ("0.5 .", "Correctness: 0.5"); None unless there is exactly one, from 0 to 1.

    The benchmark's own evaluator takes the first word; VLMEvalKit makes these two replies 0.
    """
    numbers = _NUMBER.findall(reply)
    scores = _SCORE.findall(reply)
    return (float(scores[0]),) if len(numbers) == 1 and len(scores) == 1 else None


SCORE = judge_score("score", read)
"""100 times the mean score, as the benchmark's own evaluator gives it."""


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """By capability (a row counts in each of its own) and by combination of capabilities, as the benchmark's own evaluator gives them."""
    single = grouped(rows, "capability", lambda row: row.facts["capabilities"], SCORE)
    return [*single, *grouped(rows, "combination", lambda row: ("+".join(row.facts["capabilities"]),), SCORE)]


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    row=row,
    measures=(SCORE,),
    breakdown=breakdown,
    splits=(("test",),),
    files=("mm-vet.json", "MMVet.tsv"),
    cot=REASONING,
    rubric=Rubric(prompt=PROMPT, read=read, share=lambda scores: scores[0], passes=lambda scores: scores[0] >= 0.5),
)
