"""Rows of a benchmark from the files that people have: Parquet, saved Arrow data, VLMEvalKit TSV, JSON, JSONL. Images stay encoded."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mixpo.errors import MissingExtra, SourceError, first_line
from mixpo.evaluate.benchmarks.base import Fields, Place
from mixpo.recipe import BenchmarkSource, did_you_mean
from mixpo.sources.jsonl import lines
from mixpo.types import Skipped

_BROKEN = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)
"""What damaged Parquet files and Arrow streams raise."""
ROWS_AT_ONCE = 16
"""Rows in memory together; each may hold an image of some megabytes."""
SHORTEST = 64
"""In a VLMEvalKit TSV a shorter `image` is the index of the row that holds the image."""
POINTER = b"version https://git-lfs"
OPTION_COLUMNS = "ABCDEFGH"
"""Columns of a table with one option each."""
TABLES = ("parquet", "arrow", "tsv", "jsonl")
SPLITS = ("train", "validation", "val", "dev", "test", "testmini")


def folder_of(path: Path) -> Path:
    """The folder of a benchmark that is given as a folder or as a file in it."""
    return path if path.is_dir() else path.parent


def root_of(source: BenchmarkSource, base: Path) -> Path:
    """The folder below which image files lie. base: what paths of the recipe are relative to.

    Repositories such as MATH-V's have `images` next to the folder `data` that holds the rows.
    """
    if source.root:
        return base / source.root
    folder = folder_of(base / source.path).absolute()
    is_beside = not (folder / "images").is_dir() and (folder.parent / "images").is_dir()
    return folder.parent if is_beside and folder.name == "data" else folder


def find(path: Path, files: Sequence[str], splits: Sequence[Sequence[str]]) -> list[Path]:
    """The files that hold the rows: `path` itself, or in a folder an official file, or those of a split.

    Raises SourceError when there is nothing, or only other splits.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(
            f"{path}: no such file or folder{did_you_mean(path.name, beside)}; check source.path (relative to the recipe)",
            code="file-missing",
            path=path,
            key="source.path",
        )
    for name in files:
        if (path / name).is_file():
            return [path / name]
    # Next to the files of a saved data set `datasets` keeps what it made of them.
    tables = [file for suffix in TABLES for file in sorted(path.rglob(f"*.{suffix}")) if not file.name.startswith("cache-")]
    # A saved data set has JSON files of its own, and the hub's JSON lacks the images: such files count where there is no table.
    there = tables or sorted(path.rglob("*.json"))
    for names in splits:
        by_name = [_questions([file for file in there if _names(file.relative_to(path), name)]) for name in names]
        if chosen := sorted({file for files_of_name in by_name for file in files_of_name}, key=there.index):
            for files_of_name in by_name:
                _check_one(path, files_of_name)
            return chosen
    if len(there) == 1 and not any(_names(there[0].relative_to(path), name) for name in SPLITS):
        return there
    listed = ", ".join(str(file.relative_to(path)) for file in there[:8]) or "no Parquet, Arrow, TSV, JSONL or JSON file"
    wanted = " or ".join("/".join(names) for names in splits)
    raise SourceError(
        f"{path}: nothing of the split {wanted}; it has {listed}; set source.path to the file, or source.split",
        code="split-missing",
        path=path,
        key="source.split",
    )


def _questions(files: Sequence[Path]) -> Sequence[Path]:
    """Without files of annotations, which MathVista's repository keeps beside its questions, unless there is nothing else."""
    return [file for file in files if not file.name.startswith("annot_")] or files


def _check_one(path: Path, files: Sequence[Path]) -> None:
    """Raise SourceError for files that are no parts of one data set: of several folders, or several tables of a benchmark each."""
    tables = [file for file in files if file.suffix == ".tsv"]
    apart = tables if len(tables) > 1 else sorted({file.parent for file in files})
    if len(apart) > 1:
        listed = ", ".join(str(one.relative_to(path)) for one in apart[:4])
        raise SourceError(
            f"{path}: holds several data sets ({listed}); set source.path to one of them",
            code="several-data-sets",
            path=path,
            key="source.path",
        )


def _names(path: Path, split: str) -> bool:
    return bool(re.search(rf"(?:^|[/_.-]){re.escape(split)}(?:[/_.-]|$)", path.as_posix()))


def rows(paths: Iterable[Path]) -> Iterator[Place | Skipped]:
    """The rows of files in order, each with its place. Raises SourceError for a file that cannot be read."""
    for path in paths:
        reader = READERS.get(path.suffix.casefold())
        if reader is None:
            raise SourceError(f"{path}: not a format that is read here; known: {', '.join(READERS)}", code="unknown-format", path=path)
        if _is_pointer(path):
            raise SourceError(
                f"{path}: a Git LFS pointer without the content; fetch it with `git lfs pull` in that folder", code="lfs-pointer", path=path
            )
        yield from reader(path)


def _is_pointer(path: Path) -> bool:
    """Whether a clone left the file's content out. A file that cannot be read is left to its reader."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _parquet(path: Path) -> Iterator[Place]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield f"{path}[{number}]", row
                    number += 1
    except _BROKEN as error:
        raise SourceError(f"{path}: not a readable Parquet file ({first_line(error)})", code="file-unreadable", path=path) from None


def _arrow(path: Path) -> Iterator[Place]:
    """What `datasets` writes with save_to_disk."""
    number = 0
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                batch.validate(full=True)  # reading values at wrong offsets would end the process
                for row in (row for start in range(0, len(batch), ROWS_AT_ONCE) for row in batch[start : start + ROWS_AT_ONCE].to_pylist()):
                    yield f"{path}[{number}]", row
                    number += 1
    except _BROKEN as error:
        raise SourceError(f"{path}: not a readable Arrow stream ({first_line(error)})", code="file-unreadable", path=path) from None


def _tsv(path: Path) -> Iterator[Place]:
    """A VLMEvalKit table. All columns are text; empty ones are dropped; an image given by index is looked up."""
    table = _read_tsv(path)
    holders = _holders(table)
    number = 0
    for batch in table.to_batches(ROWS_AT_ONCE):
        for row in batch.to_pylist():
            kept = {name: value for name, value in row.items() if value not in ("", "nan", None)}
            image = kept.get("image")
            if image is not None and len(image) <= SHORTEST and image in holders:
                kept["image"] = table.column("image")[holders[image]].as_py()
            yield f"{path}:{kept.get('index', number)}", kept
            number += 1


def _read_tsv(path: Path) -> pa.Table:
    try:
        with path.open(encoding="utf-8-sig") as file:
            names = [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split("\t")]
        return pa_csv.read_csv(
            path,
            # One row must fit into a block, and a row holds an image.
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1, block_size=min(path.stat().st_size + 1, 1 << 30)),
            parse_options=pa_csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not a readable TSV ({first_line(error)})", code="file-unreadable", path=path) from None


def _holders(table: pa.Table) -> dict[str, int]:
    """Row numbers by index, where rows lend their image to others."""
    if not {"index", "image"} <= set(table.column_names):
        return {}
    return {index: number for number, index in enumerate(table.column("index").to_pylist())}


def _sheet(path: Path) -> Iterator[Place]:
    """The first sheet of an Excel workbook as VLMEvalKit writes results: column names in the first row. Formulas stay text."""
    try:
        import openpyxl  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra("an xlsx file", "xlsx") from None
    try:
        lines = openpyxl.load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(lines, ())]
        for number, values in enumerate(lines, start=2):
            filled = {name: value for name, value in zip(names, values, strict=False) if value is not None}
            if filled:
                yield f"{path}:{number}", filled
    except Exception as error:  # openpyxl raises whatever its XML parsers and its own constructors raise
        raise SourceError(f"{path}: not a readable xlsx file ({first_line(error)})", code="file-unreadable", path=path) from None


def _json(path: Path) -> Iterator[Place | Skipped]:
    """A list of objects, or an object of objects, whose keys become the field "key"; JSON lines where there are several values (POPE)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from lines(path)
            return
        raise SourceError(f"{path}: not readable JSON ({first_line(error)})", code="file-unreadable", path=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable JSON ({first_line(error)})", code="file-unreadable", path=path) from None
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, row in pairs:
        if not isinstance(row, dict) and row is not None:
            raise SourceError(
                f"{path}: entry {key!r} is {type(row).__name__}, not an object", code="not-an-object", path=path, key=str(key)
            )
        yield f"{path}[{key}]", {"key": str(key), **(row or {})}


READERS = {".parquet": _parquet, ".arrow": _arrow, ".tsv": _tsv, ".xlsx": _sheet, ".json": _json, ".jsonl": lines}
"""One function for each suffix."""


# --- fields of a row ----------------------------------------------------------------------------------------------------


def text_of(row: Fields, *names: str, default: str | None = None) -> str:
    """The first of some fields that is there, as text. Raises SourceError when none is and there is no default."""
    for name in names:
        value = row.get(name)
        if value is not None and str(value).strip() not in ("", "nan", "None"):
            return str(value).strip()
    if default is not None:
        return default
    raise SourceError(
        f"no field {' or '.join(map(repr, names))}; the row has {', '.join(map(repr, row)) or 'no fields'}",
        code="field-missing",
        key=names[0],
    )


def text_at(place: Place, *names: str) -> str:
    """`text_of` for a row whose error ends the reading, with the location of the row."""
    try:
        return text_of(place[1], *names)
    except SourceError as error:
        raise SourceError(f"{place[0]}: {error}", code="field-missing", path=place[0], key=error.key) from None


def list_of(value: object) -> list[Any]:
    """A list, also where a table holds it as text ("['a', 'b']"); None, NaN and "" are none. Raises SourceError for other text."""
    if value is None or value == "" or value != value:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        try:
            # Literals only: nothing in it is run.
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parsed = None
        if parsed is None and value.strip() not in ("None", "null", "nan"):
            raise SourceError(f"{value[:40]!r} is not a list", code="not-a-list")
        return list(parsed) if isinstance(parsed, (list, tuple)) else []
    raise SourceError(f"expected a list, found {type(value).__name__}", code="not-a-list")


def choices_of(row: Fields, *names: str) -> tuple[str, ...]:
    """The options of a row: the list in the first of some fields that has one, else the columns A, B, C, ... of a table.

    Raises SourceError where a column between others is missing, because letters would shift.
    """
    for name in names:
        if listed := list_of(row.get(name)):
            return tuple(str(choice) for choice in listed)
    columns = [text_of(row, letter, default="") for letter in OPTION_COLUMNS]
    given = columns[: max((number for number, text in enumerate(columns, start=1) if text), default=0)]
    if "" in given:
        raise SourceError(f"option {OPTION_COLUMNS[given.index('')]} is empty before others that are not", code="option-empty")
    return tuple(given)


def images_of(row: Fields, folder: str = "") -> list[object]:
    """The images of a row by the fields that benchmarks use; text that is a list of images counts as several."""
    for name in ("decoded_image", "image", "image_path", "imagename"):
        value = row.get(name)
        if value in (None, "", []):
            continue
        if isinstance(value, str) and value.startswith("["):
            value = list_of(value)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return [f"{folder}/{item}" if folder and name == "imagename" else item for item in values]
    raise SourceError(f"no image; the row has {', '.join(map(repr, row)) or 'no fields'}", code="image-missing")
