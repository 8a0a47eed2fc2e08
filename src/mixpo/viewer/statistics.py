"""The figures of all pairs of a round, from the index alone, under the names of `mixpo.pairs.statistics`: the report's charts draw them.

Lengths are in tokens, in characters where a pair has no tokens.
"""

from __future__ import annotations

from typing import Any, get_args

from mixpo.pairs.histograms import BINS, LENGTH_WIDTH, RATIO_EDGES, share
from mixpo.types import Origin
from mixpo.viewer.index import Index
from mixpo.viewer.listing import BALANCES

ORIGINS: tuple[str, ...] = get_args(Origin)

_SOURCES = f"""
WITH asked AS (
    SELECT q.source, count(*) AS questions, sum(j.correct) AS correct, sum(j.correct + j.wrong + j.malformed) AS decided
    FROM question q LEFT JOIN (SELECT * FROM judged WHERE round = $round) j ON j.n = q.n GROUP BY q.source
), paired AS (
    SELECT q.source, count(DISTINCT q.n) AS with_pairs, count(*) AS pairs,
           {", ".join(f"count(*) FILTER (p.origin = '{name}') AS {name}" for name in ORIGINS)},
           avg(p.chosen) AS chosen_mean, avg(p.rejected) AS rejected_mean
    FROM pair p JOIN question q ON q.n = p.n - (p.n & 65535) WHERE p.round = $round GROUP BY q.source
)
SELECT a.source, questions, coalesce(with_pairs, 0), coalesce(correct, 0), coalesce(decided, 0), coalesce(pairs, 0),
       {", ".join(f"coalesce({name}, 0)" for name in ORIGINS)}, chosen_mean, rejected_mean
FROM asked a LEFT JOIN paired p USING (source) ORDER BY 1
"""
_NAMES = ("questions", "with_pairs", "correct", "decided", "pairs", *ORIGINS, "chosen_mean", "rejected_mean")


def statistics(index: Index, round_: int) -> dict[str, Any]:
    """questions, pairs, with_pairs, pairs_per_question, origins, verdicts, the balance of the questions, lengths, length_ratio, sources."""
    sources = {name: dict(zip(_NAMES, row, strict=True)) for name, *row in index.rows(_SOURCES.replace("$round", str(int(round_))))}
    for row in sources.values():
        row["accuracy"] = share(row["correct"], row["decided"])
    total = {name: sum(row[name] for row in sources.values()) for name in ("questions", "with_pairs", "pairs", *ORIGINS)}
    return {
        **{name: total[name] for name in ("questions", "with_pairs", "pairs")},
        "pairs_per_question": share(total["pairs"], total["with_pairs"]),
        "origins": {name: total[name] for name in ORIGINS},
        **_judged(index, round_),
        **_lengths(index, round_),
        "sources": sources,
    }


def _judged(index: Index, round_: int) -> dict[str, Any]:
    names, balances = ("correct", "wrong", "malformed", "undecided"), ("all_right", "mixed", "all_wrong")
    columns = [*(f"coalesce(sum({name}), 0)" for name in names), *(f"count(*) FILTER ({BALANCES[name]})" for name in balances)]
    (row,) = index.rows(f"SELECT {', '.join(columns)} FROM judged WHERE round = ? AND outcomes != ''", round_)
    verdicts = {name: int(value) for name, value in zip(names, row, strict=False)}
    return {"verdicts": verdicts, **dict(zip(balances, row[len(names) :], strict=True))}


def _lengths(index: Index, round_: int) -> dict[str, Any]:
    """Histograms over the bins of the report."""
    where = "FROM pair WHERE round = ?"
    ((longest, longer),) = index.rows(
        f"SELECT coalesce(max(greatest(chosen, rejected)), 0), avg((rejected > chosen)::INTEGER) {where}", round_
    )
    width = LENGTH_WIDTH
    while longest >= width * BINS:
        width *= 2
    last = len(RATIO_EDGES) - 2
    bins = {
        **{side: (f"{side} // {width}", BINS) for side in ("chosen", "rejected")},
        # Whole numbers, so that a ratio of just 0.3 falls where the edges say.
        "ratio": (f"least({last}, 10 * chosen // rejected)", last + 1),
    }
    found = {
        name: _counts(index.rows(f"SELECT {bin_}, count(*) {where} AND rejected > 0 GROUP BY 1", round_), size)
        for name, (bin_, size) in bins.items()
    }
    return {
        "rejected": {"longer_share": longer},
        "lengths": {"edges": [width * number for number in range(BINS + 1)], "chosen": found["chosen"], "rejected": found["rejected"]},
        "length_ratio": {"edges": list(RATIO_EDGES), "counts": found["ratio"]},
    }


def _counts(rows: list[tuple[Any, ...]], size: int) -> list[int]:
    known = dict(rows)
    return [known.get(number, 0) for number in range(size)]
