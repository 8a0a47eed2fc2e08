"""The marker of each recipe field, against what a changed value really changes in the settings of stages."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic.fields import FieldInfo

from mixpo.pipeline import build_plan, open_context
from mixpo.progress import Silent
from mixpo.recipe import STAGES, Decides, Recipe, Table, parse
from mixpo.stages import source
from mixpo.stages.models import ModelRef
from mixpo.stages.question_index import NOTHING
from mixpo.stages.questions import Sources
from mixpo.stages.reading import reading_of

Place = tuple[str | int, ...]
RECIPE: dict[str, Any] = {
    "source": {"kind": "jsonl", "path": "questions.jsonl"},
    "model": {"device": "cpu"},
    "sample": {"engine": "openai", "server": {"serve": "transformers"}},
    "image": {"limits": [{"sources": ["chart"], "max_pixels": 1000}]},
    "verify": {"judge": {"model": "judge"}},
    "pairs": {"balance": ["domain"], "branches": {}},
    "train": {
        "reference": "online",
        "baselines": ["cdpo", "tr_dpo"],
        "lora": {},
        "watch": {},
        "guard": {},
        "replay": {"source": {"kind": "jsonl", "path": "chat.jsonl"}},
        "loss": {"reference_alpha": 1.0},
    },
    "evaluate": {
        "samples": 1,
        "text_tasks": ["gsm8k"],
        "sets": [
            {"name": "own", "source": {"kind": "jsonl", "path": "held_out.jsonl"}},
            {"name": "vista", "source": {"kind": "benchmark", "name": "mathvista", "path": "vista"}},
        ],
        "predictions": [{"name": "given", "path": "answers.jsonl"}],
        "served": [{"name": "other", "urls": ["http://127.0.0.1:1/v1"], "model": "other"}],
        "extractor": "judge",
        "judge": {"model": "judge"},
    },
}
NAMED_FILES = {"path", "revision", "adapter", "script", "responses", "prompt", "prompts", "text_include", "decontaminate", "similar_bits"}
"""Fields that decide by the content of files, which are not there."""
OTHERS = {"mpo": "dpo", "cdpo": "sft"}
"""Values that have only some alternatives, or none -> another one."""
FOLLOWS = {"model", "from", "data"}
"""Settings that follow from stages before."""


def tables(kind: type[Table]) -> Iterator[type[Table]]:
    """A table and all that it holds."""
    yield kind
    for field in kind.model_fields.values():
        for inner in inner_tables(field.annotation):
            yield from tables(inner)


def inner_tables(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for part in typing.get_args(annotation) for table in inner_tables(part)]


def marker(field: FieldInfo) -> Decides | None:
    return next((item for item in field.metadata if isinstance(item, Decides)), None)


@pytest.mark.parametrize("kind", list(dict.fromkeys(tables(Recipe))))
def test_every_field_says_what_it_decides(kind: type[Table]) -> None:
    for name, field in kind.model_fields.items():
        found = marker(field)
        holds_marked = found is None and bool(inner_tables(field.annotation))
        assert found is not None or holds_marked, f"{kind.__name__}.{name}: mark it with Decides(...), NOTHING or CHOOSES_STAGES"
        assert found is None or set(found.stages) <= set(STAGES)


def test_the_questions_follow_from_every_field_of_a_source() -> None:
    for kind in inner_tables(Recipe.model_fields["source"].annotation):
        assert [found.stages for field in kind.model_fields.values() if (found := marker(field))] == [("source",)] * len(kind.model_fields)


def leaves(table: Table, path: Place = ()) -> Iterator[tuple[Place, FieldInfo]]:
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, Table):
            yield from leaves(value, (*path, name))
        elif isinstance(value, tuple) and value and isinstance(value[0], Table):
            yield from leaves(value[0], (*path, name, 0))
        else:
            yield (*path, name), field


def other(value: Any, annotation: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, str) and value in OTHERS:
        return OTHERS[value]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return other(value, next(part for part in typing.get_args(annotation) if part is not type(None)))
    if typing.get_origin(annotation) is Literal:
        return next((choice for choice in typing.get_args(annotation) if choice != value), None)
    if typing.get_origin(annotation) in (tuple, list):
        return type(value)([*value, other(value[0] if value else None, typing.get_args(annotation)[0])])
    if typing.get_origin(annotation) is dict:
        return {"a": "boxed"}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return 1 if annotation is int else "boxed"


def changed(table: Any, path: Place) -> Any:
    """The recipe with another value at a path; no rule about combinations applies."""
    name, *rest = path
    if isinstance(name, int):
        return (changed(table[name], tuple(rest)), *table[name + 1 :])
    value = getattr(table, name)
    field = type(table).model_fields[name]
    return table.model_copy(update={name: changed(value, tuple(rest)) if rest else other(value, field.annotation)})


def settings(recipe: Recipe, root: Path) -> dict[str, Mapping[str, Any]]:
    """Stage -> settings, without what follows from stages before."""
    for predictions in recipe.evaluate.predictions:
        (root / predictions.path).touch()
    context = open_context(recipe, root, root / "run", Silent())
    context.models._base_model = ModelRef(name="base", identity="x")  # read anew for each recipe it would take most of the time
    plan = build_plan(context, Sources(train=NOTHING, sets={s.name: NOTHING for s in recipe.evaluate.sets}))
    found = {name: planned.job.settings for name, planned in plan.planned.items() if planned.job.kind != "report"}
    found |= {f"source/{s.name}": source._settings(context, reading_of(context, s.source)) for s in recipe.evaluate.sets}
    assert recipe.train.replay is not None
    found["source/replay"] = source._settings(context, reading_of(context, recipe.train.replay.source))
    found |= {"source": source._settings(context, reading_of(context, recipe.source)), "report": recipe.deciding("report")}
    return {name: {key: value for key, value in of_stage.items() if key not in FOLLOWS} for name, of_stage in found.items()}


def kind_of(name: str) -> str:
    parts = name.split("/")
    return parts[1] if parts[0].startswith("round-") else parts[0]


@pytest.fixture(scope="module")
def base() -> Recipe:
    return parse(RECIPE, "recipe")


@pytest.fixture(scope="module")
def before(base: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Any]]:
    return settings(base, tmp_path_factory.mktemp("before"))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # a changed value may be of another type
@pytest.mark.parametrize("path", [path for path, _ in leaves(parse(RECIPE, "recipe"))], ids=lambda path: ".".join(map(str, path)))
def test_a_field_decides_the_stages_that_it_names(base: Recipe, before: dict[str, Mapping[str, Any]], path: Place, tmp_path: Path) -> None:
    decides = marker(dict(leaves(base))[path])
    assert decides is not None
    if path[-1] == "kind" or (decides.by_content and path[-1] in NAMED_FILES):
        return
    after = settings(changed(base, path), tmp_path)
    differing = {kind_of(name) for name in before if name in after and before[name] != after[name]}
    # The settings of an evaluation hold those of its answers, so that two evaluations can be compared by them.
    expected = {*decides.stages} | ({"evaluate"} if "answer" in decides.stages else set())
    assert differing == expected
