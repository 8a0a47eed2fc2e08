"""A first recipe for the files of a folder: `mixpo init` reads them and writes what it recognises, with comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixpo.errors import RecipeError, SourceError
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

[sample]
n = 8                       # responses per question; they must differ to make pairs
temperature = 1.0
max_new_tokens = 512

[pairs]
max_per_question = 15

[train]
objective = "mpo"           # also "dpo", "sft" and others; train.baselines compares them
learning_rate = 5e-6
batch_size = 256            # pairs per step
# lora = {{ rank = 16 }}      # train an adapter: far less memory

{evaluation}"""

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


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of questions. kind: of its source. text: what was seen in it."""

    path: str
    kind: str
    text: str

    @property
    def held_out(self) -> bool:
        return HELD_OUT.search(Path(self.path).stem) is not None


def init(folder: Path, target: Path) -> list[str]:
    """Write a recipe for the files in `folder`; returns what was recognised, a line each. Raises RecipeError when `target` exists."""
    if target.exists():
        raise RecipeError(f"{target}: exists; remove it or name another file", code="recipe-exists", path=target)
    data = sorted(_data(folder), key=lambda file: file.path)
    models = sorted({path.parent.relative_to(folder).as_posix() for depth in DEPTH for path in folder.glob(f"{depth}/config.json")})
    train = next((file for file in data if not file.held_out), None)
    held_out = [file for file in data if file.held_out]
    recipe = TEMPLATE.format(
        name=target.name,
        source=_source(train) if train else NO_SOURCE,
        model=literal(models[0] if models else "mixpo:tiny")
        + ("" if models else '  # the bundled model; name yours, such as "OpenGVLab/InternVL3-1B-hf"'),
        evaluation="\n".join(map(_set, held_out)) or NO_SET,
    )
    write_text(target, recipe)
    return [*(f"{file.path}: {file.text}" for file in data), *(f"{model}: a model" for model in models)]


def _data(folder: Path) -> Iterator[DataFile]:
    for depth in DEPTH:
        for path in folder.glob(f"{depth}.jsonl"):
            if fields := _fields(path):
                yield DataFile(path.relative_to(folder).as_posix(), "jsonl", f"rows with {', '.join(fields)}")
        for path in folder.glob(f"{depth}.json"):
            if path.name == "meta.json" and "annotation" in path.read_text(encoding="utf-8", errors="replace"):
                yield DataFile(path.relative_to(folder).as_posix(), "mmpr", "an MMPR collection")
        for parent in {path.parent for path in folder.glob(f"{depth}.parquet")} - {folder}:
            yield DataFile(parent.relative_to(folder).as_posix(), "hub", "a dataset in Parquet files")


def _fields(path: Path) -> list[str]:
    """The fields of the first usable row of a JSONL file of questions; none for another file."""
    from mixpo.sources.jsonl import lines

    try:
        row = next((line[1] for line in lines(path) if isinstance(line, tuple)), {})
    except SourceError:
        return []
    return [str(name) for name in row] if isinstance(row, dict) and "question" in row else []


def _source(file: DataFile) -> str:
    return f"[source]                    # {file.text}\nkind = {json.dumps(file.kind)}\npath = {literal(file.path)}\n"


def _set(file: DataFile) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", Path(file.path).stem.lower()).strip("-") or "test"
    source = literal({"kind": file.kind, "path": file.path}).replace('"kind"', "kind", 1).replace('"path"', "path", 1)
    return f"[[evaluate.sets]]           # {file.text}; never trained on\nname = {json.dumps(name)}\nsource = {source}\n"
