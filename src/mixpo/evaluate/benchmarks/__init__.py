"""The benchmarks by name, and how one is read. Each is one file; none knows of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks import (
    crpe,
    files,
    llava_bench,
    logicvista,
    m3cot,
    mathverse,
    mathvision,
    mathvista,
    mmhal,
    mmmu,
    mmvet,
    pope,
    we_math,
)
from mixpo.evaluate.benchmarks.base import Benchmark, Figure, GradedRow, Rubric, facts_of, make
from mixpo.recipe import BenchmarkSource
from mixpo.sources.build import SourceRow
from mixpo.sources.images import Pictures
from mixpo.types import ImageRef, Question, Skipped, content_id

__all__ = ["BENCHMARKS", "Benchmark", "Figure", "GradedRow", "Rubric", "benchmark_of", "facts_of", "prompt_of", "read"]

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        mathvista,
        mathvision,
        m3cot,
        mmvet,
        llava_bench,
        pope,
        crpe,
        mmhal,
        mmmu,
        mathverse,
        we_math,
        logicvista,
    )
}


def read(source: BenchmarkSource, base: Path, images: Path) -> Iterator[SourceRow | Skipped]:
    """The rows of a benchmark as questions, in order; a row that cannot be used is Skipped with the reason.

    A repeated row is a question of its own, with the fact "repeat": published scores count every row.
    Raises SourceError when the benchmark as a whole cannot be read.
    """
    benchmark = BENCHMARKS[source.name]
    path = base / source.path
    root = files.root_of(source, base)
    if not root.is_dir():
        raise SourceError(f"source.root: {root} is not a folder", code="folder-missing", path=root, key="source.root")
    splits = ((source.split,),) if source.split else benchmark.splits
    paths = files.find(path, () if source.split else benchmark.files, splits)
    answers = base / source.answers if source.answers else None
    pictures = (Pictures if source.images == "required" else OptionalPictures)(root, images)
    seen: Counter[str] = Counter()
    for place in benchmark.joined(files.rows(paths), files.folder_of(path), answers):
        if isinstance(place, Skipped):
            yield place
            continue
        where, fields = place
        try:
            draft = benchmark.row(fields)
            question = make(draft, pictures, benchmark.name)
            seen[question.id] += 1
            if (times := seen[question.id]) > 1:
                question = make(replace(draft, facts={**draft.facts, "repeat": times}), pictures, benchmark.name)
            yield SourceRow(where=where, question=question)
        except SourceError as error:
            yield Skipped(where=where, reason=str(error))


class OptionalPictures(Pictures):
    """Images that may be missing, because no model is asked: a missing one is identified by its name."""

    def find(self, name: str) -> ImageRef:
        """The image at a path relative to the root, or its name alone."""
        try:
            return super().find(name)
        except SourceError:
            return ImageRef(path=str(self.root / name), digest=content_id("missing image", name))


def benchmark_of(question: Question) -> Benchmark | None:
    """The benchmark that a question belongs to; None for questions of other sources."""
    return BENCHMARKS[facts_of(question)["benchmark"]] if question.facts else None


def prompt_of(question: Question, mode: str) -> str | None:
    """The prompt that the question's benchmark has for a mode, or None where the recipe's prompt is used."""
    benchmark = benchmark_of(question)
    if benchmark is None:
        return None
    if mode != "direct":
        return benchmark.cot.replace("{question}", question.text) if benchmark.cot else None
    direct = facts_of(question).get("direct")
    if direct is None:
        return benchmark.direct.replace("{question}", question.text)
    # The images stand first in both.
    tokens = question.text[: len(question.text) - len(question.text.removeprefix("<image>\n" * len(question.images)))]
    return tokens + str(direct)
