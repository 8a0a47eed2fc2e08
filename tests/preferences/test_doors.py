"""The same pairs by every door: the same records, and the same trained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import small_run
from preference_files import EVERY, IMAGES, Q1, Q2, SIDES, mmpr, pictures
from slow_rows import slow_except
from table_files import jsonl

from mixpo.pipeline import run_until

Write = Callable[[Path], Path]


def any_columns(folder: Path) -> Path:
    """Columns of one's own."""
    rows = [{"q": q, "good": c, "bad": r, "pics": i} for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)]
    return jsonl(folder / "mine.jsonl", rows)


COLUMNS = 'kind = "jsonl"\ncolumns = { prompt = "q", chosen = "good", rejected = "bad", images = "pics" }'


def digest_of(model: Path) -> str:
    """Of the weights of a model."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(model.glob("*.safetensors")))).hexdigest()


def trained(folder: Path, path: Path, model: Path, more: str = "") -> tuple[str, list[str]]:
    """Digest of the weights after training on the pairs of a file, and the ids of the pairs."""
    recipe = folder / "recipe.toml"
    recipe.write_text(f"""
[[preferences]]
path = "{path.relative_to(folder)}"
{more}
[model]
path = "{model}"
device = "cpu"
[train]
batch_size = 1
learning_rate = 1e-3
""")
    context = small_run.open_small(recipe, folder / "run")
    plan = run_until(context, "train")
    rows = plan.rows("round-1/pair", 0)
    weights = digest_of(folder / "run" / "models" / "mpo")
    assert weights != digest_of(model)
    return weights, [pair.id for row in rows for pair in row.pairs]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[str, list[str]]:
    """By the door of MMPR."""
    folder = pictures(tmp_path_factory.mktemp("doors"))
    return trained(folder, mmpr(folder), tiny_folder)


FAST = ("trl", "rlaif_v")
WRITERS = [write for _, write in EVERY if write is not mmpr]


@pytest.mark.parametrize(
    "write",
    slow_except([any_columns, *WRITERS], any_columns, *(write for write in WRITERS if write.__name__ in FAST)),
    ids=lambda write: write.__name__,
)
def test_the_same_weights(folder: Path, tiny_folder: Path, write: Write, expected: tuple[str, list[str]]) -> None:
    assert trained(folder, write(folder), tiny_folder, COLUMNS if write is any_columns else "") == expected
