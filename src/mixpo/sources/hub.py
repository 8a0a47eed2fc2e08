"""Data sets of the Hugging Face hub or of a local folder, through the `datasets` library (imported here only).

Rows are read in their stored form, so images stay the encoded bytes that they are: no decoding, no loss. No code that comes
with a data set is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixpo.errors import MissingExtra, SourceError, first_line
from mixpo.plural import amount
from mixpo.recipe import HubSource, did_you_mean
from mixpo.sources.build import SourceRow
from mixpo.sources.columns import ColumnUse
from mixpo.sources.images import Pictures
from mixpo.sources.jsonl import Line, each, question_of
from mixpo.types import Notice, Skipped

ROWS_AT_ONCE = 16
"""Rows in memory together; each may hold images of some megabytes."""


def read(source: HubSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """The rows of a split in order, the first `count` of them. Raises SourceError when the data set or a column is not there."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra('source.kind = "hub"', "hub") from None
    folder = recipe_folder / source.path
    data = load_split(datasets, source.path, source.name, source.split, folder)
    columns = _columns(source, data.column_names)
    unused = [name for name in data.column_names if name not in columns.values()]
    used = ColumnUse(source.path, source.kind)
    used.refuse_pairs(unused, data.column_names)
    features: dict[str, Any] = {field: data.features[columns[field]] for field in ("answer", "choices") if field in columns}
    pictures = Pictures(folder if folder.is_dir() else recipe_folder, images, also=(Path(datasets.config.HF_CACHE_HOME),))
    if source.count:
        data = data.select(range(min(source.count, len(data))))

    def rows() -> Iterator[Line]:
        stored = data.select_columns(sorted(set(columns.values()))).with_format("arrow").iter(ROWS_AT_ONCE)
        for number, row in enumerate(row for batch in stored for row in batch.to_pylist()):
            fields = {field: _named(features.get(field), row[column]) for field, column in columns.items()}
            yield f"{source.path}/{source.split}[{number}]", {**fields, "id": number}

    def made(where: str, row: Mapping[str, object]) -> SourceRow:
        return SourceRow(where=where, question=question_of(row, pictures, source.answer_kind, source.domain, source.path))

    yield from each(rows(), made, used)
    if unused:
        yield Notice(where=source.path, text=f"columns that are not used: {', '.join(unused)} ({amount(len(data), 'row')})")


def load_split(datasets: Any, path: str, name: str | None, split: str, folder: Path, table: str = "source") -> Any:
    """One split as a map-style data set. table: the recipe's, for messages. What `datasets` raises is translated here."""
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            data = datasets.load_dataset(str(folder.resolve()), name=name, split=split)
        elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise SourceError(
                f"{table}.path: {folder} is not a folder; give a folder (parquet, images, save_to_disk) or a hub id",
                code="not-a-folder",
                path=folder,
                key=f"{table}.path",
            )
        else:
            if not (Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")).exists():
                _reach(path, folder, table)
            data = datasets.load_dataset(path, name=name, split=split)
    # datasets has no common base of its errors; all of these say in their message what is wrong with the data set.
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"{table}.path = {path!r} cannot be loaded by datasets: {_first_line(error)}", code="hub-not-loadable", key=f"{table}.path"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise SourceError(
                f"{table}.split: {path} has no {split!r}{did_you_mean(split, data)}; it has {', '.join(data)}",
                code="split-missing",
                key=f"{table}.split",
            )
        data = data[split]
    elif data.split is not None and str(data.split) != split:
        raise SourceError(
            f"{table}.split: {path} holds the split {str(data.split)!r}, not {split!r}",
            code="split-missing",
            key=f"{table}.split",
        )
    if len(data) == 0:
        raise SourceError(f"{path}: split {split!r} holds no rows", code="no-rows", key=f"{table}.split")
    return data


def _reach(path: str, folder: Path, table: str) -> None:
    """Raise SourceError where the hub cannot be reached and has given nothing of the data set before. Downloads nothing.

    `datasets` finds that out too, after half a minute of tries.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(path, repo_type="dataset", allow_patterns=[])
    except LocalEntryNotFoundError as error:
        why = first_line(error)
        raise SourceError(
            f"{table}.path = {path!r}: no folder {folder}, and the hub does not give it ({why})",
            code="hub-not-reached",
            key=f"{table}.path",
        ) from None
    except (HfHubHTTPError, HFValidationError):
        return  # what is wrong with a name or a permission, datasets says


def _first_line(error: BaseException) -> str:
    """The first line of an error, and of its cause where there is one (datasets says little at the top)."""
    return ", because ".join(f"{type(one).__name__}: {first_line(one)}" for one in (error, error.__cause__) if one)


def _columns(source: HubSource, available: list[str]) -> dict[str, str]:
    """From our fields to the columns of the recipe; all must be there. An empty name means that there is no such column."""
    wanted = {
        "messages": source.messages,
        "question": source.question if not source.messages or source.question in available else "",
        "answer": source.answer,
        "image": source.image,
        "choices": source.choices,
        "rationale": source.rationale,
    }
    columns = {field: column for field, column in wanted.items() if column}
    for field, column in columns.items():
        if column not in available:
            hint = f'; set source.{field} = "" if there are none' if field != "question" else ""
            known = f"{did_you_mean(column, available)}; it has {', '.join(available)}{hint}"
            raise SourceError(
                f"source.{field}: {source.path} has no column {column!r}{known}", code="column-missing", key=f"source.{field}"
            )
    return columns


def _named(feature: Any, value: Any) -> Any:
    """The value with the names of a ClassLabel, which stores numbers, or of a list of them; None for a number without a name."""
    if (names := getattr(feature, "names", None)) is not None:
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, list) and (inner := getattr(feature, "feature", None)) is not None:
        return [_named(inner, item) for item in value]
    return value
