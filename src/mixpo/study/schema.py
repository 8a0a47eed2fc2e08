"""study.toml: a recipe, its variants, seeds, validation and test sets. Read and checked whole before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mixpo.errors import RecipeError
from mixpo.recipe import STAGES, EvaluationSource, Recipe, Table, did_you_mean, load
from mixpo.recipe.errors import describe
from mixpo.recipe.load import demo_recipe, override, read_toml
from mixpo.types import content_id

BASE = "base"
"""What the model before any training is called."""


class StudySet(Table):
    """A set of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Its name in folders and tables; without a source, that of a set in the recipe's `[[evaluate.sets]]`."""
    source: EvaluationSource | None = None
    """Where its questions come from, as in `[[evaluate.sets]]`; paths are relative to the recipe."""


class Variant(Table):
    """One row of the table: the recipe with some keys set."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Its name in folders and on the command line."""
    title: str = ""
    """Its name in tables; empty means `name`."""
    set: tuple[str, ...] = ()
    """Recipe keys, each `"table.key=value"` as with `mixpo run --set`."""


class CompareTable(Table):
    """What is compared with what."""

    baseline: str = BASE
    """The variant that all others are compared with; "base" is the base model."""
    mode: Literal["cot", "direct", "sampled"] = "cot"
    """The answers whose accuracy decides: greedy chain of thought, greedy direct answers, or the mean of sampled ones."""
    tested: int = Field(default=1, ge=1)
    """How many variants the validation sets choose for the test sets. The baseline is tested in any case."""


class Study(Table):
    """A whole study."""

    recipe: str
    """The base recipe, relative to the study file; "mixpo:demo" is the recipe of the demo."""
    title: str = ""
    """Heading of the page; empty means the name of the file."""
    set: tuple[str, ...] = ()
    """Recipe keys for all variants, each `"table.key=value"`."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every variant runs once with each; takes the place of the recipe's `seed`."""
    compare: CompareTable = CompareTable()
    variants: tuple[Variant, ...] = Field(min_length=1)
    """The variants, in the order of the tables."""
    validation: tuple[StudySet, ...] = Field(min_length=1)
    """Sets that choose among the variants; with `test` they take the place of the recipe's `[[evaluate.sets]]`."""
    test: tuple[StudySet, ...] = ()
    """Sets that are opened once, at the end, for the chosen variants."""

    @model_validator(mode="after")
    def _distinct(self) -> Study:
        for what, names in (
            ("variants", [variant.name for variant in self.variants]),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("sets of validation and test", [part.name for part in (*self.validation, *self.test)]),
        ):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"two {what} are {twice!r}; give each its own")
        if any(variant.name == BASE for variant in self.variants):
            raise ValueError(f"variants: {BASE!r} is the name of the base model; take another")
        return self

    @model_validator(mode="after")
    def _baseline_is_there(self) -> Study:
        names = [BASE, *(variant.name for variant in self.variants)]
        if self.compare.baseline not in names:
            hint = did_you_mean(self.compare.baseline, names)
            raise ValueError(f"compare.baseline: no variant {self.compare.baseline!r}{hint}; known: {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """One variant with one seed: a run directory `name`. model: what its trained model is called in there."""

    variant: Variant
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed-{self.seed}"

    @property
    def model(self) -> str:
        return self.recipe.train.objective if self.recipe.trains else BASE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStudy:
    """A study with the recipes of all its runs. limit, settings: `--limit` and `--set` of the command."""

    path: Path
    table: Study
    recipe_folder: Path
    runs: tuple[StudyRun, ...]
    limit: int | None
    settings: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.table.title or self.path.stem

    @property
    def test_names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.table.test)

    @property
    def validation_names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.table.validation)

    def runs_of(self, variant: str) -> list[StudyRun]:
        """The runs of a variant, by seed."""
        return [run for run in self.runs if run.variant.name == variant]

    def digest(self, variant: str) -> str:
        """What decides the results of a variant: its recipe without speed and names, its sets, and the limit."""
        recipe = self.runs_of(variant)[0].recipe.model_copy(update={"seed": 0})
        deciding = [recipe.deciding(stage) for stage in STAGES if stage != "report"]
        sources = recipe.model_dump(mode="json", include={"source": True, "preferences": True, "evaluate": {"sets"}})
        return content_id(deciding, sources, self.limit)


def load_study(path: Path, settings: Sequence[str] = (), limit: int | None = None) -> LoadedStudy:
    """Read a study and the recipes of its variants. settings: recipe keys for all variants, after those of the study.

    Raises RecipeError naming the file, line, variant and key, with the nearest known key.
    """
    table = _read(path)
    recipe_path = _recipe_path(path, table)
    sets = _sets(path, table, recipe_path)
    runs = []
    # All seeds of a variant before the next one: side by side they share nothing, and later variants find their stages made.
    for variant in table.variants:
        recipe = _recipe_of(path, table, recipe_path, sets, variant, settings)
        runs += [StudyRun(variant=variant, seed=seed, recipe=recipe.model_copy(update={"seed": seed})) for seed in table.seeds]
    return LoadedStudy(
        path=path,
        table=table,
        recipe_folder=recipe_path.parent.absolute(),
        runs=tuple(runs),
        limit=limit,
        settings=tuple(settings),
    )


def _read(path: Path) -> Study:
    text, data = read_toml(path, "study")
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        raise RecipeError(
            "\n".join(describe(Study, str(path), text, (), problem) for problem in problems),
            code="study-invalid",
            path=path,
            key=".".join(str(part) for part in problems[0]["loc"]) or None,
        ) from None


def _recipe_path(path: Path, table: Study) -> Path:
    if table.recipe == "mixpo:demo":
        return demo_recipe()
    return path.parent / table.recipe


def _sets(path: Path, table: Study, recipe_path: Path) -> list[dict[str, Any]]:
    """All sets as they are in [[evaluate.sets]], those of validation first."""
    parts = (*table.validation, *table.test)
    known = {}
    if any(part.source is None for part in parts):
        known = {own.name: own.source for own in load(recipe_path).evaluate.sets}
    sets = []
    for part in parts:
        source = part.source or known.get(part.name)
        if source is None:
            raise RecipeError(
                f"{path}: set {part.name!r} has no source, and {recipe_path.name} has no evaluation set of this name"
                f"{did_you_mean(part.name, known)}; give it a source",
                code="study-set-unknown",
                path=path,
                key=part.name,
            )
        sets.append({"name": part.name, "source": source.model_dump(mode="json", exclude_unset=True, exclude_none=True)})
    return sets


RESERVED = {"seed": "seeds", "evaluate.sets": "[[validation]] and [[test]]"}
"""Recipe keys that the study sets itself, and where."""


def _recipe_of(
    path: Path, table: Study, recipe_path: Path, sets: list[dict[str, Any]], variant: Variant, settings: Sequence[str]
) -> Recipe:
    """The recipe of a variant, checked for what a study needs."""
    changes = (*table.set, *settings, *variant.set)
    for change in changes:
        key = change.partition("=")[0].strip()
        if key in RESERVED:
            message = f"{path}: set: {change}: {key} is decided by {RESERVED[key]} of the study"
            raise RecipeError(message, code="study-key-reserved", path=path, key=key)
    try:
        recipe = load(recipe_path, (*changes, override("evaluate.sets", sets)))
    except RecipeError as error:
        lines = "\n".join(f"{path}: variant {variant.name!r}: {line}" for line in str(error).split("\n"))
        raise RecipeError(lines, code=error.code, path=path, line=error.line, key=error.key) from None
    _check(path, table, variant, recipe)
    return recipe


def _check(path: Path, table: Study, variant: Variant, recipe: Recipe) -> None:
    where, evaluate = f"{path}: variant {variant.name!r}", recipe.evaluate
    if not evaluate.own_models:
        message = f"{where}: evaluate.own_models = false leaves nothing to compare; remove it"
        raise RecipeError(message, code="study-without-models", path=path, key="evaluate.own_models")
    modes = (*evaluate.modes, *(["sampled"] if evaluate.samples else []))
    if table.compare.mode not in modes:
        key = "evaluate.samples" if table.compare.mode == "sampled" else "evaluate.modes"
        message = f"{where}: compare.mode = {table.compare.mode!r} is not evaluated; set {key}"
        raise RecipeError(message, code="study-mode-missing", path=path, key=key)
    for key, watched in (("watch", recipe.train.watch), ("guard", recipe.train.guard)):
        if watched is not None and watched.set in {part.name for part in table.test}:
            message = f"{where}: train.{key} would read the test set {watched.set!r} while training; name a set of [[validation]]"
            raise RecipeError(message, code="study-test-watched", path=path, key=f"train.{key}.set")
