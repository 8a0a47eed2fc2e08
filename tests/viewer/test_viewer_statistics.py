"""The figures of the index are those that the report counts record by record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mixpo.pairs.statistics import Statistics, balance_of
from mixpo.records import Judged, Paired, Sampled
from mixpo.run import Run
from mixpo.stages.verify import count_judged
from mixpo.types import Outcome, Question, Verdict
from mixpo.viewer.listing import ListFilter
from mixpo.viewer.statistics import statistics
from mixpo.viewer.views import Views


def counted(root: Path) -> dict[str, Any]:
    """The same figures, one question after another."""
    run, made = Run(root), Statistics()
    kinds = (("source", Question), ("sample", Sampled), ("verify", Judged), ("pair", Paired), ("continue", Sampled))
    rows = (run.stage(kind if kind == "source" else f"round-1/{kind}").read_all(row) for kind, row in kinds)
    for of_question in zip(*rows, strict=True):
        made.add(*of_question)
    return made.as_dict()


def expected_of(root: Path) -> dict[str, Any]:
    """What the report says, without what the index does not hold."""
    whole = counted(root)
    rejected = whole.pop("rejected")
    for name in ("failed", "answers", "shared_prefix", "drops", "tokens_per_pair"):
        del whole[name]
    return {**whole, "rejected": {name: rejected[name] for name in ("longer", "longer_share")}}


def test_they_agree_with_the_report(own: Path, own_views: Views) -> None:
    """Two sources, one of them without a name; questions with undecided verdicts; and a pair of text alone."""
    run = Run(own)
    source, verify, pair = run.stage("source"), run.stage("round-1/verify"), run.stage("round-1/pair")
    assert source.manifest is not None
    for shard in source.manifest.shards:
        asked = source.read(shard, Question)
        source.write(shard, Question, [replace(row, source="" if row.domain == "solve" else f"set of {row.domain}") for row in asked])
    assert verify.manifest is not None
    assert pair.manifest is not None
    for shard in verify.manifest.shards[:2]:
        judged = verify.read(shard, Judged)
        verify.write(shard, Judged, [undecided(row, number % 5) for number, row in enumerate(judged)])
    rows = pair.read(pair.manifest.shards[0], Paired)
    at = next(number for number, row in enumerate(rows) if row.pairs)
    first, *others = rows[at].pairs
    rows[at] = replace(rows[at], pairs=(replace(first, chosen_ids=(), rejected_ids=()), *others))
    pair.write(pair.manifest.shards[0], Paired, rows)
    own_views.index._stamp, own_views.index._refreshed = (), 0.0
    own_views.index.refresh()
    found, expected = statistics(own_views.index, 1), expected_of(own)
    assert found["without_tokens"] == 1
    assert found["all_undecided"] > 0
    assert found["all_wrong"] > 0
    ratio, ratio_expected = found.pop("length_ratio"), expected.pop("length_ratio")
    assert ratio == {**ratio_expected, "mean": pytest.approx(ratio_expected["mean"])}
    assert found == expected
    for name in ("all_right", "mixed", "all_wrong", "all_undecided"):
        listed = own_views.lists.page(ListFilter.read("question", {"outcome": name})).total
        assert listed == found[name], name


def undecided(judged: Judged, number: int) -> Judged:
    """The first verdicts undecided: none, some or all of them."""
    verdicts = (replace(verdict, outcome="undecided") if verdict.index < number else verdict for verdict in judged.verdicts)
    return replace(judged, verdicts=tuple(verdicts))


def test_report_viewer_and_status_count_all_wrong_alike() -> None:
    """One wrong answer beside an undecided one: of what was decided, everything is wrong."""
    sets: tuple[tuple[Outcome, ...], ...] = (
        ("wrong", "undecided"),
        ("wrong", "malformed"),
        ("correct", "undecided"),
        ("undecided",) * 2,
        (),
    )
    rows = [
        Judged(question=str(n), verdicts=tuple(Verdict(question=str(n), index=i, outcome=o) for i, o in enumerate(outcomes)))
        for n, outcomes in enumerate(sets)
    ]
    assert [balance_of(row) for row in rows] == ["all_wrong", "all_wrong", "all_right", "all_undecided", None]
    counts = count_judged(rows)
    assert (counts["all_wrong"], counts["all_right"], counts["judged"]) == (2, 1, 4)


def test_the_page_has_them(client: TestClient) -> None:
    text = client.get("/statistics").text
    for words in ("Origin of the pairs", "Length of both sides", "Length ratio", "Difficulty of the questions", "by hand"):
        assert words in text
    assert "115</b> pairs" in text
    empty = client.get("/statistics?round=7").text
    assert "by hand" in empty
    assert "Length ratio" not in empty
