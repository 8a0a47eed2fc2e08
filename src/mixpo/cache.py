"""Results kept on disk by a key, in a SQLite file. A cache: losing it costs time only."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from mixpo.plural import amount
from mixpo.sealed import checksum

PATIENCE_S = 60.0
"""How long to wait for another process (another rank, another worker) that writes to the same file."""
MEMORY = Path(":memory:")
"""The path of a cache that has no file."""


def user_cache() -> Path | None:
    """The user's cache folder for mixpo, which may not exist yet; None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixpo"
    return None


class Cache:
    """From text to text. Thread-safe. A broken file is deleted and replaced; where none can be written, results are kept in memory.

    Each result has a checksum with its key; one that is damaged counts as missing.
    """

    def __init__(self, path: Path = MEMORY) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._patiently()
        except (OSError, sqlite3.OperationalError) as error:
            if _is_held(error):
                raise  # by another process: deleting it under that one would break both
            self._connection = self._in_memory()  # a full disk, or the run of somebody else
        except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter of a message that quotes a damaged schema
            path.unlink(missing_ok=True)
            self._connection = self._patiently()

    def get(self, key: str) -> str | None:
        """What was put under this key, or None."""
        with self._lock:
            try:
                row = self._connection.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                self._drop(error)
                return None
        return _intact(key, str(row[0])) if row is not None else None

    def put(self, key: str, value: str) -> None:
        """Keep a result, in place of an earlier one."""
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, _with_checksum(key, value)))
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                self._drop(error)

    def close(self) -> None:
        """Close the file; the cache must not be used after it."""
        with self._lock, suppress(sqlite3.DatabaseError):
            self._connection.close()

    def _drop(self, error: Exception) -> None:
        """Continue in memory where the file is damaged. A full disk costs the result alone."""
        if isinstance(error, sqlite3.OperationalError) or self._path == MEMORY:
            return
        with suppress(sqlite3.DatabaseError):
            self._connection.close()
        for path in (self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)
        self._connection = self._in_memory()

    def _in_memory(self) -> sqlite3.Connection:
        self._path = MEMORY
        return self._open()

    def _patiently(self) -> sqlite3.Connection:
        """Open the file, while another process may be making it: SQLite does not wait by itself for a change of the journal's mode."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                if not _is_held(error) or time.monotonic() > limit:
                    raise
                time.sleep(0.02)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=PATIENCE_S)
        # A power failure may cost the newest results, never the file.
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
        )
        return connection


def damaged_rows(path: Path) -> str:
    """What is wrong with the file of a cache, or ""; nothing is changed."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT key, value FROM results")
            damaged = sum(_intact(str(key), str(stored)) is None for key, stored in rows)
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return str(error)
    return f"{amount(damaged, 'entry', 'entries')} with a wrong checksum" if damaged else ""


def _with_checksum(key: str, value: str) -> str:
    return f"{checksum(key, value)} {value}"


def _intact(key: str, stored: str) -> str | None:
    """The value that was stored under a key, or None where it is damaged."""
    _, _, value = stored.partition(" ")
    return value if stored == _with_checksum(key, value) else None


def _is_held(error: Exception) -> bool:
    """Whether another process has the file for a moment; the low byte of SQLite's code tells the kind of error."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
