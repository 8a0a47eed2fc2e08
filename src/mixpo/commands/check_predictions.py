"""`mixpo check` of responses of other tools: [[evaluate.predictions]] and `sample.responses` are matched to questions; needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixpo.engines.saved import SavedResponses
from mixpo.errors import MixpoError
from mixpo.evaluate.predictions import Matched, check_complete, match, read_predictions
from mixpo.plural import amount, first_few
from mixpo.recipe import PredictionsTable, Recipe
from mixpo.stages.prompting import prompt_for
from mixpo.types import Question

if TYPE_CHECKING:
    from mixpo.commands.check import Checked

WORDS = {
    "rows": "rows",
    "duplicates": "duplicate rows",
    "unmatched": "unmatched rows",
    "missing": "missing responses",
}
"""What the counts of a match are called."""


def check_predictions(recipe: Recipe, recipe_folder: Path, questions: Mapping[str, Sequence[Question]], checked: Checked) -> None:
    """Counts, and what is wrong, go to `checked`. questions: by set, all of them; a set that was read in part is not in it."""
    for table in recipe.evaluate.predictions:
        name, path = f"predictions {table.name}", recipe_folder / table.path
        asked = questions.get(recipe.evaluate.set_of(table))
        try:
            rows = list(read_predictions(path))
            if asked is None:
                checked.counts[f"{name}: rows"] = len(rows)
                continue
            matched = match(rows, asked)
            checked.counts.update({f"{name}: {WORDS[key]}": number for key, number in matched.counts.items() if number or key == "rows"})
            for item in matched.skipped:
                checked.add(item.where, item.reason, to="notices")
            check_complete(path, matched, len(asked), 1.0 if table.partial and matched.rows else recipe.max_error_rate)
            _check_given(recipe, table, matched, checked)
        except MixpoError as error:
            checked.add(name, str(error))


def check_saved(recipe: Recipe, recipe_folder: Path, questions: Sequence[Question], checked: Checked) -> None:
    """The same for the saved responses of engine = "file". questions: all of the source."""
    path, where = recipe_folder / (recipe.sample.responses or ""), "sample.responses"
    try:
        prompts = ((question, prompt_for(recipe.prompt, question).render(question.text)) for question in questions)
        saved = SavedResponses(path, prompts, recipe.sample.n)
    except MixpoError as error:
        checked.add(where, str(error).removeprefix(f"{where}: "))
        return
    checked.counts[f"{where}: rows"] = saved.counts["rows"]
    for item in saved.unmatched:
        checked.add(item.where, item.reason, to="notices")
    if missing := [question.label for question in questions if question.id not in saved]:
        few = len(missing) <= recipe.max_error_rate * len(questions)
        what = f"no responses to {len(missing)} of {amount(len(questions), 'question')} ({first_few(missing, 3)})"
        checked.add(where, f"{what}; add them, or remove the questions", to="notices" if few else "findings")


def _check_given(recipe: Recipe, table: PredictionsTable, matched: Matched, checked: Checked) -> None:
    if recipe.evaluate.extractor == "given" and all(row.given is None for row in matched.rows.values()):
        checked.add(f"predictions {table.name}", 'no short answers in the file; use another evaluate.extractor than "given"')
