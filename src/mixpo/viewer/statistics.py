"""Statistics and filtered items of a run: DuckDB groups equal rows of the index, `mixpo.pairs.statistics` counts the groups."""

from __future__ import annotations

from typing import Any

from mixpo.pairs.statistics import Statistics
from mixpo.records import check_shard
from mixpo.report.build import PLACES, filtered_counts, skipped_rows
from mixpo.stages.job import RESPONSE_KINDS
from mixpo.stages.source import load_skipped
from mixpo.viewer.index import OUTCOME, RunIndex

_QUESTIONS = """
SELECT source, open, n IN (SELECT n - (n & 65535) FROM pair WHERE round = $round) AS paired, count(*)
FROM question GROUP BY ALL ORDER BY min(n)
"""
_VERDICTS = f"""
SELECT q.source, q.domain, {", ".join(f"j.{name}" for name in OUTCOME.values())}, count(*)
FROM judged j JOIN question q ON q.n = j.n WHERE j.round = $round AND NOT q.open GROUP BY ALL ORDER BY min(q.n)
"""
_ORIGINS = """
SELECT q.source, p.origin, count(*) FROM pair p JOIN question q ON q.n = p.n - (p.n & 65535)
WHERE p.round = $round GROUP BY ALL ORDER BY min(q.n)
"""
_LENGTHS = """
SELECT q.source, if(p.tokens, p.chosen, 0) AS chosen, if(p.tokens, p.rejected, 0) AS rejected, count(*)
FROM pair p JOIN question q ON q.n = p.n - (p.n & 65535) WHERE p.round = $round GROUP BY ALL
"""


def statistics(index: RunIndex, round_: int) -> dict[str, Any]:
    """What `Statistics.as_dict` tells of a round, without what the index does not hold: answers, drops and shared prefixes."""
    counted = Statistics()

    def groups(query: str) -> list[tuple[Any, ...]]:
        return index.rows(query.replace("$round", str(int(round_))))

    for source, is_open, paired, number in groups(_QUESTIONS):
        counted.count_questions(source, with_answer=not is_open, with_pairs=paired, number=number)
    for source, domain, *counts, number in groups(_VERDICTS):
        outcomes: dict[str, int] = dict(zip(OUTCOME.values(), counts, strict=True))
        counted.count_verdicts(source, domain, outcomes, number)
    for source, origin, number in groups(_ORIGINS):
        counted.count_pairs(source, origin, number)
    for source, chosen, rejected, number in groups(_LENGTHS):
        counted.count_lengths(source, chosen, rejected, number)
    result = counted.as_dict()
    for name in ("failed", "answers", "shared_prefix", "drops", "tokens_per_pair"):
        del result[name]
    result["rejected"] = {name: result["rejected"][name] for name in ("longer", "longer_share")}
    return result


def filtered(index: RunIndex) -> list[dict[str, Any]]:
    """What each stage filtered and why, as in the report: rows of sources, questions that failed, and counts by reason."""
    stages = index.layout.stages()
    skipped = (row for name in stages if name.rpartition("/")[2] == "source" for row in load_skipped(index.run.stage(name)))
    failed = (row for name, manifest in stages.items() if manifest.counts.get("failed") for row in _failed(index, name))
    return [*skipped_rows(skipped), *failed, *filtered_counts(stages)]


def _failed(index: RunIndex, stage: str) -> list[dict[str, Any]]:
    """The questions that failed in a stage, those of one reason together."""
    if not set(stage.split("/")) & set(RESPONSE_KINDS):
        return []
    files = [path for path in index.layout.shards(stage) if path is not None]
    for path in files:
        check_shard(path)
    query = f"SELECT error, count(*), min(question, {PLACES}) FROM read_parquet(?) WHERE error != '' GROUP BY error ORDER BY 2 DESC, 1"
    return [
        {"stage": stage, "where": ", ".join(places), "reason": reason, "count": count, "unit": "questions"}
        for reason, count, places in index.rows(query, [str(path) for path in files])
    ]
