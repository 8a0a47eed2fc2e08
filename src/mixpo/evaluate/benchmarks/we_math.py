"""We-Math (testmini, 1,740 questions): multi-step problems with every step as a question of its own, so that 525 problems are scored.

Source of format and rules: the benchmark's `testmini.json` and `four_dimensional_metrics.py`. A problem is mastered if its steps and the
whole are right, half so if only the whole is wrong; the whole right without its steps is rote memorization and counts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Figure, GradedRow, Measure
from mixpo.evaluate.benchmarks.files import choices_of, images_of, text_of
from mixpo.evaluate.benchmarks.metrics import ACCURACY, measured
from mixpo.evaluate.benchmarks.rules import check_option, letters, same
from mixpo.evaluate.statistics import Term, cluster_of
from mixpo.plural import amount
from mixpo.sources.build import lettered
from mixpo.types import Question
from mixpo.verify.judgement import Judgement, Options

WHOLE = "multi"
"""Last part of the key of a problem as a whole; the others number its steps."""


def row(fields: Fields) -> Draft:
    """A row of testmini.json (options in one text), or of VLMEvalKit's table."""
    listed = text_of(fields, "option", default="")
    choices = tuple(part.strip(" ;") for part in re.split(r"(?:^|[;\n])\s*[A-H]\.", listed)[1:]) or choices_of(fields)
    answer = text_of(fields, "answer")
    if answer not in letters(len(choices)):
        raise SourceError(f"answer {answer[:20]!r} is none of {amount(len(choices), 'option')}", code="gold-not-an-option")
    problem, _, step = text_of(fields, "key").rpartition("_")
    image = fields.get("image_path")
    return Draft(
        text=f"{text_of(fields, 'question')}\n{lettered(choices)}",
        images=[image] if image and not fields.get("image") else images_of(fields),
        answer=answer,
        kind="choice",
        choices=choices,
        domain=problem,
        facts={
            "id": f"{text_of(fields, 'ID', 'id')} {step}",
            "problem": text_of(fields, "ID", "id"),
            "steps": problem,
            "step": step,
            "concept": text_of(fields, "knowledge concept", "knowledge_concept", default=""),
        },
    )


def check_paper(extracted: str, question: Question, facts: Fields, options: Options) -> Judgement:
    """The released rule on the whole response: the first character after the last "Answer", brackets, colons and dots removed.

    "Final answer: B" has no "Answer", so that the response is wrong unless it begins with the letter.
    """
    tail = re.sub(r"[<>:.]", "", extracted.rpartition("Answer")[2].strip()).strip()
    return same(tail[:1] == question.answer and tail[:1] in tuple("ABCDEFGH"), "letters")


Parts = tuple[bool, bool, bool]
"""Of a problem: every step right, any step right, the whole right."""


def problems(rows: Sequence[GradedRow]) -> list[tuple[str, GradedRow, Parts]]:
    """The problems whose rows are all there: name, the row of the whole, and what is right."""
    grouped: dict[str, list[GradedRow]] = {}
    for row in rows:
        grouped.setdefault(row.facts["problem"], []).append(row)
    result = []
    for name, part in grouped.items():
        whole = [row for row in part if row.facts["step"] == WHOLE]
        steps = [row.right for row in part if row.facts["step"] != WHOLE]
        if whole and f"{len(steps)}steps" == part[0].facts["steps"]:
            result.append((name, whole[0], (all(steps), any(steps), whole[0].right)))
    return result


def over_problems(name: str, credit: Callable[[Parts], float]) -> Measure:
    """The mean credit of problems; those with a row missing (under --limit) are excluded."""

    def terms(rows: Sequence[GradedRow]) -> tuple[list[Term], int]:
        complete = problems(rows)
        measured = [Term(name, cluster_of(row.question), "", credit(parts), 1.0) for name, row, parts in complete]
        return measured, len({row.facts["problem"] for row in rows}) - len(complete)

    return Measure(name=name, terms=terms)


STRICT = over_problems("score (strict)", lambda parts: float(parts[0] and parts[2]) + 0.5 * (parts[0] and not parts[2]))
LOOSE = over_problems("score (loose)", lambda parts: float(parts[1] and parts[2]) + 0.5 * (parts[0] and not parts[2]))
"""Strict: mastery needs every step; loose: any step."""
KINDS = (
    over_problems("insufficient knowledge", lambda parts: float(not parts[0] and not parts[2])),
    over_problems("inadequate generalization", lambda parts: float(parts[0] and not parts[2])),
    over_problems("complete mastery (strict)", lambda parts: float(parts[0] and parts[2])),
    over_problems("rote memorization (strict)", lambda parts: float(not parts[0] and parts[2])),
    over_problems("complete mastery (loose)", lambda parts: float(parts[1] and parts[2])),
    over_problems("rote memorization (loose)", lambda parts: float(not parts[1] and parts[2])),
)
"""Shares of all problems. The released script divides rote memorization by mastery plus rote memorization instead."""


def breakdown(rows: Sequence[GradedRow]) -> list[Figure]:
    """The four dimensions, and the accuracy of single steps, two-step and three-step problems."""
    dimensions = [measured(measure, rows, group="dimension") for measure in KINDS]
    parts = {
        "one step": [row for row in rows if row.facts["step"] != WHOLE],
        "two steps": [row for row in rows if row.facts["steps"] == "2steps" and row.facts["step"] == WHOLE],
        "three steps": [row for row in rows if row.facts["steps"] == "3steps" and row.facts["step"] == WHOLE],
    }
    return [*dimensions, *(measured(ACCURACY, part, name, "steps") for name, part in parts.items() if part)]


BENCHMARK = Benchmark(
    name="we_math",
    title="We-Math",
    row=row,
    measures=(STRICT, LOOSE, ACCURACY),
    breakdown=breakdown,
    splits=(("testmini",),),
    files=("testmini.json", "WeMath.tsv"),
    direct="{question}\nAnswer with the option's letter from the given choices directly.",
    checks={"robust": check_option, "paper": check_paper, "official": check_paper},
)
