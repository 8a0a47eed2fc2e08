"""A first recipe: one for the files of a folder, with comments, or a copy of one that comes with mixpo (`mixpo init --list`)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from mixpo.errors import RecipeError, SourceError
from mixpo.recipe import did_you_mean
from mixpo.recipe.load import literal
from mixpo.records import write_text

HELD_OUT = re.compile(r"(?i)(^|[^a-z])(test|val|valid|validation|eval|dev|held[-_]?out)([^a-z]|$)")
"""File names that look like evaluation data."""
INDEXED = ("annotation", "file_name")
"""What entries of a meta.json and a dataset_info.json call their file."""
FIRST = 100
"""Rows of a file that are tried, until one is usable."""
LISTED = 40
"""Lines of the terminal, at most."""

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
    """A file or folder of rows. kind: of its source or pairs, "" where no table is written for it. text: what was seen in it."""

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
    configs = _files(folder, "*/config.json", "*/*/config.json")
    models = sorted(path.parent.relative_to(folder).as_posix() for path in configs if _is_model(path))
    train = [file for file in data if file.kind and not file.held_out and not file.pairs]
    held_out = [file for file in data if file.kind and file.held_out and not file.pairs]
    tables = [*_sources(train), *(_preferences(file) for file in data if file.pairs and not file.held_out)]
    recipe = TEMPLATE.format(
        name=target.name,
        source="\n".join(tables) or NO_SOURCE,
        sampling=SAMPLING if train or not tables else "",
        model=literal(models[0] if models else "mixpo:tiny")
        + ("" if models else '  # the bundled model; name yours, such as "OpenGVLab/InternVL3-1B-hf"'),
        evaluation="\n".join(map(_set, held_out, _names(held_out))) or NO_SET,
    )
    write_text(target, recipe)
    lines = [*(f"{file.path}: {file.text}" for file in data), *(f"{model}: a model" for model in models)]
    return [*map(_flat, lines[:LISTED]), *([f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])]


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
    """What the files of a folder hold. Files that an index names are part of it, and Parquet files part of their folder."""
    from mixpo.preferences.collections import entries_of, kind_of

    yield from (DataFile(path.name, "", "cannot be read; check its permissions") for path in _closed_folders(folder))
    named = set[Path]()
    for path in _files(folder, "meta.json", "dataset_info.json", "*/meta.json", "*/dataset_info.json"):
        try:
            entries = entries_of(path) or {}
        except SourceError:
            continue
        files = [root / str(entry.get(key)) for entry in entries.values() for key in INDEXED for root in (path.parent, path.parent.parent)]
        rows = {file.resolve(): _first_row(file) for file in files if file.is_file()}
        pairs = any(map(_format, rows.values())) or any(entry.get("ranking") for entry in entries.values())
        kind = kind_of(entries)
        if rows and (pairs or kind == "mmpr"):
            named |= rows.keys()
            what = f"{'an MMPR' if kind == 'mmpr' else 'a LLaMA-Factory'} collection"
            yield DataFile(path.relative_to(folder).as_posix(), kind, f"{what} of preference pairs" if pairs else what, pairs=pairs)
    for path in _files(folder, "*.jsonl", "*/*.jsonl", "*.json", "*/*.json"):
        if path.resolve() not in named:
            yield from _of_row(path.relative_to(folder).as_posix(), _first_row(path), "jsonl" if path.suffix == ".jsonl" else "")
    parquet = _files(folder, "*.parquet", "*/*.parquet")
    for parent in dict.fromkeys(path.parent for path in parquet):
        files = [path for path in parquet if path.parent == parent]
        # A folder is one dataset; next to the recipe, each file is one.
        for path in files if parent == folder else [parent]:
            row = _first_row(path if path.is_file() else files[0])
            yield from _of_row(path.relative_to(folder).as_posix(), row, "hub" if path.is_dir() else "")


def _of_row(name: str, row: dict[str, Any], kind: str) -> Iterator[DataFile]:
    """What a file is by its first row. kind: of its source, "" where no source reads it as it lies there."""
    from mixpo.sources.columns import SAMPLED

    if known := _format(row):
        yield DataFile(name, known, f"preference pairs ({known})", pairs=True)
    elif any(column in row for column in SAMPLED):
        yield DataFile(name, "", 'saved responses, read with [sample] engine = "file"')
    elif "question" in row:
        how = "" if kind else "; write it as JSONL, or put Parquet files into a folder of their own"
        yield DataFile(name, kind, f"rows with {', '.join(row)}{how}")
    elif "messages" in row or "conversations" in row:
        yield DataFile(name, "", "conversations, read with [train.replay]")
    elif not name.endswith(".json"):  # which is often no data
        seen = f"rows with {', '.join(row)}, and none is called question" if row else "no row can be read"
        yield DataFile(name, "", f"not used: {seen}")


def _files(folder: Path, *patterns: str) -> list[Path]:
    """The files that fit, nearest first, each once though links lead to it by several ways."""
    fitting = {path for pattern in patterns for path in folder.glob(pattern) if _is_file(path)}
    nearest = sorted(fitting, key=lambda path: (len(path.parts), path))
    return list({path.resolve(): path for path in reversed(nearest)}.values())[::-1]


def _closed_folders(folder: Path) -> list[Path]:
    """The folders in it whose files cannot be listed or opened; in one that is closed itself, none."""
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not os.access(path, os.R_OK | os.X_OK)]
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _is_model(config: Path) -> bool:
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "model_type" in data


def _format(row: dict[str, Any]) -> str:
    """The format of preference pairs that a row is of, or ""."""
    from mixpo.preferences.formats import recognise

    return recognise(row) if row else ""


def _first_row(path: Path) -> dict[str, Any]:
    """The first usable row of a file; empty where it holds none."""
    from mixpo.preferences.rows import rows_of
    from mixpo.recipe import PreferencesTable

    try:
        return next((line[1] for line in islice(rows_of(path, PreferencesTable(path=path.name)), FIRST) if isinstance(line, tuple)), {})
    except SourceError:
        return {}


def _preferences(file: DataFile) -> str:
    kind = "" if file.path.endswith(".json") else f"kind = {json.dumps(file.kind)}\n"
    return f"[[preferences]]             # {_flat(file.text)}\n{kind}path = {literal(file.path)}\n"


def _sources(files: list[DataFile]) -> list[str]:
    """One table [source], or several [[source]]."""
    if len(files) == 1:
        (file,) = files
        return [f"[source]                    # {_flat(file.text)}\nkind = {json.dumps(file.kind)}\npath = {literal(file.path)}\n"]
    return [
        f"[[source]]                  # {_flat(file.text)}\nname = {json.dumps(name)}\nsource = {_table(file)}\n"
        for file, name in zip(files, _names(files), strict=True)
    ]


def _set(file: DataFile, name: str) -> str:
    return f"[[evaluate.sets]]           # {_flat(file.text)}; never trained on\nname = {json.dumps(name)}\nsource = {_table(file)}\n"


def _table(file: DataFile) -> str:
    return literal({"kind": file.kind, "path": file.path}).replace('"kind"', "kind", 1).replace('"path"', "path", 1)


def _names(files: Iterable[DataFile]) -> list[str]:
    """A name for each file, none of them twice."""
    names: list[str] = []
    for file in files:
        name = re.sub(r"[^a-z0-9_-]+", "-", Path(file.path).stem.lower()).strip("-") or "set"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _flat(text: str) -> str:
    """Text of data without line breaks and control characters: it goes into a comment and to the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
