"""Rows of files and datasets with their places: JSONL, a JSON array, Parquet, a saved dataset, a Hub id. Memory does not grow with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixpo.errors import MissingExtra, SourceError, first_line
from mixpo.recipe import PreferencesTable
from mixpo.sources.build import described
from mixpo.sources.hub import load_split
from mixpo.sources.jsonl import MAX_ROW_BYTES, Line, lines
from mixpo.types import Skipped

Lines = Iterator[Line | Skipped]

ROWS_AT_ONCE = 16
"""Rows of Parquet in memory together; each may hold images of some megabytes."""
CHUNK = 1 << 16
"""Characters of a JSON array read at once."""


def rows_of(path: Path, table: PreferencesTable) -> Lines:
    """The rows of a file or folder in order, whatever its format. Raises SourceError when it is none of the formats or cannot be read."""
    if path.is_dir():
        return _folder(path, table)
    if path.is_file():
        return _file(path)
    if table.path.startswith((".", "/", "~")) or table.path.count("/") != 1 or path.suffix:
        raise SourceError(f"{path}: no such file or folder; preferences.path is relative to the recipe", code="file-missing", path=path)
    return _dataset(path, table)


def _folder(path: Path, table: PreferencesTable) -> Lines:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _dataset(path, table)
    files = sorted(path.rglob("*.parquet")) or sorted((*path.glob("*.jsonl"), *path.glob("*.json")))
    named = [file for file in files if file.name.startswith(table.split) or table.split in file.relative_to(path).parts[:-1]]
    if not files:
        raise SourceError(f"{path}: the folder holds no Parquet, JSONL or JSON file", code="preferences-no-rows", path=path)
    return (row for file in (named or files) for row in _file(file))


def _file(path: Path) -> Lines:
    try:
        with path.open("rb") as stream:
            begin = stream.read(4096)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})", code="file-unreadable", path=path) from None
    if begin.startswith(b"PAR1"):
        return _parquet(path)
    if begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _array(path)
    return lines(path, key="preferences.path")


def _parquet(path: Path) -> Lines:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _rows(batch, str(path), number)
                number += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise SourceError(
            f"{path}: not a readable Parquet file ({reason}), after {number} rows", code="file-unreadable", path=path
        ) from None


def _rows(batch: Any, where: str, number: int) -> Lines:
    """The rows of an Arrow batch, of which the first has this number."""
    try:
        rows: list[dict[str, Any] | None] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_row(batch, index) for index in range(len(batch))]
    for index, row in enumerate(rows, start=number):
        place = f"{where}[{index}]"
        yield _sized(place, row) if row is not None else Skipped(where=place, reason="not UTF-8 text; save the table with UTF-8 strings")


def _row(batch: Any, index: int) -> dict[str, Any] | None:
    """One row; None where a text of it cannot be decoded."""
    try:
        return dict(batch.slice(index, 1).to_pylist()[0])
    except UnicodeDecodeError:
        return None


def _sized(where: str, row: dict[str, Any]) -> Line | Skipped:
    """The row, unless its texts are longer than any prompt and response can be."""
    size = _text_size(row)
    return Skipped(where=where, reason=too_large(size)) if size > MAX_ROW_BYTES else (where, row)


def _text_size(value: object) -> int:
    """Characters of all texts in a row; bytes of images do not count."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_text_size, inner))


def too_large(size: int) -> str:
    """The reason to skip a row of so many bytes of text."""
    return f"the row holds {size / 2**20:.0f} MB of text, more than {MAX_ROW_BYTES / 2**20:.0f} MB"


def _array(path: Path) -> Lines:
    """The objects of one JSON array, read piece by piece. What follows an object that is no JSON cannot be found: the rest is one skip."""
    decoder, number = json.JSONDecoder(), 0
    lenient = json.JSONDecoder(parse_int=lambda digits: None)  # Python reads no integer of more than 4,300 digits
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(CHUNK).lstrip()[1:]
            while True:
                text = text.lstrip(" \t\r\n,")
                where = f"{path}[{number}]"
                if text.startswith("]"):
                    return
                try:
                    row, end = decoder.raw_decode(text) if text else (None, 0)
                except json.JSONDecodeError as error:
                    end, problem = 0, error.msg
                except ValueError:
                    text = text[lenient.raw_decode(text)[1] :]
                    yield Skipped(where=where, reason="not usable JSON: an integer has too many digits")
                    number += 1
                    continue
                except RecursionError:
                    yield Skipped(where=where, reason="nested too deeply; nothing after this row can be read")
                    return
                else:
                    problem = "the array is not closed"
                # A number may continue in the next piece; only objects are rows, and those end with a brace.
                if not end:
                    more = stream.read(max(CHUNK, len(text))) if len(text) < 2 * MAX_ROW_BYTES else ""
                    if not more:
                        yield Skipped(where=where, reason=f"not valid JSON ({problem}); nothing after this row can be read")
                        return
                    text += more
                    continue
                text = text[end:]
                yield _object(where, row, end)
                number += 1
    except UnicodeDecodeError as error:
        yield Skipped(where=f"{path}[{number}]", reason=f"not UTF-8 text ({error.reason}); nothing after this row can be read")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})", code="file-unreadable", path=path) from None


def _object(where: str, row: object, size: int) -> Line | Skipped:
    if size > MAX_ROW_BYTES:
        return Skipped(where=where, reason=too_large(size))
    return (where, row) if isinstance(row, dict) else Skipped(where=where, reason=f"holds {described(row)}, not an object")


def _dataset(path: Path, table: PreferencesTable) -> Lines:
    """One split of a saved dataset or of the Hub, in its stored form: images stay the encoded bytes that they are."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"preferences.path = {table.path!r}", "hub") from None
    data, number = load_split(datasets, table.path, table.name, table.split, path, "preferences"), 0
    for batch in data.with_format("arrow").iter(ROWS_AT_ONCE):
        yield from _rows(batch, f"{table.path}/{table.split}", number)
        number += len(batch)
