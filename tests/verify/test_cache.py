"""Verdicts kept on disk: what is asked once is never asked again, what may change is not kept, and a broken file costs nothing."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response
from mixpo.verify import Verifier, cache
from mixpo.verify.cache import VerdictCache
from mixpo.verify.judgement import Judgement
from mixpo.verify.pool import FormulaPool

ASKED = Question(id="q", text="?", answer="(x+1)^2", kind="formula")
ANSWER = Response(question="q", index=0, text="Final answer: x^2+2x+1")


def test_a_second_verifier_starts_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "verdicts.sqlite"
    settings = VerifyTable(workers=1, timeout_s=60)
    with Verifier(settings, cache=path) as verifier:
        first = verifier.verify(ASKED, ANSWER, "final")
        assert verifier._pool.processes()
    with Verifier(settings, cache=path) as verifier:
        assert verifier.verify(ASKED, ANSWER, "final") == first
        assert not verifier._pool.processes()
    assert first.outcome == "correct"


@pytest.mark.parametrize(("lasting", "times"), [("always", 1), ("here", 4), ("", 2)])
def test_only_what_would_be_the_same_again_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: str, times: int) -> None:
    asked = []

    def ask(_pool: FormulaPool, request: dict[str, object]) -> tuple[Judgement, str]:
        asked.append(request)
        return Judgement("undecided", "a reason"), lasting

    monkeypatch.setattr(FormulaPool, "_ask", ask)
    for _ in range(2):
        with FormulaPool(cache=tmp_path / "verdicts.sqlite") as pool:
            assert pool.compare("x", "y", 0.0) == Judgement("undecided", "a reason")
    assert len(asked) == times  # a time-out is asked again before it counts


def test_the_key_holds_all_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdicts.sqlite"
    kept = VerdictCache(path)
    kept.put("x", "y", 0.1, Judgement("wrong", "differ"))
    assert kept.get("x", "y", 0.1) == Judgement("wrong", "differ")
    assert [kept.get(*key) for key in (("y", "x", 0.1), ("x", "y", 0.2), ("x y", "", 0.1))] == [None] * 3
    kept.put("x", "y", 0.1, Judgement("correct", "agree"))
    kept.close()
    assert VerdictCache(path).get("x", "y", 0.1) == Judgement("correct", "agree")
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert VerdictCache(path).get("x", "y", 0.1) is None


def test_a_broken_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"not a database" * 1000)
    kept = VerdictCache(path)
    kept.put("x", "y", 0.1, Judgement("wrong", "differ"))
    assert kept.get("x", "y", 0.1) == Judgement("wrong", "differ")


def test_a_file_that_another_process_holds_is_waited_for_and_never_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and workers of one run share the file, and may make it at the same moment."""
    path = tmp_path / "verdicts.sqlite"
    holder = sqlite3.connect(path, check_same_thread=False)
    holder.execute("CREATE TABLE other (x)")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(cache, "PATIENCE_S", 0.2)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        VerdictCache(path)
    assert path.exists()
    monkeypatch.setattr(cache, "PATIENCE_S", 20.0)
    timer = threading.Timer(0.3, holder.rollback)
    timer.start()
    kept = VerdictCache(path)
    timer.join()
    kept.put("x", "y", 0.1, Judgement("wrong", "differ"))
    assert kept.get("x", "y", 0.1) == Judgement("wrong", "differ")


@pytest.mark.parametrize("where", ["/proc/verdicts/cache.sqlite", "/proc/cache.sqlite", "file/cache.sqlite"])
def test_where_nothing_can_be_written_verdicts_stay_in_memory(tmp_path: Path, where: str) -> None:
    """The run of somebody else, or one on a medium that is read only, can be audited."""
    (tmp_path / "file").write_text("no folder")
    kept = VerdictCache(tmp_path / where)
    kept.put("x", "y", 0.1, Judgement("wrong", "differ"))
    assert kept.get("x", "y", 0.1) == Judgement("wrong", "differ")
    kept.close()


def test_a_full_disk_costs_the_cache_and_not_the_verdict(tmp_path: Path) -> None:
    kept = VerdictCache(tmp_path / "verdicts.sqlite")
    kept.put("a", "b", 0.1, Judgement("wrong", "differ"))
    kept._connection.execute("PRAGMA max_page_count = 1")  # SQLite then says that the disk is full
    with pytest.raises(sqlite3.OperationalError, match="full"), kept._connection:
        kept._connection.execute("INSERT INTO verdicts VALUES ('k', 'wrong', ?)", ("long" * 10_000,))
    for number in range(50):
        kept.put("x" * 5000, str(number), 0.1, Judgement("wrong", "a reason of some length " * 200))
    assert kept.get("x" * 5000, "49", 0.1) is None
    assert kept.get("a", "b", 0.1) == Judgement("wrong", "differ")
    kept.close()
    assert VerdictCache(tmp_path / "verdicts.sqlite").get("a", "b", 0.1) == Judgement("wrong", "differ")
