"""LLaVA-Bench in the wild (60 questions): a judge grades the model's answer next to a reference answer, both from 1 to 10.

Source of format and score: liuhaotian/llava-bench-in-the-wild and LLaVA's review scripts. The score is a ratio of means, not a mean of
ratios, and may exceed 100. The judge's instruction is in our own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks.base import Benchmark, Draft, Fields, Place, Rubric, without_reasoning
from mixpo.evaluate.benchmarks.files import images_of, text_at, text_of
from mixpo.evaluate.benchmarks.metrics import by_facts, judge_score
from mixpo.evaluate.benchmarks.rules import REASONING
from mixpo.sources.jsonl import lines
from mixpo.types import Skipped

CATEGORIES = ("conv", "detail", "complex")
SYSTEM = "You compare answers of assistants, precisely and without favour."
PROMPT = """\
Two assistants answered a question about an image. You cannot see it; this describes it:
{context}

Question: {question}

[Start of assistant 1]
{reference}
[End of assistant 1]

[Start of assistant 2]
{answer}
[End of assistant 2]

Mark both from 1 to 10 for helpfulness, relevance, accuracy and detail; higher is better. The order must not matter.
First line: the mark of assistant 1 and the mark of assistant 2, two numbers with a space between. Then say why."""
_TWO = re.compile(r"(?![^\d\n]*(?i:assistant)\s*\d)[^\d\n]*?(\d+(?:\.\d+)?)(?:\s*/\s*10)?[^\d\n]+?(\d+(?:\.\d+)?)(?:\s*/\s*10)?[^\d\n]*\n?")
_SCORE = r"\s*(?:[:=]|\b(?:scores?|gets|receives)\b)\s*(\d+(?:\.\d+)?)(?:\s*/\s*10)?"
_NAMED = re.compile(rf"(?i)assistant\s*1{_SCORE}\s*[,;.]?\s*(?:and\s+)?assistant\s*2{_SCORE}(?![\d.]*\d)")
"""Scores that name the assistants, on one line or two."""


def row(fields: Fields) -> Draft:
    """A row of questions.jsonl with its context and reference, of the Parquet files, or of VLMEvalKit's table."""
    category = text_of(fields, "category").lower().removeprefix("llava_bench_")
    caption = fields.get("caption")
    context = "\n".join(map(str, caption)) if isinstance(caption, (list, tuple)) else text_of(fields, "caption")
    return Draft(
        text=text_of(fields, "question", "text"),
        images=[f"images/{image}" if isinstance(image, str) and re.fullmatch(r"\d+\.\w+", image) else image for image in images_of(fields)],
        answer=text_of(fields, "gpt_answer", "gpt4_ans", "answer"),
        kind="text",
        domain=category,
        facts={"id": text_of(fields, "question_id", "index", "key"), "category": category, "context": context},
    )


def joined(places: Iterable[Place | Skipped], folder: Path, answers: Path | None) -> Iterator[Place | Skipped]:
    """Adds caption and reference answer from context.jsonl and answers_gpt4.jsonl where the questions have none."""
    captions: dict[str, object] = {}
    references: dict[str, object] = {}
    for place in places:
        if isinstance(place, Skipped) or {"gpt_answer", "gpt4_ans"} & set(place[1]) or not {"image", "question_id"} <= set(place[1]):
            yield place
            continue
        if not captions:
            captions = _column(folder / "context.jsonl", "image", "caption")
            references = _column(answers or folder / "answers_gpt4.jsonl", "question_id", "text")
        where, fields = place
        image, number = text_at(place, "image"), text_at(place, "question_id")
        if image not in captions or number not in references:
            missing = f"context of image {image}" if image not in captions else f"reference answer to question {number}"
            raise SourceError(
                f"{where}: no {missing}; keep context.jsonl and answers_gpt4.jsonl next to questions.jsonl",
                code="reference-missing",
                path=where,
            )
        yield where, {**fields, "caption": captions[image], "gpt_answer": references[number]}


def _column(path: Path, key: str, value: str) -> dict[str, object]:
    return {text_at(place, key): place[1].get(value) for place in lines(path) if not isinstance(place, Skipped)}


def read(reply: str) -> tuple[float, ...] | None:
    """The two numbers on the first line that has any ("8, 7", "8 7 ", "8/10 and 7/10"); None unless both are from 1 to 10.

    LLaVA's review script makes the first two (-1, -1), which enter its means.
    """
    reply = without_reasoning(reply)
    line = next((line for line in reply.strip().splitlines() if re.search(r"\d", line)), "")
    match = _NAMED.search(reply) or _TWO.fullmatch(line)
    scores = (float(match[1]), float(match[2])) if match else ()
    return scores if scores and all(1 <= score <= 10 for score in scores) else None


RELATIVE = judge_score("relative score", read, lambda scores: scores[1], lambda scores: scores[0], most=None)
"""100 times the mean score of the model over the mean score of the reference, as LLaVA's `summarize_gpt_review.py` gives it."""
MODEL = judge_score("model score", read, lambda scores: scores[1], scale=10.0, unit="", most=10.0)
REFERENCE = judge_score("reference score", read, scale=10.0, unit="", most=10.0)
"""Ten times the mean scores of both sides, from the same script."""


BENCHMARK = Benchmark(
    name="llava_bench",
    title="LLaVA-Bench (in the wild)",
    row=row,
    measures=(RELATIVE, MODEL, REFERENCE),
    breakdown=by_facts("category", measure=RELATIVE),  # as `summarize_gpt_review.py`
    splits=(("train",),),
    files=("questions.jsonl", "LLaVABench.tsv"),
    joined=joined,
    direct="{question}\nAnswer this question in detail.",
    cot=REASONING,
    rubric=Rubric(
        prompt=PROMPT, system=SYSTEM, read=read, share=lambda scores: scores[1] / 10, passes=lambda scores: scores[1] >= scores[0]
    ),
)
