"""The figures of the index are those that the report counts record by record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from mixpo.pairs.statistics import Statistics
from mixpo.records import Judged, Paired, Sampled
from mixpo.run import Run
from mixpo.types import Question
from mixpo.viewer.statistics import statistics
from mixpo.viewer.views import Views


def counted(root: Path) -> dict[str, object]:
    """The same figures, one question after another."""
    run, made = Run(root), Statistics()
    kinds = (("source", Question), ("sample", Sampled), ("verify", Judged), ("pair", Paired), ("continue", Sampled))
    rows = (run.stage(kind if kind == "source" else f"round-1/{kind}").read_all(row) for kind, row in kinds)
    for of_question in zip(*rows, strict=True):
        made.add(*of_question)
    return made.as_dict()


def test_they_agree_with_the_report(own: Path, own_views: Views) -> None:
    stage = Run(own).stage("source")
    assert stage.manifest is not None
    for shard in stage.manifest.shards:
        rows = stage.read(shard, Question)
        stage.write(shard, Question, [replace(row, source="" if row.domain == "solve" else f"set of {row.domain}") for row in rows])
    own_views.index._stamp, own_views.index._looked = (), 0.0
    own_views.index.refresh()
    found, expected = statistics(own_views.index, 1), counted(own)
    assert len(found["sources"]) == 3
    assert found["sources"] == expected["sources"]
    for name in ("questions", "with_pairs", "pairs", "pairs_per_question", "origins", "all_right", "mixed", "all_wrong"):
        assert found[name] == expected[name], name
    for name in ("lengths", "length_ratio", "verdicts", "rejected"):
        whole = expected[name]
        assert isinstance(whole, dict)
        assert found[name] == {key: whole[key] for key in found[name]}, name


def test_the_page_has_them(client: TestClient) -> None:
    text = client.get("/statistics").text
    for words in ("Where the pairs come from", "Length of both sides", "Length ratio", "How hard the questions were", "by hand"):
        assert words in text
    assert "115</b> pairs" in text
    empty = client.get("/statistics?round=7").text
    assert "by hand" in empty
    assert "Length ratio" not in empty
