"""Files that name other files: MMPR's meta.json and LLaMA-Factory's dataset_info.json, as the parts of a collection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mixpo.errors import SourceError
from mixpo.preferences.formats import FORMATS, Format, llama_factory_columns, llama_factory_row
from mixpo.recipe import PreferencesTable, did_you_mean
from mixpo.sources.build import can_be_path, short
from mixpo.sources.mmpr import MOST_REPEATS, is_repeat_time

META, DATASET_INFO = "meta.json", "dataset_info.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of rows. format: None where the first row decides. root: of its images. repeat, length: MMPR's repeat_time and rows."""

    name: str
    path: Path
    root: Path
    format: Format | None = None
    repeat: float = 1.0
    length: int | None = None


def parts_of(table: PreferencesTable, base: Path) -> list[Part]:
    """The files of a table, all checked before the first row is read."""
    path = base / table.path
    name = Path(table.path).stem or "preferences"
    root = base / table.root if table.root else path if path.is_dir() else path.parent if path.is_file() else base
    if table.root and not root.is_dir():
        raise SourceError(f"preferences.root: {root} is not a folder", code="not-a-folder", path=root, key="preferences.root")
    index = next((path / file for file in (META, DATASET_INFO) if (path / file).is_file()), path)
    entries = entries_of(index)
    if entries is None:
        if table.datasets:
            raise SourceError(f"{path}: preferences.datasets goes with a {META} or {DATASET_INFO}", code="preferences-no-index", path=path)
        return [Part(name=name, path=path, root=root)]
    kind = kind_of(entries)
    if table.kind not in ("auto", kind):
        raise other_format(index, kind, table.kind)
    for wanted in table.datasets:
        if wanted not in entries:
            known = f"{did_you_mean(wanted, entries)}; it has {', '.join(entries)}"
            raise SourceError(f"preferences.datasets: {index} has no {wanted!r}{known}", code="unknown-dataset", path=index, key=wanted)
    chosen = {name: entry for name, entry in entries.items() if not table.datasets or name in table.datasets}
    if kind == "mmpr":
        return [_mmpr_part(index, base / table.root if table.root else index.parent, name, entry) for name, entry in chosen.items()]
    parts = [_llama_part(index, root, name, entry) for name, entry in chosen.items() if table.datasets or entry.get("ranking")]
    if not parts:
        raise SourceError(f"{index}: no entry has ranking = true, so none holds pairs", code="preferences-no-pairs", path=index)
    return parts


def other_format(path: Path, actual: str, wanted: str) -> SourceError:
    """The error for a file of another format than the recipe says."""
    what = f'{actual} preference pairs, not {wanted}; set kind = "{actual}" (or "auto")'
    return SourceError(f"{path}: holds {what}", code="preferences-other-format", path=path, key="preferences.kind")


def entries_of(path: Path) -> dict[str, dict[str, Any]] | None:
    """The entries of a meta.json or dataset_info.json; None where a file is neither."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            if not stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return None
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if path.name in (META, DATASET_INFO):
            raise SourceError(f"{path}: not readable as JSON ({error})", code="file-unreadable", path=path) from None
        return None
    if not isinstance(data, dict) or not data or not all(isinstance(entry, dict) for entry in data.values()):
        return None
    return data if kind_of(data) else None


def kind_of(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The kind of collection that entries belong to."""
    if all("annotation" in entry for entry in entries.values()):
        return "mmpr"
    return "llama-factory" if any(key in entry for entry in entries.values() for key in ("file_name", "hf_hub_url", "ranking")) else ""


# --- MMPR ----------------------------------------------------------------------------------------------------------------


def _mmpr_part(meta: Path, root: Path, name: str, entry: Mapping[str, Any]) -> Part:
    folder, path = (_located(meta, root, name, key, entry.get(key, "")) for key in ("root", "annotation"))
    repeat, length = entry.get("repeat_time", 1), entry.get("length")
    if not is_repeat_time(repeat):
        raise SourceError(
            f"{meta}: {name}: repeat_time must be a number above 0, at most {MOST_REPEATS:,} (got {short(repeat)})",
            code="repeat-time",
            path=meta,
            key=name,
        )
    length = length if type(length) is int else None
    return Part(name=name, path=path, root=folder, format=FORMATS["mmpr"], repeat=float(repeat), length=length)


def _located(meta: Path, root: Path, name: str, key: str, value: object) -> Path:
    """A path of meta.json below the root folder. Released files begin with the name of the folder that meta.json lies in."""
    if not can_be_path(value):
        raise SourceError(f"{meta}: {name}: {key} must be a path (got {short(value)})", code="mmpr-path", path=meta, key=name)
    inner = Path(*Path(value).parts[1:]) if len(Path(value).parts) > 1 else Path(value)
    candidates = (root / value, root.parent / value, root / inner)
    located = next((path for path in candidates if (path.is_dir() if key == "root" else path.is_file())), None)
    if located is None:
        message = f"{meta}: {name}: {key} {value!r} not found under {root}; set preferences.root to the folder that it is relative to"
        raise SourceError(message, code="mmpr-path", path=meta, key=name)
    if not located.resolve().is_relative_to(root.parent.resolve()):
        message = f"{meta}: {name}: {key} {value!r} lies outside {root}; set preferences.root to a folder that holds everything"
        raise SourceError(message, code="mmpr-path", path=meta, key=name)
    return located


# --- LLaMA-Factory ---------------------------------------------------------------------------------------------------------


def _llama_part(index: Path, root: Path, name: str, entry: Mapping[str, Any]) -> Part:
    if not entry.get("ranking"):
        message = f"{index}: {name}: is not ranking data; it holds no pairs"
        raise SourceError(message, code="preferences-no-pairs", path=index, key=name)
    value, hub = entry.get("file_name"), entry.get("hf_hub_url")
    if not value and isinstance(hub, str):
        message = (
            f'{index}: {name}: is on the Hub; read it with [[preferences]] path = "{hub}", and name the others in preferences.datasets'
        )
        raise SourceError(message, code="preferences-on-the-hub", path=index, key=name)
    path = index.parent / value if can_be_path(value) else None
    if path is None or not path.exists() or not path.resolve().is_relative_to(index.parent.resolve()):
        message = f"{index}: {name}: file_name {short(value)} is not a file next to it; download the data first"
        raise SourceError(message, code="file-missing", path=index, key=name)
    columns = llama_factory_columns(entry)
    used = {column for column in columns.names.values() if column}
    mapped = Format(
        name="llama-factory",
        fits=lambda row: all(columns.names[side] in row for side in ("chosen", "rejected")),
        parse=partial(llama_factory_row, columns),
        columns=FORMATS["llama-factory"].columns | used,
    )
    return Part(name=name, path=path, root=root, format=mapped)
