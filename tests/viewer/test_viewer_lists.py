"""The index and its lists against a plain walk over the records; what happens when shards come, change, and go."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import viewer_run
from spying import spy

from mixpo.errors import RecordError
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.records import Judged, Paired
from mixpo.run import Run
from mixpo.types import Pair, Question, Verdict
from mixpo.viewer.index import RunIndex, place, placed
from mixpo.viewer.listing import ROWS, ListFilter, ListPage, Lists
from mixpo.viewer.views import Views

Row = tuple[Question, Pair, dict[int, Verdict]]


def walk(root: Path) -> list[Row]:
    """Every pair in order with its question and verdicts, read without the index."""
    run = Run(root)
    rows = zip(
        *(run.stage(name).read_all(kind) for name, kind in (("source", Question), ("round-1/verify", Judged), ("round-1/pair", Paired))),
        strict=True,
    )
    return [(q, pair, {v.index: v for v in judged.verdicts}) for q, judged, paired in rows for pair in paired.pairs]


def outcome(row: Row) -> str:
    return "unjudged" if row[1].origin == "dropout_ntp" else row[2][row[1].rejected_index].outcome


def holds(row: Row, text: str) -> bool:
    return any(text in part.lower() for part in (row[0].text, row[1].chosen, row[1].rejected))


def everything(lists: Lists, wanted: ListFilter) -> tuple[list[str], list[ListPage]]:
    """The ids of all pages, one after the other."""
    pages, after = [], -1
    while True:
        page = lists.page(wanted, after)
        pages.append(page)
        if page.after is None:
            return [row["id"] for page in pages for row in page.rows], pages
        after = page.after


def several(row: Row) -> bool:
    return holds(row, "puzzle") and (row[0].domain, outcome(row)) == ("count", "wrong")


FILTERS: dict[str, tuple[dict[str, str], Callable[[Row], bool]]] = {
    "all": ({}, lambda row: True),
    "origin": ({"origin": "format"}, lambda row: row[1].origin == "format"),
    "domain": ({"domain": "read"}, lambda row: row[0].domain == "read"),
    "outcome": ({"outcome": "malformed"}, lambda row: outcome(row) == "malformed"),
    "unjudged": ({"outcome": "unjudged"}, lambda row: outcome(row) == "unjudged"),
    "length": ({"shortest": "14", "longest": "16"}, lambda row: 14 <= max(len(row[1].chosen_ids), len(row[1].rejected_ids)) <= 16),
    "text": ({"text": "LEFT"}, lambda row: holds(row, "left")),
    "chinese": ({"text": "红色的方块"}, lambda row: holds(row, "红色的方块")),
    "percent": ({"text": "100%_"}, lambda row: holds(row, "100%_")),
    "several": ({"text": "puzzle", "domain": "count", "outcome": "wrong"}, several),
    "unknown values": ({"origin": "x' OR 1=1", "outcome": "none", "shortest": "-1"}, lambda row: True),
    "injection": ({"domain": "read' OR '1'='1"}, lambda row: False),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_a_filtered_list_is_what_a_walk_finds(made: Path, views: Views, name: str) -> None:
    asked, keep = FILTERS[name]
    expected = [row[1].id for row in walk(made) if keep(row)]
    ids, pages = everything(views.lists, ListFilter.read("pair", asked))
    assert ids == expected
    assert {page.total for page in pages} == {len(expected)}
    assert [page.first for page in pages] == [ROWS * number for number in range(len(pages))]


def test_pages_lead_back(views: Views) -> None:
    wanted = ListFilter.read("pair", {})
    _, pages = everything(views.lists, wanted)
    assert len(pages) > 3
    assert pages[0].before is None
    for earlier, later in pairwise(pages):
        assert later.before is not None
        assert views.lists.page(wanted, later.before).rows == earlier.rows


def test_neighbours(made: Path, views: Views) -> None:
    wanted = ListFilter.read("pair", {"origin": "format"})
    ids = [row[1].id for row in walk(made) if row[1].origin == "format"]
    for number, id_ in enumerate(ids):
        n = views.lists.find("pair", id_, 1)
        assert n is not None
        beside = views.lists.neighbours(wanted, n)
        assert (beside.number, beside.total) == (number + 1, len(ids))
        assert beside.before == (ids[number - 1] if number else None)
        assert beside.after == (ids[number + 1] if number + 1 < len(ids) else None)
    outside = next(row[1].id for row in walk(made) if row[1].origin == "correctness")
    assert views.lists.neighbours(wanted, views.lists.find("pair", outside, 1) or 0).number == 0


def test_from_a_pair_back_to_its_page(made: Path, views: Views) -> None:
    wanted = ListFilter.read("pair", {})
    for at, row in enumerate(walk(made)):
        n = views.lists.find("pair", row[1].id, 1)
        assert n is not None
        after = views.lists.neighbours(wanted, n).page
        page = views.lists.page(wanted, -1 if after is None else after)
        assert (page.first, page.rows[at % ROWS]["id"]) == (at // ROWS * ROWS, row[1].id)


@pytest.mark.parametrize(
    ("balance", "count"), [("all_right", 1), ("all_wrong", 1), ("mixed", 57), ("open", 1), ("undecided", 0), ("unjudged", 0)]
)
def test_questions_by_their_answers(views: Views, balance: str, count: int) -> None:
    assert views.lists.page(ListFilter.read("question", {"outcome": balance})).total == count


def test_a_search_goes_on_where_its_time_ended(views: Views, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.viewer.listing.SEARCH_SECONDS", 0.0)
    monkeypatch.setattr("mixpo.viewer.listing.SEARCHED", 1)
    lists, wanted = Lists(views.index), ListFilter.read("pair", {"text": "guess from the colours"})
    expected = sum(holds(row, wanted.text) for row in walk(made))
    seen = [lists.page(wanted) for _ in range(6)]
    assert 0 < seen[0].searched < 1
    assert [page.total for page in seen] == sorted(page.total for page in seen)
    assert seen[-1].searched == 1
    assert seen[-1].total == expected > 0


def test_places_keep_order() -> None:
    numbers = [(0, 0, 0), (0, 0, 5), (0, 1, 0), (3, 63, 2), (46_874, 63, 800)]
    made = [place(*number) for number in numbers]
    assert made == sorted(made)
    assert [placed(n) for n in made] == numbers


# --- runs that are not whole, and that change ----------------------------------------------------------------------------


def pairs_of(root: Path) -> int:
    index = RunIndex(Run(root))
    try:
        found: int = index.one("SELECT count(*) FROM pair")
        return found
    finally:
        index.close()


def test_a_run_without_pairs(own: Path) -> None:
    (own / "round-1" / "pair" / "manifest.json").unlink()
    assert pairs_of(own) == 0


def test_half_a_run_shows_its_half(own: Path) -> None:
    whole = pairs_of(own)
    first, *_, last = sorted((own / "round-1" / "pair").glob("*.parquet"))
    last.unlink()
    assert 0 < pairs_of(own) < whole
    first.unlink()
    assert pairs_of(own) > 0


def test_what_changes_is_read_again_and_nothing_else(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.viewer.index.REFRESH_SECONDS", 0.0)
    progress = Silent()
    index = RunIndex(Run(own), progress)
    whole, stage = index.one("SELECT count(*) FROM pair"), Run(own).stage("round-1/pair")
    read: list[int] = []
    spy(monkeypatch, RunIndex, "_add", lambda _self, blocks, _keys: read.extend(b.number for b in blocks))
    index.refresh()
    assert read == []
    assert index.edition == 1
    manifest = stage.manifest
    assert manifest is not None
    rows = stage.read(manifest.shards[1], Paired)
    stage.write(manifest.shards[1], Paired, [Paired(question=row.question, pairs=row.pairs[:1]) for row in rows])
    index.refresh()
    assert read == [1]
    assert index.edition == 2
    assert index.one("SELECT count(*) FROM pair") == whole - sum(len(row.pairs) - 1 for row in rows if row.pairs)
    index.close()


def test_an_index_is_used_again_and_a_broken_one_is_made_anew(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = pairs_of(own)
    with monkeypatch.context() as patched:
        patched.setattr(RunIndex, "_add", lambda *_: pytest.fail("read again"))
        assert pairs_of(own) == count
    (own / ".view" / "index.duckdb").write_bytes(b"not a database" * 500)
    assert pairs_of(own) == count


def test_a_second_viewer_has_an_index_of_its_own(own: Path) -> None:
    blocked = own / ".view"
    blocked.write_text("a file where the folder should be")
    progress = Silent()
    index = RunIndex(Run(own), progress)
    assert index.one("SELECT count(*) FROM pair") > 0
    assert any("temporary folder" in line for line in progress.lines)
    index.close()


def test_pairs_of_other_questions_are_left_out_and_said(own: Path) -> None:
    """A source that was read again, and a pair stage that was not."""
    stage = Run(own).stage("source")
    manifest = stage.manifest
    assert manifest is not None
    rows = stage.read(manifest.shards[0], Question)
    stage.write(manifest.shards[0], Question, list(reversed(rows)))
    fresh = Views(open_run(own))
    try:
        assert fresh.common()["stale"] == [(1, 1)]
        assert fresh.pairs({})["page"].total < len(walk_ids(own))
    finally:
        fresh.index.close()


def walk_ids(root: Path) -> list[str]:
    return [pair.id for row in Run(root).stage("round-1/pair").read_all(Paired) for pair in row.pairs]


def test_a_torn_shard_is_named(own: Path) -> None:
    shard = sorted((own / "round-1" / "pair").glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(RecordError, match=shard.name):
        RunIndex(Run(own))


def test_a_generated_run_is_a_run(tmp_path: Path) -> None:
    import generated_run

    root = generated_run.write_run(tmp_path / "run", generated_run.questions_for(200))
    assert len(walk_ids(root)) >= 200
    assert json.loads((root / "command.json").read_text())["limit"] is None
    assert pairs_of(root) == len(walk_ids(root))
    assert {outcome(row) for row in walk(root)} == {"wrong", "malformed", "unjudged"}


def test_the_run_made_by_hand_has_what_the_tests_need(made: Path) -> None:
    assert {row[1].origin for row in walk(made)} == {"correctness", "format", "dropout_ntp"}
    assert any(viewer_run.ATTACK in row[1].chosen for row in walk(made))
