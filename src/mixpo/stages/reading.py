"""One pass over a source: which rows can be used, which cannot and why. The source stage, `check` and `plan` read by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo.errors import SourceError
from mixpo.recipe import AnySource, ImageTable, Recipe
from mixpo.types import ImageRef, Notice, Question, Skipped

if TYPE_CHECKING:
    from mixpo.sources.build import SourceRow
    from mixpo.sources.decontaminate import ContaminationFilter
    from mixpo.stages.job import Context

FIXED = ("digits", "charts", "easy_vqa")
"""Kinds whose questions follow from their settings alone."""

NO_ANSWER = "a question without an answer cannot be evaluated; remove the row or give its answer"
NO_RESPONSE = "a row of train.replay without an answer cannot be trained on; remove it or give its answer"


@dataclass(kw_only=True)
class SourceReading:
    """A source, and what its rows are checked for. skipped, notices: what came up so far.

    table: None where all questions are of imported pairs. images: folder for images that have no file of their own. limit: usable
    questions to read. evaluated: questions need an answer. replayed: rows need a response. contamination: what must not be trained on.
    """

    recipe: Recipe
    recipe_folder: Path
    images: Path
    table: AnySource | None
    limit: int | None = None
    evaluated: bool = False
    replayed: bool = False
    contamination: ContaminationFilter | None = None
    skipped: list[Skipped] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[SourceRow | Skipped | Notice]:
        """What the source or the benchmark holds, in order and unchecked.

        Raises SourceError, with the name of the evaluation set, for a source that cannot be read, and for responses that no engine of
        the recipe reads.
        """
        from mixpo.evaluate import benchmarks
        from mixpo.sources import read_rows

        table = self.table
        if table is None:
            return
        try:
            rows: Iterator[SourceRow | Skipped | Notice] = (
                benchmarks.read(table, self.recipe_folder, self.images)
                if table.kind == "benchmark"
                else read_rows(table, recipe_folder=self.recipe_folder, images=self.images)
            )
            for item in rows:
                if isinstance(item, Notice) and item.code and self.recipe.sample.engine != "file":
                    message = f"{item.where}: {item.text}"
                    raise SourceError(message, code="source-holds-responses", path=item.where, key="sample.responses")
                yield item
        except SourceError as error:
            # All tables of sources have the same keys.
            named = [f"evaluate.sets.{s.name}: " for s in self.recipe.evaluate.sets if s.source is table]
            raise SourceError("".join(named) + str(error), code=error.code, path=error.path, line=error.line, key=error.key) from None

    @property
    def images_unchecked(self) -> bool:
        """Whether images are made by us, or a benchmark is scored without them."""
        table = self.table
        return self.fixed or (table is not None and table.kind == "benchmark" and table.images == "optional")

    @property
    def fixed(self) -> bool:
        """Whether the questions follow from the settings alone: once read, they need no second look."""
        return self.table is not None and self.table.kind in FIXED

    def questions(self) -> Iterator[Question]:
        """The usable questions, at most `limit`.

        Images are checked (format, size) but not decoded: a truncated one is found when the model needs it, and listed there.
        """
        usable = 0
        for item in self.rows():
            if isinstance(item, Notice):
                self.notices.append(f"{item.where}: {item.text}")
            elif isinstance(item, Skipped):
                self.skipped.append(item)
            elif reason := self._unusable(item.question):
                self.skipped.append(Skipped(where=item.where, reason=reason))
            else:
                usable += 1
                yield item.question
                if usable == self.limit:
                    return

    def blocks(self) -> Iterator[list[Question]]:
        """The usable questions, `shard_size` at a time."""
        questions = self.questions()
        while block := list(islice(questions, self.recipe.shard_size)):
            yield block

    def _unusable(self, question: Question) -> str | None:
        if not self.images_unchecked and (reason := unusable_image(question, self.recipe.image)):
            return reason
        if self.evaluated and question.answer is None:
            return NO_ANSWER
        if self.replayed and not question.sft_response:
            return NO_RESPONSE
        return self.contamination.reason(question) if self.contamination is not None else None


def reading_of(context: Context, table: AnySource | None, **checks: Any) -> SourceReading:
    """The reading of a source in a run. checks: `evaluated`, `replayed` and `contamination`."""
    run, recipe = context.run, context.recipe
    return SourceReading(recipe=recipe, recipe_folder=context.recipe_folder, images=run.images, table=table, limit=context.limit, **checks)


def unusable_image(question: Question, table: ImageTable) -> str | None:
    """What is wrong with the first bad image of a question, or None."""
    reasons = (_probe(image, table) for image in question.images)
    return next((reason for reason in reasons if reason), None)


@lru_cache(maxsize=4096)
def _probe(image: ImageRef, table: ImageTable) -> str | None:
    # Many questions share an image, and they usually stand together.
    from mixpo.images import probe

    return probe(Path(image.path), table, decode=False)
