"""Human labels on disk, the samples, and precision and recall against numbers counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixpo.errors import RecordError
from mixpo.evaluate.statistics import wilson
from mixpo.human_labels import LABELS, HumanLabel, append_label, read_labels
from mixpo.types import Outcome, content_id
from mixpo.viewer.audit import AuditItem, agreement
from mixpo.viewer.views import Views


def label(question: str = "q", outcome: Outcome = "correct", index: int = 0, round_: int = 1, by: str = "ann") -> HumanLabel:
    return HumanLabel(question=question, round=round_, index=index, outcome=outcome, by=by, time="2026-01-01T00:00:00Z")


# --- the file --------------------------------------------------------------------------------------------------------------


def test_the_last_label_counts(tmp_path: Path) -> None:
    assert read_labels(tmp_path) == {}
    for one in (label(), label(outcome="wrong"), label(index=1), label(round_=2)):
        append_label(tmp_path, one)
    found = read_labels(tmp_path)
    assert len((tmp_path / LABELS).read_text().splitlines()) == 4
    assert {key: m.outcome for key, m in found.items()} == {(1, "q", 0): "wrong", (1, "q", 1): "correct", (2, "q", 0): "correct"}


def test_a_torn_line_harms_no_other(tmp_path: Path) -> None:
    append_label(tmp_path, label("a"))
    with (tmp_path / LABELS).open("a") as file:
        file.write('{"question": "b", "rou')
    assert [question for _, question, _ in read_labels(tmp_path)] == ["a"]
    append_label(tmp_path, label("c"))
    assert [question for _, question, _ in read_labels(tmp_path)] == ["a", "c"]
    assert len((tmp_path / LABELS).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "row",
    ["{", '{"question": "a"}', "[1]", "7", json.dumps({"question": "a", "round": 1, "index": 0, "outcome": "maybe", "by": "", "time": ""})],
)
def test_a_line_that_is_not_a_label_is_named(tmp_path: Path, row: str) -> None:
    append_label(tmp_path, label())
    with (tmp_path / LABELS).open("a") as file:
        file.write(row + "\n")
    with pytest.raises(RecordError, match=r"labels\.jsonl:2: (not valid JSON|a label has)"):
        read_labels(tmp_path)


MANY = """
import sys
from pathlib import Path
from mixpo.human_labels import HumanLabel, append_label

for index in range(40):
    append_label(Path(sys.argv[1]), HumanLabel(question="q", round=1, index=index, outcome="correct", by=300 * sys.argv[2], time=""))
"""


def test_two_people_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    people = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path), by], env=environment) for by in "12"]
    assert [person.wait() for person in people] == [0, 0]
    lines = (tmp_path / LABELS).read_text().splitlines()
    assert len(lines) == 80
    assert {json.loads(line)["by"][0] for line in lines} == {"1", "2"}


# --- figures ---------------------------------------------------------------------------------------------------------------


def item(outcome: Outcome) -> AuditItem:
    return AuditItem(n=0, question="q", index=0, outcome=outcome, text="")


def test_precision_and_recall_by_hand() -> None:
    counted: dict[tuple[Outcome, Outcome], int] = {
        ("correct", "correct"): 30, ("correct", "wrong"): 2, ("correct", "malformed"): 1, ("wrong", "correct"): 5,
        ("malformed", "correct"): 3,        ("wrong", "wrong"): 20, ("correct", "undecided"): 4, ("undecided", "correct"): 6,
        ("undecided", "undecided"): 1,
    }  # fmt: skip
    found = agreement((item(verdict), label(outcome=said)) for (verdict, said), count in counted.items() for _ in range(count))
    assert found.labelled == 72
    assert (found.precision.hits, found.precision.n) == (30, 33)
    assert (found.recall.hits, found.recall.n) == (30, 38)
    assert (found.agreed.hits, found.agreed.n) == (51, 72)
    assert found.precision.interval == wilson(30, 33)
    assert found.recall.value == pytest.approx(30 / 38)
    nothing = agreement([])
    assert (nothing.precision.n, nothing.precision.interval) == (0, (0.0, 1.0))


# --- samples ---------------------------------------------------------------------------------------------------------------


def test_the_random_sample_is_always_the_same_and_takes_judged_answers(views: Views, own_views: Views) -> None:
    items = views.audits.sample("random", 1)
    assert [(i.question, i.index) for i in items] == [(i.question, i.index) for i in own_views.audits.sample("random", 1)]
    assert len(items) == len({i.question for i in items}) == 59
    assert content_id("viewer", 5) not in {i.question for i in items}
    assert len({i.index for i in items}) == 4
    assert [i.question for i in items] != sorted(i.question for i in items)
    assert views.audits.sample("random", 2) == []


def test_a_wrong_verdict_is_suspicious(views: Views) -> None:
    """Question 6 is judged wrong though it is right; question 8 has the truth in half of its answers and all wrong verdicts."""
    found = {(i.question, i.index): i.why for i in views.audits.sample("suspicious", 1)}
    assert "called wrong" in found[content_id("viewer", 6), 1]
    assert {index for question, index in found if question == content_id("viewer", 8)} >= {0, 2}
    assert "called correct" in found[content_id("viewer", 7), 1]
    assert not any(question == content_id("viewer", 9) for question, _ in found)


def test_labels_of_the_random_sample_are_counted(own: Path, own_views: Views) -> None:
    items = own_views.audits.sample("random", 1)
    right = [i for i in items if i.outcome == "correct"][:4]
    missed = [i for i in items if i.outcome == "wrong"][:1]
    for number, one in enumerate([*right, *missed]):
        append_label(own, label(one.question, "wrong" if number == 0 else "correct", one.index))
    values = own_views.audit({})
    assert values["done"] == 5
    assert (values["random"].precision.hits, values["random"].precision.n) == (3, 4)
    assert (values["random"].recall.hits, values["random"].recall.n) == (3, 4)
    assert values["open"] == next(n for n, i in enumerate(items) if i not in [*right, *missed])
