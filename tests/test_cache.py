"""Results kept on disk: a broken file costs nothing, a held one is waited for, and a full disk costs the cache alone."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from mixpo import cache
from mixpo.cache import Cache


def test_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    kept = Cache(tmp_path / "folder" / "cache.sqlite")
    assert kept.get("x") is None
    kept.put("x", "y")
    kept.put("x", "z")
    kept.close()
    assert Cache(tmp_path / "folder" / "cache.sqlite").get("x") == "z"


def test_a_broken_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"not a database" * 1000)
    kept = Cache(path)
    kept.put("x", "y")
    assert kept.get("x") == "y"


def test_a_file_that_another_process_holds_is_waited_for_and_never_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and workers of one run share the file, and may make it at the same moment."""
    path = tmp_path / "verdicts.sqlite"
    holder = sqlite3.connect(path, check_same_thread=False)
    holder.execute("CREATE TABLE other (x)")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(cache, "PATIENCE_S", 0.2)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Cache(path)
    assert path.exists()
    monkeypatch.setattr(cache, "PATIENCE_S", 20.0)
    timer = threading.Timer(0.3, holder.rollback)
    timer.start()
    kept = Cache(path)
    timer.join()
    kept.put("x", "y")
    assert kept.get("x") == "y"


@pytest.mark.parametrize("where", ["/proc/verdicts/cache.sqlite", "/proc/cache.sqlite", "file/cache.sqlite"])
def test_where_nothing_can_be_written_results_stay_in_memory(tmp_path: Path, where: str) -> None:
    """The run of somebody else, or one on a medium that is read only, can be audited."""
    (tmp_path / "file").write_text("no folder")
    kept = Cache(tmp_path / where)
    kept.put("x", "y")
    assert kept.get("x") == "y"
    kept.close()


def test_a_full_disk_costs_the_cache_and_not_the_result(tmp_path: Path) -> None:
    kept = Cache(tmp_path / "verdicts.sqlite")
    kept.put("a", "b")
    kept._connection.execute("PRAGMA max_page_count = 1")  # SQLite then says that the disk is full
    with pytest.raises(sqlite3.OperationalError, match="full"), kept._connection:
        kept._connection.execute("INSERT INTO results VALUES ('k', ?)", ("long" * 10_000,))
    for number in range(50):
        kept.put("x" * 5000 + str(number), "a result of some length " * 200)
    assert kept.get("x" * 5000 + "49") is None
    assert kept.get("a") == "b"
    kept.close()
    assert Cache(tmp_path / "verdicts.sqlite").get("a") == "b"
