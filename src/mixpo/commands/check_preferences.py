"""`mixpo check` of [[preferences]]: every row read, every image decoded, every pair as long as training would see it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mixpo.commands.checked_model import measured
from mixpo.errors import MixpoError
from mixpo.preferences import DUPLICATE, Imported, read
from mixpo.progress import Progress
from mixpo.recipe import PreferencesTable, Recipe
from mixpo.sources.decontaminate import ContaminationFilter
from mixpo.stages.imported import contaminated
from mixpo.types import Notice, Pair, Question, Skipped

if TYPE_CHECKING:
    from mixpo.commands.check import Checked
    from mixpo.commands.checked_model import CheckedModel

REMEMBERED = 4096
"""Questions whose length is remembered: pairs of one question usually stand together."""


class PreferencesCheck:
    """Checks the tables of a recipe; findings, notices and counts go to a `Checked`. images: folder for copies of images."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_folder: Path,
        images: Path,
        model: CheckedModel | None,
        contamination: ContaminationFilter | None,
        checked: Checked,
    ) -> None:
        self.recipe, self.recipe_folder, self.images = recipe, recipe_folder, images
        self.model, self.contamination, self.checked = model, contamination, checked
        self._measured = lru_cache(maxsize=REMEMBERED)(self._measure)

    def run(self, progress: Progress, limit: int | None = None) -> None:
        """Check every table. limit: usable pairs to check in each."""
        for table in self.recipe.preferences:
            name = f"preferences {table.path}"
            progress.start(f"check {name}", min(table.count or limit or 0, limit or table.count), "pairs")
            try:
                self._table(name, table, progress, limit)
            except MixpoError as error:
                self.checked.add(name, str(error))
            progress.finish()

    def _table(self, name: str, table: PreferencesTable, progress: Progress, limit: int | None) -> None:
        checked, last = self.checked, ""
        counts = dict.fromkeys(("rows", "pairs", "usable pairs", "skipped rows"), 0)
        for item in read([table], self.recipe_folder, self.images):
            if isinstance(item, Notice):
                checked.add(item.where, item.text, to="notices")
                continue
            counts["rows"] += item.where != last
            last = item.where
            if isinstance(item, Skipped):
                counts["skipped rows"] += 1
                if item.reason == DUPLICATE:
                    checked.add(item.where, f"{item.reason}: {item.repeats}", to="duplicates")
                else:
                    checked.add(item.where, item.reason)
                continue
            counts["pairs"] += 1
            usable = self._pair(item)
            counts["usable pairs"] += usable
            progress.advance(usable)
            if counts["usable pairs"] == limit:
                break
        checked.counts.update({f"{name}: {what}": count for what, count in counts.items()})
        if not counts["usable pairs"]:
            checked.add(name, "no pair is usable" if counts["rows"] else "the files hold no rows")

    def _pair(self, item: Imported) -> bool:
        """Whether a pair can be trained on; if not, it is on a list."""
        problems = self._problems(item.question, item.pair)
        for problem in problems:
            self.checked.add(item.where, problem)
        if problems:
            return False
        if reason := contaminated(self.contamination, item.question):
            self.checked.add(item.where, reason, to="left_out")
            return False
        self.checked.origins |= {item.question.source, item.question.domain} - {""}
        return True

    def _problems(self, question: Question, pair: Pair) -> list[str]:
        problems, length = self._measured(question)
        return problems or (list(pair_problems(self.recipe, self.model, pair, length)) if self.model is not None else [])

    def _measure(self, question: Question) -> tuple[list[str], int]:
        """What is wrong with a question, and the tokens of its prompt."""
        return measured(self.recipe, self.model, question, question.text)


def pair_problems(recipe: Recipe, model: CheckedModel, pair: Pair, prompt: int) -> Iterator[str]:
    """What keeps a pair from being trained on. prompt: tokens of its prompt."""
    limit = min(recipe.train.max_length, model.context)
    if prompt >= limit:
        yield f"over-long: a prompt of {prompt} tokens leaves no room for a response in {limit}; raise train.max_length or shorten it"
        return
    sides = {}
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        try:
            sides[side] = model.response(text)
        except MixpoError as error:
            yield f"{side}: {error}"
            continue
        if sides[side].empty:
            yield f"{side}: the tokenizer makes no token of {text[:40]!r}, so training would supervise nothing"
        elif prompt + sides[side].length > limit:
            yield f"over-long: prompt and {side} have {prompt + sides[side].length} tokens, more than {limit}; raise train.max_length"
    if len(sides) == 2 and sides["chosen"] == sides["rejected"]:
        yield "chosen and rejected become the same tokens"
