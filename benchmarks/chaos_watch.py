"""Looks at a run directory from outside: when a shard is being written, what a kill left, and whether what was finished stays as it is.

Reads Parquet with pyarrow alone, independently of mixpo's own reader.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

IN_CREATE, IN_NONBLOCK = 0x100, 0o4000


class Writes:
    """The folders of a run, watched by inotify (Linux)."""

    def __init__(self, root: Path) -> None:
        self._root, self._libc = root, ctypes.CDLL(None, use_errno=True)
        self._handle = -1

    def __enter__(self) -> Self:
        self._handle = self._libc.inotify_init1(IN_NONBLOCK)
        # Made here because the first shard comes as soon as the folder is there.
        (self._root / "round-1" / "sample").mkdir(parents=True, exist_ok=True)
        for folder in (self._root, *self._root.rglob("*/")):
            if "images" not in folder.parts:
                self._libc.inotify_add_watch(self._handle, os.fsencode(folder), IN_CREATE)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def next(self, seconds: float) -> bool:
        """Wait until the temporary file of a shard appears; False when none does in so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._handle], [], [], left)[0] and b".parquet." in os.read(self._handle, 1 << 16):
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a kill left: temporary files of shards and others, how many of those shards are torn, and how many shards are new."""

    shards: int
    others: int
    torn: int
    new: int


class Shards:
    """The finished shards of a run, by path in `known`. changed: written again; gone: no longer there; torn: unreadable. Each must
    stay 0."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.known: dict[Path, tuple[int, int]] = {}
        self._left: set[Path] = set()
        self.changed = self.gone = self.torn = 0

    def look(self) -> Left:
        """Compare with the last look."""
        there = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self._root.rglob("*.parquet")}
        # The page of a run is made anew whenever there is more to show.
        there = {path: mark for path, mark in there.items() if not path.name.startswith(".") and path.parent.name != "report"}
        new = there.keys() - self.known.keys()
        self.torn += sum(not readable(path) for path in new)
        self.changed += sum(there[path] != mark for path, mark in self.known.items() if path in there)
        self.gone += len(self.known.keys() - there.keys())
        self.known = there
        temporary = {path for path in self._root.rglob(".*.tmp") if path.is_file()}
        fresh, self._left = temporary - self._left, temporary
        shards = [path for path in fresh if ".parquet." in path.name]
        return Left(shards=len(shards), others=len(fresh) - len(shards), torn=sum(not readable(path) for path in shards), new=len(new))


def readable(path: Path) -> bool:
    """Whether the whole of a Parquet file can be read."""
    try:
        pq.read_table(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True
