"""A folder with three small images, and readers that separate questions from skipped rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter

from mixpo.recipe import Source
from mixpo.sources import read, read_rows
from mixpo.types import Notice, Question, Skipped

Both = tuple[list[Question], list[Skipped]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def collect(folder: Path) -> Callable[..., Both]:
    def run(**table: object) -> Both:
        source: Source = TypeAdapter(Source).validate_python(table)
        items = list(read(source, recipe_folder=folder, images=folder / "run" / "images"))
        return [item for item in items if isinstance(item, Question)], [item for item in items if isinstance(item, Skipped)]

    return run


@pytest.fixture
def noticed(folder: Path) -> Callable[..., list[Notice]]:
    """What the reader of a source has to say, apart from its rows."""

    def run(**table: object) -> list[Notice]:
        source: Source = TypeAdapter(Source).validate_python(table)
        items = read_rows(source, recipe_folder=folder, images=folder / "run" / "images")
        return [item for item in items if isinstance(item, Notice)]

    return run


@pytest.fixture
def jsonl(folder: Path, collect: Callable[..., Both]) -> Callable[..., Both]:
    """Write rows (objects, or raw lines) to a file and read it."""

    def run(*rows: object, **table: object) -> Both:
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        (folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return collect(**{"kind": "jsonl", "path": "data.jsonl", **table})

    return run
