"""The whole recipe, and how a file becomes one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from mixpo.errors import RecipeError
from mixpo.recipe.base import NOTHING, Decides, Table
from mixpo.recipe.data import ImageTable, ModelTable, PairsTable, PromptTable, SampleTable, VerifyTable
from mixpo.recipe.errors import describe, did_you_mean
from mixpo.recipe.evaluate import EvaluateTable, ReportTable
from mixpo.recipe.preferences import PreferencesTable
from mixpo.recipe.server import ClusterTable
from mixpo.recipe.sources import TrainingSource
from mixpo.recipe.train import TrainTable


class Recipe(Table):
    """A whole run."""

    seed: Annotated[int, Decides("sample", "continue", "branch", "pair", "select", "train", "answer")] = 0
    """Every random choice is keyed by this seed and what it decides."""
    shard_size: Annotated[int, Decides("source")] = Field(default=64, ge=1)
    """Questions in one record file: the unit of resume."""
    max_error_rate: Annotated[float, NOTHING] = Field(default=0.05, ge=0, le=1)
    """A stage in which a larger share of questions fails ends with exit status 1 (the others are kept)."""
    source: TrainingSource | None = None
    """What to train on: one table [source], or several [[source]]. Without it and [[preferences]] the models are only evaluated."""
    preferences: Annotated[tuple[PreferencesTable, ...], Decides("source")] = ()
    """Pairs that exist already; trained on with those of [source], or alone."""
    model: ModelTable = Field(default_factory=ModelTable)
    image: ImageTable = Field(default_factory=ImageTable)
    prompt: PromptTable = Field(default_factory=PromptTable)
    sample: SampleTable = Field(default_factory=SampleTable)
    verify: VerifyTable = Field(default_factory=VerifyTable)
    pairs: PairsTable = Field(default_factory=PairsTable)
    train: TrainTable = Field(default_factory=TrainTable)
    evaluate: EvaluateTable = Field(default_factory=EvaluateTable)
    report: ReportTable = Field(default_factory=ReportTable)
    cluster: ClusterTable = Field(default_factory=ClusterTable)

    @model_validator(mode="before")
    @classmethod
    def _several_sources(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("source"), list):
            return {**data, "source": {"kind": "mixture", "parts": data["source"]}}
        return data

    @property
    def trains(self) -> bool:
        """Whether there is anything to train on."""
        return self.source is not None or bool(self.preferences)

    @model_validator(mode="after")
    def _has_work(self) -> Recipe:
        if not self.trains and not self.evaluate.sets and not self.evaluate.text_tasks:
            raise ValueError(
                "there is nothing to do: add a table [source] with questions to train on, [[preferences]] with pairs, "
                "or [[evaluate.sets]] to evaluate on"
            )
        return self

    @property
    def needs_model(self) -> bool:
        """Whether [model] is used at all. Served models need its tokenizer, to count tokens."""
        return self.trains or self.evaluate.own_models or bool(self.evaluate.served or self.evaluate.text_tasks)

    @model_validator(mode="after")
    def _engines_fit(self) -> Recipe:
        if self.sample.engine == "file" and self.train.rounds > 1:
            raise ValueError('sample.engine = "file": saved responses serve the first round only; set train.rounds = 1')
        if self.sample.engine == "file" and self.pairs.dropout_from == "all":
            raise ValueError('pairs.dropout_from = "all" asks every question again, which saved responses cannot; set it to "open"')
        if self.sample.engine == "file" and self.prompt.mixed:
            raise ValueError(
                'sample.engine = "file": which prompt a saved response was sampled with is not known; name one prompt, without shares'
            )
        if self.pairs.branches is not None:
            self._can_branch()
        if self.evaluate.engine == "openai" and not self.sample.server.starts:
            raise ValueError(
                'evaluate.engine = "openai" needs a server that mixpo starts with each model; set sample.server.serve or .start'
            )
        return self

    @model_validator(mode="after")
    def _quantized(self) -> Recipe:
        if self.model.quantization is None:
            return self
        key = f'model.quantization = "{self.model.quantization}"'
        if self.train.lora is None:
            raise ValueError(f"{key} needs [train.lora], because weights in 4 bits cannot be trained; add that table, or remove the key")
        served = {"vllm", "openai"} if self.sample.server.same_model else {"vllm"}
        for name, engine in (("sample.engine", self.sample.engine), ("evaluate.engine", self.evaluate.engine)):
            if engine in served:
                raise ValueError(
                    f'{key}: {name} = "{engine}" would answer with weights that are not quantized, so with another model; set it to '
                    '"transformers"'
                )
        return self

    def _can_branch(self) -> None:
        if self.source is None:
            raise ValueError("pairs.branches cuts sampled responses, and without [source] none are sampled; remove it or add [source]")
        if self.sample.engine == "file":
            raise ValueError(
                'pairs.branches continues responses under the model that sampled them, which sample.engine = "file" cannot; '
                "sample with another engine, or remove [pairs.branches]"
            )
        if self.sample.engine == "openai" and not self.sample.server.same_model:
            raise ValueError(
                "pairs.branches continues token by token, which a server of another model (sample.server.same_model = false) cannot; "
                "serve the model of [model], or remove [pairs.branches]"
            )

    @model_validator(mode="after")
    def _tiles_everywhere(self) -> Recipe:
        if "openai" in (self.sample.engine, self.evaluate.engine) and any(limits.tiles for limits in self.image.limits):
            raise ValueError(
                "image.limits: a server cuts all images into tiles the same way; remove tiles and set max_pixels, or sample with "
                '"transformers" or "vllm"'
            )
        return self

    @model_validator(mode="after")
    def _can_watch(self) -> Recipe:
        named = {s.name: s.source for s in self.evaluate.sets}
        for key, table in (("watch", self.train.watch), ("guard", self.train.guard)):
            chosen = table.set or next(iter(named), "") if table is not None else ""
            if table is None or (key == "guard" and not chosen and self.source is not None):
                continue
            if chosen not in named:
                hint = did_you_mean(chosen, named) if chosen else "; add a table [[evaluate.sets]]"
                raise ValueError(f"train.{key} needs an evaluation set: there is no {chosen or 'set'!r}{hint}")
            if self.evaluate.asks_judge(named[chosen]):
                raise ValueError(f"train.{key}: the set {chosen!r} needs a judge, too slow to be asked while training; name another")
        return self


def demo_recipe() -> Path:
    """The recipe of `mixpo demo`, which travels with the package."""
    return Path(str(resources.files("mixpo"))) / "assets" / "demo.toml"


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are "table.key=value" with TOML values (bare words are strings).

    Raises RecipeError naming the file, line, table and key, with the nearest known key.
    """
    text, data = read_toml(path)
    for override in overrides:
        apply_override(data, override)
    return parse(data, str(path), text, overrides)


def read_toml(path: Path, what: str = "recipe") -> tuple[str, dict[str, Any]]:
    """The text of a file, and what it holds. what: "recipe" or "study", for messages. Raises RecipeError naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark in front
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what}", code="toml-missing", path=path) from None
    except IsADirectoryError:
        raise RecipeError(
            f"{path}: is a folder; give the {what}, a TOML file, and name a run directory with --dir", code="toml-is-folder", path=path
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text (byte {error.start + 1}); save the file as UTF-8", code="toml-encoding", path=path
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}", code="toml-unreadable", path=path) from None
    try:
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also TOML's own errors: numbers of thousands of digits, thousands of brackets
        raise RecipeError(f"{path}: not valid TOML: {error}", code="toml-syntax", path=path) from None


def parse(data: dict[str, Any], name: str, text: str = "", overrides: tuple[str, ...] = ()) -> Recipe:
    """Check recipe data; `name`, `text` and `overrides` serve the error messages."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if not _of_another_form(problem)]
        raise RecipeError(
            "\n".join(describe(Recipe, name, text, overrides, problem) for problem in problems),
            code="recipe-invalid",
            path=name,
            key=".".join(str(part) for part in problems[0]["loc"]) or None,
        ) from None


def _of_another_form(problem: Any) -> bool:
    """Where text, a table or a list may stand: a wrong table is not wrong for being no text or list, nor a list for being no table."""
    form, value = str(problem["loc"][-1]) if problem["loc"] else "", problem["input"]
    if isinstance(value, dict):
        return form == "str" or form.startswith(("function-after[_is_target", "tuple[PromptShare"))
    if isinstance(value, str):
        return form.startswith("dict[")
    return isinstance(value, list) and (form == "str" or "PromptText" in form)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key of recipe data from "table.key=value". Raises RecipeError when it is written otherwise."""
    key, equals, raw = override.partition("=")
    if not equals or not all(parts := key.strip().split(".")):
        raise RecipeError(
            f"--set {override}: write it as table.key=value, for example --set train.learning_rate=1e-5",
            code="override-syntax",
            key=override,
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = raw
    for part in parts[:-1]:
        if data.get(part) is None:  # missing, or null in a resolved recipe
            data[part] = {}
        data = data[part]
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: {part!r} is not a table", code="override-not-a-table", key=part)
    data[parts[-1]] = value


# --- values from Python -----------------------------------------------------------------------------------------------


def literal(value: object) -> str:
    """A value on one line of TOML. Raises RecipeError for what TOML has no word for, such as None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value)).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(str(key))} = {literal(inner)}' for key, inner in value.items())} }}"
    raise RecipeError(f"{value!r} cannot be a value of a recipe; leave the key out for its default", code="no-recipe-value")


def override(key: str, value: object) -> str:
    """The text of `--set`: "table.key=value"."""
    return f"{key}={literal(value)}"


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set "table.key" in nested tables; a mapping is merged into the table that is there. Raises RecipeError where a key is no table."""
    *tables, last = key.split(".")
    for name in tables:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise RecipeError(f"{key}: {name!r} is not a table", code="key-not-a-table", key=key)
    if isinstance(value, Mapping):
        inner = data.setdefault(last, {})
        for name, part in value.items():
            put(inner, str(name), part)
    else:
        data[last] = str(value) if isinstance(value, Path) else value
