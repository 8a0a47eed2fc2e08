"""A first recipe: one for the files of a folder, with comments, or a copy of one that comes with mixpo (`mixpo init --list`)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mixpo.errors import RecipeError, SourceError
from mixpo.recipe import did_you_mean
from mixpo.recipe.load import literal
from mixpo.records import write_text

HELD_OUT = re.compile(r"(?i)(^|[^a-z])(test|val|valid|validation|eval|dev|held[-_]?out)([^a-z]|$)")
"""File names that look like evaluation data."""
DEPTH = ("*", "*/*")
"""How deep models and data are looked for."""

TEMPLATE = """\
# Written by `mixpo init` from the files of this folder. Next: `mixpo check {name}`, then `mixpo run {name} --limit 64`.
# docs/recipe.md explains every key; paths are relative to this file.

{source}
[model]
path = {model}
dtype = "bfloat16"          # of the weights when sampling and when saved
# trust_remote_code = true  # runs code that comes with the model; only for sources you trust

{sampling}[train]
objective = "mpo"           # also "dpo", "sft" and others; train.baselines compares them
learning_rate = 5e-6
batch_size = 256            # pairs per step
# lora = {{ rank = 16 }}      # train an adapter: far less memory

{evaluation}"""

SAMPLING = """\
[sample]
n = 8                       # responses per question; they must differ to make pairs
temperature = 1.0
max_new_tokens = 512

[pairs]
max_per_question = 15

"""
"""Only where responses are sampled: preference pairs that exist are trained on as they are."""
NO_SOURCE = """\
# No questions were recognised here: name yours. A row is {"image": "a.png", "question": "...", "answer": "..."}.
[source]
kind = "jsonl"
path = "questions.jsonl"
"""
NO_SET = """\
# Questions that are never trained on, to measure the models before and after:
# [[evaluate.sets]]
# name = "test"
# source = { kind = "jsonl", path = "test.jsonl" }
"""
FOLDERS = {"accelerate": "Configurations for `accelerate launch`: DDP, FSDP2, DeepSpeed ZeRO-2 and ZeRO-3"}
"""Folders of files that come with mixpo and are no recipes."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of questions, or of preference pairs. kind: of its source. text: what was seen in it. pairs: ready-made ones."""

    path: str
    kind: str
    text: str
    pairs: bool = False

    @property
    def held_out(self) -> bool:
        return HELD_OUT.search(Path(self.path).stem) is not None


def init(folder: Path, target: Path) -> list[str]:
    """Write a recipe for the files in `folder`; returns what was recognised, a line each. Raises RecipeError when `target` exists."""
    if target.exists():
        raise RecipeError(f"{target}: exists; remove it or name another file", code="recipe-exists", path=target)
    data = sorted(_data(folder), key=lambda file: file.path)
    models = sorted({path.parent.relative_to(folder).as_posix() for depth in DEPTH for path in folder.glob(f"{depth}/config.json")})
    train = next((file for file in data if not file.held_out and not file.pairs), None)
    held_out = [file for file in data if file.held_out and not file.pairs]
    tables = [*([_source(train)] if train else []), *(_preferences(file) for file in data if file.pairs and not file.held_out)]
    recipe = TEMPLATE.format(
        name=target.name,
        source="\n".join(tables) or NO_SOURCE,
        sampling=SAMPLING if train or not tables else "",
        model=literal(models[0] if models else "mixpo:tiny")
        + ("" if models else '  # the bundled model; name yours, such as "OpenGVLab/InternVL3-1B-hf"'),
        evaluation="\n".join(map(_set, held_out)) or NO_SET,
    )
    write_text(target, recipe)
    return [*(f"{file.path}: {file.text}" for file in data), *(f"{model}: a model" for model in models)]


def shipped() -> dict[str, Path]:
    """The recipes that come with mixpo, by name: inside the installed package, or in a checkout next to it."""
    return {path.stem: path for path in sorted(_shipped_folder().glob("*.toml"))}


def _shipped_folder() -> Path:
    package = Path(str(resources.files("mixpo")))
    installed = package / "assets" / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def describe(recipe: Path) -> str:
    """The first sentence of a recipe's first comment."""
    comment = " ".join(line.removeprefix("#").strip() for line in recipe.read_text(encoding="utf-8").split("\n\n")[0].split("\n")[:2])
    return re.split(r"(?<=[a-z)])[.:] ", comment)[0].rstrip(".:")


def copy_shipped(name: str, folder: Path) -> Path:
    """Copy a recipe that comes with mixpo, with its data if it has any, or a folder of `FOLDERS`; returns what was written.

    Raises RecipeError when it exists.
    """
    recipes = shipped()
    if name not in recipes and name not in FOLDERS:
        known = [*recipes, *FOLDERS]
        message = f"{name}: no such recipe{did_you_mean(name, known)}; `mixpo init --list` names all, and a file to write ends in .toml"
        raise RecipeError(message, code="recipe-unknown", key=name)
    files = [path for path in (_shipped_folder() / f"{name}.toml", _shipped_folder() / name) if path.exists()]
    for path in files:
        if (folder / path.name).exists():
            raise RecipeError(
                f"{folder / path.name}: exists; remove it or name another file", code="recipe-exists", path=folder / path.name
            )
    for path in files:
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            write_text(folder / path.name, path.read_text(encoding="utf-8"))
    return folder / files[0].name


def _data(folder: Path) -> Iterator[DataFile]:
    for depth in DEPTH:
        for path in folder.glob(f"{depth}.jsonl"):
            row, name = _first_row(path), path.relative_to(folder).as_posix()
            if known := _format(row):
                yield DataFile(name, known, f"preference pairs ({known})", pairs=True)
            elif "question" in row:
                yield DataFile(name, "jsonl", f"rows with {', '.join(row)}")
        for path in folder.glob(f"{depth}.json"):
            if path.name == "meta.json" and (annotated := _annotations(path)) is not None:
                pairs = any(_format(_first_row(file)) for file in annotated)
                text = "an MMPR collection of preference pairs" if pairs else "an MMPR collection"
                yield DataFile(path.relative_to(folder).as_posix(), "mmpr", text, pairs=pairs)
        for parent in {path.parent for path in folder.glob(f"{depth}.parquet")} - {folder}:
            yield DataFile(parent.relative_to(folder).as_posix(), "hub", "a dataset in Parquet files")


def _annotations(path: Path) -> list[Path] | None:
    """The annotation files that exist of an MMPR meta.json; None for another file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).values()
        listed = [root / str(entry["annotation"]) for entry in entries for root in (path.parent, path.parent.parent)]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    return [file for file in listed if file.is_file()]


def _format(row: dict[str, Any]) -> str:
    """The format of preference pairs that a row is of, or ""."""
    from mixpo.preferences.formats import recognise

    return recognise(row) if row else ""


def _first_row(path: Path) -> dict[str, Any]:
    """The first usable row of a JSONL file; empty for another file."""
    from mixpo.sources.jsonl import lines

    try:
        row = next((line[1] for line in lines(path) if isinstance(line, tuple)), {})
    except SourceError:
        return {}
    return row if isinstance(row, dict) else {}


def _preferences(file: DataFile) -> str:
    kind = "" if file.kind == "mmpr" else f"kind = {json.dumps(file.kind)}\n"
    return f"[[preferences]]             # {file.text}\n{kind}path = {literal(file.path)}\n"


def _source(file: DataFile) -> str:
    return f"[source]                    # {file.text}\nkind = {json.dumps(file.kind)}\npath = {literal(file.path)}\n"


def _set(file: DataFile) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", Path(file.path).stem.lower()).strip("-") or "test"
    source = literal({"kind": file.kind, "path": file.path}).replace('"kind"', "kind", 1).replace('"path"', "path", 1)
    return f"[[evaluate.sets]]           # {file.text}; never trained on\nname = {json.dumps(name)}\nsource = {source}\n"
