"""The DuckDB file of the viewer's index: its tables, opening it, and telling damage from other errors."""

from __future__ import annotations

from pathlib import Path

from mixpo.errors import MissingExtra

try:
    import duckdb
except ImportError:
    raise MissingExtra("mixpo view", "viewer") from None

VERSION = "4"
"""Rises when the tables below change; an index of another version is rebuilt."""
TABLES = """
CREATE TABLE version (value VARCHAR);
CREATE TABLE block (round INTEGER, number INTEGER, key VARCHAR, stale BOOLEAN, sampled BOOLEAN);
CREATE TABLE question (n BIGINT, id VARCHAR, domain VARCHAR, source VARCHAR, kind VARCHAR, open BOOLEAN, images INTEGER, text VARCHAR);
CREATE TABLE judged (round INTEGER, n BIGINT, outcomes VARCHAR, correct INTEGER, wrong INTEGER, malformed INTEGER, undecided INTEGER);
CREATE TABLE dropped (round INTEGER, n BIGINT, reason VARCHAR);
CREATE TABLE pair (round INTEGER, n BIGINT, id VARCHAR, origin VARCHAR, domain VARCHAR, outcome VARCHAR, answer VARCHAR,
    chosen INTEGER, rejected INTEGER, tokens BOOLEAN)
"""
"""n: where a record is and its place in every list, see `place`. outcomes: one letter for each response, in order.
dropped: why something of a question was filtered.
answer: what the rejected side says. chosen / rejected: lengths, in tokens if both sides have `tokens`, else in characters."""


def open_file(path: Path) -> duckdb.DuckDBPyConnection:
    """The index in a file, empty where there is none of this version. Raises duckdb.Error."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    connection = duckdb.connect(str(path), config=settings)
    try:
        current = connection.execute("SELECT value FROM version").fetchone()
    except duckdb.CatalogException:
        current = None
    except duckdb.Error:
        connection.close()
        raise
    if current != (VERSION,):
        connection.close()
        path.unlink(missing_ok=True)
        connection = duckdb.connect(str(path), config=settings)
        connection.execute(TABLES)
        connection.execute("INSERT INTO version VALUES (?)", [VERSION])
    return connection


def remove_file(path: Path) -> None:
    """Delete the file of an index, with its log."""
    for file in (path, path.with_name(f"{path.name}.wal")):
        file.unlink(missing_ok=True)


def is_damage(error: duckdb.Error) -> bool:
    """Whether a query failed because the file of the index is damaged; DuckDB has no type of its own for that."""
    kinds = (duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException, duckdb.InvalidInputException)
    return isinstance(error, kinds) or "Corrupt database file" in str(error)
