"""SHA-256 of model files, cached for large ones in the user's cache folder, so that commands do not read all weights each time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mixpo import sealed
from mixpo.cache import user_cache
from mixpo.errors import RunError
from mixpo.records import write_text

LARGE = 64 << 20
"""Smallest size in bytes of a cached file."""
SETTLED_S = 2.0
"""Files modified more recently are not cached: they could change again within one tick of the file system's clock."""
MOST = 1000
"""Entries of the cache; the newest are kept."""
AT_ONCE = 8
"""Files hashed in parallel; hashlib releases the GIL."""


class FileHash(NamedTuple):
    """A hashed file: size in bytes, modification time in ns, SHA-256."""

    size: int
    changed: int
    digest: str


def sha256(paths: Sequence[Path]) -> list[str]:
    """Hex digests of files. A large file with unchanged path, size and modification time is not read again.

    Raises OSError when one cannot be read.
    """
    if not paths:
        return []
    known = _read()
    with ThreadPoolExecutor(min(AT_ONCE, len(paths))) as pool:
        hashes = dict(zip(map(str, paths), pool.map(partial(_hashed, known), paths), strict=True))
    new = {path: file for path, file in hashes.items() if known.get(path) != file and _is_cacheable(file)}
    if new:
        _write({**known, **new})
    return [hashes[str(path)].digest for path in paths]


def _hashed(known: Mapping[str, FileHash], path: Path) -> FileHash:
    before, remembered = path.stat(), known.get(str(path))
    if remembered is not None and (remembered.size, remembered.changed) == (before.st_size, before.st_mtime_ns):
        return remembered
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    after = path.stat()
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return FileHash(before.st_size, before.st_mtime_ns if same else time.time_ns(), digest)


def _is_cacheable(file: FileHash) -> bool:
    return file.size >= LARGE and file.changed < time.time_ns() - SETTLED_S * 1e9


def _cache_path() -> Path | None:
    """Path of the cache; None for a user without a home."""
    return folder / "digests.json" if (folder := user_cache()) else None


def _read() -> dict[str, FileHash]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if path := _cache_path():
            return {path: FileHash(*file) for path, file in sealed.load(path).items()}
    return {}


def _write(known: Mapping[str, FileHash]) -> None:
    newest = dict(list(known.items())[-MOST:])
    with suppress(OSError, RunError):
        if path := _cache_path():
            write_text(path, sealed.dumps(newest, indent=1))
