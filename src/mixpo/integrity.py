"""Sizes and digests of the files of a run, as its manifests keep them: whether a file is still what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mixpo.plural import amount


class FileRecord(NamedTuple):
    """Size in bytes and SHA-256 of a file. `str` and `parse` are its form in a manifest."""

    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.size} sha256:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> FileRecord:
        """From its form in a manifest."""
        size, _, digest = text.partition(" sha256:")
        return cls(int(size), digest)

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Of a file as it is now. Raises OSError."""
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            return cls(handle.tell(), digest)

    def damage(self, path: Path, *, read: bool = True) -> str:
        """What is wrong with a file, or "". Without `read` only its size is compared."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"has {amount(size, 'byte')} instead of {self.size:,}"
            return "fails its checksum" if read and FileRecord.of(path) != self else ""
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"


Records = Mapping[str, str]
"""The files of a stage: from a path relative to its folder to a `FileRecord` as text."""


def files_below(path: Path) -> Iterator[Path]:
    """A file itself, or all files in a folder, in order."""
    yield from (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else filter(Path.is_file, [path])


def records_of(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Records of the files in some paths, named relative to `folder`."""
    files = (file for path in paths for file in files_below(path))
    return {Path(os.path.relpath(file, folder)).as_posix(): str(FileRecord.of(file)) for file in files}


def recorded_below(folder: Path, records: Records, *paths: Path) -> dict[str, str]:
    """Those of `records` that are of one of `paths` or lie in it."""
    result: dict[str, str] = {}
    for path in paths:
        name = Path(os.path.relpath(path, folder)).as_posix()
        if path.suffix:  # a file: folders of models have none
            result |= {name: records[name]} if name in records else {}
        else:
            result |= {file: record for file, record in records.items() if file.startswith(f"{name}/")}
    return result


def damages(folder: Path, records: Records, *, read: bool = True) -> dict[str, str]:
    """What is wrong with recorded files, by name; those that are intact are not in it."""
    result = ((name, FileRecord.parse(record).damage(folder / name, read=read)) for name, record in records.items())
    return {name: damage for name, damage in result if damage}
