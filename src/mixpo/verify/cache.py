"""Verdicts of computer algebra kept on disk, by both formulas and what decides the comparison. A cache: losing it costs time only."""

from __future__ import annotations

import sqlite3
import threading
import time
from importlib import metadata
from pathlib import Path

from mixpo.types import content_id
from mixpo.verify.judgement import OUTCOMES, Judgement

PATIENCE_S = 60.0
"""How long to wait for another process (another rank, another worker) that writes to the same file."""
VERSION = 3
"""Of the comparison itself; raise it when `worker.py` judges otherwise."""


class VerdictCache:
    """A SQLite file. Thread-safe. A broken file is deleted and begun anew."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._versions = [VERSION, metadata.version("math-verify"), metadata.version("sympy")]
        try:
            self._connection = self._patiently()
        except sqlite3.OperationalError:
            raise  # held by another process: deleting it under that one would break both
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            self._connection = self._patiently()

    def get(self, predicted: str, gold: str, tolerance: float) -> Judgement | None:
        """The verdict of an earlier comparison, or None."""
        key = (self._key(predicted, gold, tolerance),)
        with self._lock:
            row = self._connection.execute("SELECT outcome, reason FROM verdicts WHERE key = ?", key).fetchone()
        return None if row is None else Judgement(OUTCOMES[row[0]], row[1])

    def put(self, predicted: str, gold: str, tolerance: float, judgement: Judgement) -> None:
        """Keep a verdict that would be the same again: no time-out and no crash."""
        row = (self._key(predicted, gold, tolerance), *judgement)
        with self._lock, self._connection:
            self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)

    def close(self) -> None:
        """Close the file; the cache must not be used after it."""
        with self._lock:
            self._connection.close()

    def _patiently(self) -> sqlite3.Connection:
        """Open the file, while another process may be making it: SQLite does not wait by itself for a change of the journal's mode."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=PATIENCE_S)
        # A power failure may cost the newest verdicts, never the file.
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, outcome TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;"
        )
        return connection

    def _key(self, predicted: str, gold: str, tolerance: float) -> str:
        return content_id("formula", predicted, gold, tolerance, *self._versions)
