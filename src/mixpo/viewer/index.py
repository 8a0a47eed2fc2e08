"""The index of a run: a DuckDB file with the keys of every question and pair, never their texts.

It lies in RUN/.view (in a temporary folder where that cannot be used) and may be deleted at any time; a damaged one is rebuilt. Opening
it reads what is new or changed, block by block, and forgets what is gone. Texts stay in the shards: the index of three million pairs stays
small, and a page reads the few rows that it shows. DuckDB reads shards only after their checksums were compared.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixpo.errors import MissingExtra, RunError
from mixpo.pairs.statistics import balance
from mixpo.progress import Progress, Silent
from mixpo.records import check_shard
from mixpo.run import REBUILD, Run
from mixpo.types import Outcome, content_id
from mixpo.viewer.index_file import is_damage, open_file, remove_file
from mixpo.viewer.layout import RunLayout, ShardGroup
from mixpo.viewer.text import SNIPPET

try:
    import duckdb
except ImportError:
    raise MissingExtra("mixpo view", "viewer") from None

Value = TypeVar("Value")

BATCH = 128
"""Blocks that are read with one query."""
REFRESH_SECONDS = 1.0
"""Least time between two checks of the run for new shards."""

OUTCOME: Mapping[str, Outcome] = {"c": "correct", "w": "wrong", "m": "malformed", "u": "undecided"}
"""The letters of `outcomes`."""

_QUESTIONS = f"""
INSERT INTO question
SELECT (b.number::BIGINT << 40) | (f.file_row_number << 16), f.id, f.domain, f.source, f.kind, f.answer IS NULL, len(f.images),
       left(trim(regexp_replace(replace(f.text, '<image>', ''), '\\s+', ' ', 'g')), {SNIPPET})
FROM read_parquet($files, filename = true, file_row_number = true) f JOIN batch b ON f.filename = b.file
ORDER BY 1
"""
_JUDGED = """
INSERT INTO judged
SELECT $round, q.n, array_to_string(list_transform(f.verdicts, lambda v: left(v.outcome, 1)), ''),
       len(list_filter(f.verdicts, lambda v: v.outcome = 'correct')), len(list_filter(f.verdicts, lambda v: v.outcome = 'wrong')),
       len(list_filter(f.verdicts, lambda v: v.outcome = 'malformed')), len(list_filter(f.verdicts, lambda v: v.outcome = 'undecided'))
FROM read_parquet($files, filename = true, file_row_number = true) f JOIN batch b ON f.filename = b.file
JOIN question q ON q.n = ((b.number::BIGINT << 40) | (f.file_row_number << 16)) AND q.id = f.question
ORDER BY q.n
"""
_PAIRS = """
INSERT INTO pair
SELECT $round, f.n | f.place, f.p.id, f.p.origin, q.domain,
       CASE WHEN f.p.origin IN ('dropout_ntp', 'imported') THEN 'unjudged'
           WHEN f.p.origin = 'branch' THEN if(f.p.rejected_answer IS NULL, 'malformed', 'wrong') ELSE
           CASE j.outcomes[f.p.rejected_index + 1] WHEN 'c' THEN 'correct' WHEN 'w' THEN 'wrong' WHEN 'm' THEN 'malformed'
           WHEN 'u' THEN 'undecided' ELSE CASE f.p.origin WHEN 'format' THEN 'malformed' ELSE 'wrong' END END END,
       left(f.p.rejected_answer, 40),
       if(f.tokens, len(f.p.chosen_ids), length(f.p.chosen)), if(f.tokens, len(f.p.rejected_ids), length(f.p.rejected)), f.tokens
FROM (SELECT *, len(p.chosen_ids) > 0 AND len(p.rejected_ids) > 0 AS tokens FROM (
    SELECT (b.number::BIGINT << 40) | (s.file_row_number << 16) AS n, s.question, unnest(s.pairs) AS p,
           generate_subscripts(s.pairs, 1) - 1 AS place
    FROM read_parquet($files, filename = true, file_row_number = true) s JOIN batch b ON s.filename = b.file
)) f
JOIN question q ON q.n = f.n AND q.id = f.question
LEFT JOIN (SELECT n, outcomes FROM judged WHERE round = $round) j ON j.n = f.n
ORDER BY 2
"""
_DROPPED = """
INSERT INTO dropped
SELECT $round, f.n, f.d.reason
FROM (
    SELECT (b.number::BIGINT << 40) | (s.file_row_number << 16) AS n, s.question, unnest(s.dropped) AS d
    FROM read_parquet($files, filename = true, file_row_number = true) s JOIN batch b ON s.filename = b.file
) f
JOIN question q ON q.n = f.n AND q.id = f.question WHERE f.d.count > 0
ORDER BY 2
"""
_STALE = """
SELECT DISTINCT b.number
FROM read_parquet($files, filename = true, file_row_number = true) f JOIN batch b ON f.filename = b.file
ANTI JOIN question q ON q.n = ((b.number::BIGINT << 40) | (f.file_row_number << 16)) AND q.id = f.question
"""


def place(number: int, row: int, position: int = 0) -> int:
    """The number `n` of a record: shard, row in the shard, and place in the row, so that order is the order of the run."""
    return number << 40 | row << 16 | position


def placed(n: int) -> tuple[int, int, int]:
    """Shard, row and place of a record."""
    return n >> 40, n >> 16 & 0xFFFFFF, n & 0xFFFF


class RunIndex:
    """The keys of a run. Queries may come from many threads; only one of them brings the index up to date."""

    def __init__(self, run: Run, progress: Progress | None = None, *, balanced: bool = False) -> None:
        """Open or make the index and bring it up to date, saying how far it is. Raises RunError when it cannot be made.

        balanced: see `RunLayout`.
        """
        self.run = run
        self.layout = RunLayout(run, balanced=balanced)
        self.edition = 0
        """Rises whenever the content changes."""
        self._progress = progress or Silent()
        self._lock = threading.RLock()
        self._stamp: tuple[str, ...] = ()
        self._refreshed = 0.0
        self._blocks: dict[int, dict[int, ShardGroup]] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._connection = self._open()
        self.refresh()

    # --- asking --------------------------------------------------------------------------------------------------------

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for one thread; use it with `with`."""
        return self._connection.cursor()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.table(query, *values)[1]

    def table(self, query: str, *values: object) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns of a query, and all its rows."""

        def ask() -> tuple[list[str], list[tuple[Any, ...]]]:
            with self.cursor() as cursor:
                cursor.execute(query, values)
                return [column[0] for column in cursor.description or ()], cursor.fetchall()

        return self._undamaged(ask)

    def one(self, query: str, *values: object) -> Any:
        """The first column of the first row, or None."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    def block(self, number: int, round_: int) -> ShardGroup | None:
        """The files of a block as of the last refresh."""
        return self._blocks.get(round_, {}).get(number)

    def blocks(self, round_: int) -> list[ShardGroup]:
        """All blocks of a round, in order."""
        return list(self._blocks.get(round_, {}).values())

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    # --- opening ---------------------------------------------------------------------------------------------------------

    def _open(self) -> duckdb.DuckDBPyConnection:
        path = self.run.root / ".view" / "index.duckdb"
        try:
            path.parent.mkdir(exist_ok=True)
            return self._connect(path)
        except (OSError, duckdb.IOException) as error:
            # Somebody else's run, a full disk, or a second viewer that holds the file.
            reason = str(error).splitlines()[0].partition(" See also")[0]
            self._progress.say(f"{path}: cannot be used ({reason}); the index is made in a temporary folder")
            self._temporary = tempfile.TemporaryDirectory(prefix="mixpo-view-")
            return self._connect(Path(self._temporary.name) / "index.duckdb")

    def _connect(self, path: Path) -> duckdb.DuckDBPyConnection:
        try:
            connection = open_file(path)
        except duckdb.Error as error:
            if not is_damage(error):
                raise
            self._progress.say(REBUILD.format(path=path))
            remove_file(path)
            connection = open_file(path)
        # Matches of searches, and the balance of each count of verdicts; shared by all cursors, gone with the process.
        connection.execute("ATTACH ':memory:' AS scratch")
        connection.execute("CREATE TABLE scratch.match (search VARCHAR, n BIGINT)")
        connection.execute("CREATE TABLE scratch.balance (correct INTEGER, decided INTEGER, name VARCHAR)")
        return connection

    def _undamaged(self, work: Callable[[], Value]) -> Value:
        """Query the index; where its file turns out to be damaged, rebuild it and query again."""
        connection = self._connection
        try:
            return work()
        except duckdb.Error as error:
            if not is_damage(error):
                raise
        with self._lock:
            if self._connection is connection:
                path = self.run.root / ".view" / "index.duckdb"
                self._progress.say(REBUILD.format(path=path))
                connection.close()
                remove_file(path)
                # Other threads may still hold the file, and DuckDB shares open files by path: then a temporary folder is used.
                self._connection = self._open()
                self._update()
                self._name_balances()
                self.edition += 1
        return work()

    # --- up to date --------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what is new or changed. Costs next to nothing when the run is as it was."""
        if time.monotonic() - self._refreshed < REFRESH_SECONDS and self._stamp:
            return
        with self._lock:
            self._refreshed = time.monotonic()
            stamp = self.layout.stamp()
            if stamp == self._stamp:
                return
            try:
                changed = self._undamaged(self._update)
                self._undamaged(self._name_balances)
            except duckdb.Error as error:
                raise RunError(
                    f"{self.run.root}: cannot be indexed ({str(error).splitlines()[0]}); if a shard is named, delete it",
                    code="index-failed",
                    path=self.run.root,
                ) from None
            self._stamp = stamp
            self.edition += changed

    def _update(self) -> bool:
        known = {(round_, number): key for round_, number, key in self.rows("SELECT round, number, key FROM block")}
        # Questions first: what a round made of them is checked against them.
        self._blocks = {r: {block.number: block for block in self.layout.blocks(r)} for r in (0, *self.layout.rounds())}
        wanted = [block for blocks in self._blocks.values() for block in blocks.values()]
        keys = {(block.round, block.number): content_id(block.key) for block in wanted}
        gone = known.keys() - keys.keys()
        fresh = [block for block in wanted if known.get((block.round, block.number)) != keys[block.round, block.number]]
        if not gone and not fresh:
            return False
        self._forget([*gone, *((block.round, block.number) for block in fresh if (block.round, block.number) in known)])
        self._progress.start("index", len(wanted), "shards", len(wanted) - len(fresh))
        for batch in _batches(fresh):
            self._add(batch, [keys[block.round, block.number] for block in batch])
            self._progress.advance(len(batch))
        self._progress.finish()
        return True

    def _name_balances(self) -> None:
        counts = self.rows("SELECT DISTINCT correct, correct + wrong + malformed FROM judged WHERE outcomes != ''")
        with self.cursor() as cursor:
            cursor.execute("DELETE FROM scratch.balance")
            for correct, decided in counts:
                cursor.execute("INSERT INTO scratch.balance VALUES (?, ?, ?)", [correct, decided, balance(correct, decided)])

    def _forget(self, blocks: Sequence[tuple[int, int]]) -> None:
        with self.cursor() as cursor:
            for round_, number in blocks:
                span = [place(number, 0), place(number + 1, 0)]
                cursor.execute("DELETE FROM block WHERE round = ? AND number = ?", [round_, number])
                if round_ == 0:
                    cursor.execute("DELETE FROM question WHERE n >= ? AND n < ?", span)
                else:
                    for table in ("judged", "pair", "dropped"):
                        cursor.execute(f"DELETE FROM {table} WHERE round = ? AND n >= ? AND n < ?", [round_, *span])
            cursor.execute("DELETE FROM scratch.match")

    def _add(self, blocks: Sequence[ShardGroup], keys: Sequence[str]) -> None:
        """Read blocks of one round, all or none of them."""
        round_ = blocks[0].round
        with self.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE batch (number INTEGER, file VARCHAR)")
            cursor.execute("BEGIN")
            stale: set[int] = set()
            if round_ == 0:
                self._read(cursor, _QUESTIONS, [(block.number, block.source) for block in blocks])
            else:
                for kind, query in (("verify", _JUDGED), ("pair", _PAIRS), ("pair", _DROPPED)):
                    files = [(block.number, block.made[kind]) for block in blocks if kind in block.made]
                    stale |= {number for (number,) in self._read(cursor, _STALE, files)}
                    self._read(cursor, query, [file for file in files if file[0] not in stale], round_)
            cursor.executemany(
                "INSERT INTO block VALUES (?, ?, ?, ?, ?)",
                [
                    (round_, block.number, key, block.number in stale, "sample" in block.made)
                    for block, key in zip(blocks, keys, strict=True)
                ],
            )
            cursor.execute("COMMIT")

    def _read(
        self, cursor: duckdb.DuckDBPyConnection, query: str, files: Sequence[tuple[int, Path]], round_: int = 0
    ) -> list[tuple[Any, ...]]:
        if not files:
            return []
        for _, path in files:
            check_shard(path)
        cursor.execute("DELETE FROM batch")
        cursor.executemany("INSERT INTO batch VALUES (?, ?)", [(number, str(path)) for number, path in files])
        values: dict[str, object] = {"files": [str(path) for _, path in files]}
        if "$round" in query:
            values["round"] = round_
        return cursor.execute(query, values).fetchall()


def _batches(blocks: Sequence[ShardGroup]) -> list[Sequence[ShardGroup]]:
    """Blocks in order, cut where the round changes."""
    batches: list[list[ShardGroup]] = []
    for block in blocks:
        if not batches or len(batches[-1]) == BATCH or batches[-1][0].round != block.round:
            batches.append([])
        batches[-1].append(block)
    return list(batches)
