"""Lists of pairs and questions, page by page: keys come from the index, a text search reads the shards.

A list is ordered by `n`. A page is addressed by the key it starts after, never by counting rows, so that every page costs the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mixpo.pairs.statistics import Balance
from mixpo.records import check_shard
from mixpo.types import Origin, Outcome, content_id
from mixpo.viewer.index import RunIndex

ROWS = 25
"""Rows of a page."""
SEARCH_SECONDS = 0.5
"""A search returns after this time with what it has; the next request continues it."""
SEARCHED = 16
"""Shard groups that a search reads with one query, between two checks of the time."""
LONGEST_SEARCH = 200

Table = Literal["pair", "question"]

ORIGINS: tuple[str, ...] = get_args(Origin)
OUTCOMES: tuple[str, ...] = (*get_args(Outcome), "unjudged")
BALANCES: tuple[str, ...] = (*get_args(Balance), "undecided", "open", "unjudged")
"""How a question can be answered: its balance, some undecided verdict, no answer key, not verified yet."""

_SEARCH = {
    "pair": """
SELECT f.n | f.place FROM (
    SELECT (b.number::BIGINT << 40) | (s.file_row_number << 16) AS n, q.text, unnest(s.pairs) AS p,
           generate_subscripts(s.pairs, 1) - 1 AS place
    FROM read_parquet($made, filename = true, file_row_number = true) s JOIN batch b ON s.filename = b.made
    JOIN (SELECT filename, file_row_number AS row, text FROM read_parquet($files, filename = true, file_row_number = true)) q
    ON q.filename = b.file AND q.row = s.file_row_number
) f WHERE contains(lower(f.text), $text) OR contains(lower(f.p.chosen), $text) OR contains(lower(f.p.rejected), $text) ORDER BY 1""",
    "question": """
SELECT (b.number::BIGINT << 40) | (q.file_row_number << 16) FROM read_parquet($files, filename = true, file_row_number = true) q
JOIN batch b ON q.filename = b.file
WHERE contains(lower(q.text), $text) OR contains(lower(coalesce(q.answer, '')), $text) ORDER BY 1""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Filter of a list; "" and None do not restrict it. Lengths are of the longer side, in tokens. dropped: a filter reason."""

    table: Table
    round: int = 1
    origin: str = ""
    outcome: str = ""
    dropped: str = ""
    domain: str = ""
    shortest: int | None = None
    longest: int | None = None
    text: str = ""

    @classmethod
    def read(cls, table: Table, asked: Mapping[str, str]) -> ListFilter:
        """The filter in a query string; invalid values are ignored."""
        outcomes = OUTCOMES if table == "pair" else BALANCES
        return cls(
            table=table,
            round=whole_number(asked.get("round")) or 1,
            origin=origin if (origin := asked.get("origin", "")) in ORIGINS else "",
            outcome=outcome if (outcome := asked.get("outcome", "")) in outcomes else "",
            dropped=asked.get("dropped", "") if table == "question" else "",
            domain=asked.get("domain", ""),
            shortest=whole_number(asked.get("shortest")),
            longest=whole_number(asked.get("longest")),
            text=" ".join(asked.get("text", "").split())[:LONGEST_SEARCH],
        )

    def query(self) -> dict[str, str]:
        """The filter as a query string has it."""
        names = ("origin", "outcome", "dropped", "domain", "shortest", "longest", "text")
        values = {name: str(value) for name in names if (value := getattr(self, name)) not in ("", None)}
        return values if self.round == 1 else {"round": str(self.round), **values}

    def conditions(self) -> tuple[list[str], list[object]]:
        """SQL conditions on the table, with their values, for all but the text."""
        if self.table == "question":
            asked = self._answered()
            if self.dropped:
                asked.append(("n IN (SELECT n FROM dropped WHERE round = ? AND reason = ?)", [self.round, self.dropped]))
            if self.domain:
                asked.append(("domain = ?", [self.domain]))
            return [condition for condition, _ in asked], [value for _, values in asked for value in values]
        wanted: list[tuple[str, object]] = [
            ("round = ?", self.round),
            ("origin = ?", self.origin),
            ("outcome = ?", self.outcome),
            ("domain = ?", self.domain),
            ("greatest(chosen, rejected) >= ?", self.shortest),
            ("greatest(chosen, rejected) <= ?", self.longest),
        ]
        used = [(condition, value) for condition, value in wanted if value not in ("", None)]
        return [condition for condition, _ in used], [value for _, value in used]

    def _answered(self) -> list[tuple[str, list[object]]]:
        """The table of verdicts is joined only where a filter needs it: it would cost more than the rest of a page."""
        judged = "(SELECT n FROM judged WHERE round = ?"
        if not self.outcome:
            return []
        if self.outcome == "open":
            return [("open", [])]
        if self.outcome == "unjudged":
            return [("NOT open", []), (f"n NOT IN {judged})", [self.round])]
        if self.outcome == "undecided":
            return [(f"n IN {judged} AND undecided > 0)", [self.round])]
        named = "(correct, correct + wrong + malformed) IN (SELECT correct, decided FROM scratch.balance WHERE name = ?)"
        return [(f"n IN {judged} AND outcomes != '' AND {named})", [self.round, self.outcome])]


def whole_number(text: str | None) -> int | None:
    """A number of at most nine digits in a query string; None for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """Rows of a list with where they stand. searched: share of the run that a text search has seen so far (1 without one).

    first: rows before the page. before / after: the `n` for the previous and next page, None where there is none (before may be -1).
    """

    rows: Sequence[Mapping[str, Any]]
    total: int
    first: int
    before: int | None
    after: int | None
    searched: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The position of a row in a list: its number from 1 (0 where the filter excludes it), and the ids before and after it.

    page: the `n` after which the page that shows it starts, None for the first page.
    """

    number: int
    total: int
    before: str | None
    after: str | None
    page: int | None


class Lists:
    """Lists over an index."""

    def __init__(self, index: RunIndex) -> None:
        self.index = index
        self._searches: dict[str, int] = {}
        self._edition = index.edition
        self._lock = threading.Lock()

    def page(self, wanted: ListFilter, after: int = -1) -> ListPage:
        """The rows that follow `after`."""
        searched = self._search(wanted, after)
        base, values = self._base(wanted)
        picked = f"(SELECT * {base} AND n > ? ORDER BY n LIMIT {ROWS + 1}) t"
        if wanted.table == "question":
            judged = "(SELECT * FROM judged WHERE round = ?) j"
            query = f"SELECT t.*, j.outcomes, j.correct FROM {picked} LEFT JOIN {judged} ON j.n = t.n ORDER BY t.n"
            rows = self._dicts(query, *values, after, wanted.round)
        else:
            query = (
                f"SELECT t.*, q.text, q.id AS question, q.images FROM {picked} JOIN question q ON q.n = t.n - (t.n & 65535) ORDER BY t.n"
            )
            rows = self._dicts(query, *values, after)
        ((total, first),) = self.index.rows(f"SELECT count(*), count(*) FILTER (n <= ?) {base}", after, *values)
        return ListPage(
            rows=rows[:ROWS],
            total=total,
            first=first,
            before=self._before(wanted, after) if after >= 0 else None,
            after=rows[ROWS - 1]["n"] if len(rows) > ROWS else None,
            searched=searched,
        )

    def _before(self, wanted: ListFilter, after: int) -> int:
        """The `n` after which the previous page starts; -1 for the first page."""
        base, values = self._base(wanted)
        rows = self.index.rows(f"SELECT n {base} AND n <= ? ORDER BY n DESC LIMIT {ROWS + 1}", *values, after)
        return rows[ROWS][0] if len(rows) > ROWS else -1

    def neighbours(self, wanted: ListFilter, n: int) -> Neighbours:
        """The neighbours of row `n`."""
        self._search(wanted, n)
        base, values = self._base(wanted)
        counted = f"SELECT count(*), count(*) FILTER (n <= ?), count(*) FILTER (n = ?) {base}"
        ((total, number, there),) = self.index.rows(counted, n, n, *values)
        earlier = f"SELECT n {base} AND n < ? ORDER BY n DESC LIMIT 1 OFFSET {(number - 1) % ROWS}"
        return Neighbours(
            number=number if there else 0,
            total=total,
            before=self.index.one(f"SELECT id {base} AND n < ? ORDER BY n DESC LIMIT 1", *values, n),
            after=self.index.one(f"SELECT id {base} AND n > ? ORDER BY n LIMIT 1", *values, n),
            page=self.index.one(earlier, *values, n) if there and number > ROWS else None,
        )

    def find(self, table: Table, id_: str, round_: int) -> int | None:
        """Where a pair (of this round) or a question is."""
        if table == "question":
            n: int | None = self.index.one("SELECT min(n) FROM question WHERE id = ?", id_)
        else:
            n = self.index.one("SELECT min(n) FROM pair WHERE id = ? AND round = ?", id_, round_)
        return n

    def dropped(self) -> list[str]:
        """The reasons for which something was filtered, in alphabetical order."""
        return [reason for (reason,) in self.index.rows("SELECT DISTINCT reason FROM dropped ORDER BY reason")]

    def domains(self, table: Table) -> list[tuple[str, int]]:
        """The domains with their number of rows, in alphabetical order."""
        return self.index.rows(f"SELECT domain, count(*) FROM {table} WHERE domain != '' GROUP BY domain ORDER BY domain")

    def _dicts(self, query: str, *values: object) -> list[dict[str, Any]]:
        names, rows = self.index.table(query, *values)
        return [dict(zip(names, row, strict=True)) for row in rows]

    # --- text --------------------------------------------------------------------------------------------------------------

    def _base(self, wanted: ListFilter) -> tuple[str, list[object]]:
        """FROM and WHERE of a list, with their values; further conditions may follow."""
        conditions, values = wanted.conditions()
        if wanted.text:
            conditions, values = [*conditions, "n IN (SELECT n FROM scratch.match WHERE search = ?)"], [*values, _name(wanted)]
        return f"FROM {wanted.table} WHERE {' AND '.join(['true', *conditions])}", values

    def _search(self, wanted: ListFilter, after: int) -> float:
        """Look for the text until a page past `after` is full or time is up; gives the share of the run that was seen."""
        if not wanted.text:
            return 1.0
        with self._lock:
            if self._edition != self.index.edition:
                self._searches.clear()
                self._edition = self.index.edition
            name, begun = _name(wanted), time.monotonic()
            blocks = [b for b in self.index.blocks(wanted.round) if wanted.table == "question" or "pair" in b.made]
            if name not in self._searches:
                # A search that the index has forgotten restarts.
                self.index.rows("DELETE FROM scratch.match WHERE search = ?", name)
            seen = self._searches.setdefault(name, 0)
            while seen < len(blocks) and not self._enough(name, after):
                self._read_blocks(wanted, name, blocks[seen : seen + SEARCHED])
                seen = min(seen + SEARCHED, len(blocks))
                self._searches[name] = seen
                if time.monotonic() - begun > SEARCH_SECONDS:
                    break
            return seen / len(blocks) if blocks else 1.0

    def _enough(self, name: str, after: int) -> bool:
        return bool(self.index.one("SELECT count(*) FROM scratch.match WHERE search = ? AND n > ?", name, after) > 40 * ROWS)

    def _read_blocks(self, wanted: ListFilter, name: str, blocks: Sequence[Any]) -> None:
        for block in blocks:
            check_shard(block.source)
            if wanted.table == "pair":
                check_shard(block.made["pair"])
        with self.index.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE batch (number INTEGER, file VARCHAR, made VARCHAR)")
            cursor.executemany(
                "INSERT INTO batch VALUES (?, ?, ?)", [(b.number, str(b.source), str(b.made.get("pair", ""))) for b in blocks]
            )
            values: dict[str, object] = {"files": [str(b.source) for b in blocks], "text": wanted.text.lower(), "search": name}
            if wanted.table == "pair":
                values["made"] = [str(b.made["pair"]) for b in blocks]
            cursor.execute(f"INSERT INTO scratch.match SELECT $search, * FROM ({_SEARCH[wanted.table]})", values)


def _name(wanted: ListFilter) -> str:
    """A search is known by its table, round and text; the other filters apply to its matches."""
    return content_id(wanted.table, wanted.round, wanted.text.lower())
