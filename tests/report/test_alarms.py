"""What a report warns of, figure by figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from mixpo.commands.compare import compare_evaluations
from mixpo.evaluate.sampled import score_samples
from mixpo.evaluate.score import score
from mixpo.records import Prediction, write_rows
from mixpo.report.benchmarks import CAUSES, alarms
from mixpo.report.build import _scores
from mixpo.run import Manifest, Run


def row(question: str, outcome: str = "correct", **more: object) -> Prediction:
    given = {"mode": "cot", "text": "x", "tokens": 3, "finish": "stop", "outcome": outcome, **more}
    return Prediction(question=question, **given)  # type: ignore[arg-type]


def never(question: str, **more: object) -> Prediction:
    return row(question, "undecided", finish="error", text="", tokens=0, reason="the server is away", **more)


def texts(mode: str, rows: list[Prediction]) -> list[tuple[str, str]]:
    """(cause, text) of each alarm."""
    return [(alarm["cause"], alarm["text"]) for alarm in alarms({"set": {"base": {mode: _scores(mode, rows, {}, {}, {})}}})]


def test_failed_answers_are_not_silent_zeros() -> None:
    assert texts("cot", [row("a"), row("b", "wrong"), never("c"), never("d")]) == [
        ("failed", "2 of 4 responses, counted as not correct; accuracy would be at most 75.0\N{NO-BREAK SPACE}% with them")
    ]
    assert texts("cot", [row("a"), row("b", "wrong")]) == []


def test_failed_samples_are_counted() -> None:
    rows = [
        row("a", mode="sampled", index=0),
        row("a", mode="sampled", index=1),
        never("b", mode="sampled"),
        never("b", mode="sampled", index=1),
    ]
    found = score_samples(rows)
    assert (found.n, found.samples, found.failed, found.excluded, found.accuracy) == (2, 4, 2, 0, 0.5)
    [(cause, text)] = texts("sampled", rows)
    assert cause == "failed"
    assert text.startswith("2 of 4 responses")
    assert "at most 100.0\N{NO-BREAK SPACE}%" in text


def test_a_judge_is_not_blamed_for_failed_answers() -> None:
    judged = {"judge": "grader #1"}
    unread = row("b", "undecided", unread=True, **judged)
    rows = [row("a", score=1.0, **judged), unread, never("c")]
    assert (score(rows).excluded, score(rows).failed, score(rows).accuracy) == (2, 1, 1.0)
    assert texts("cot", rows) == [("failed", "1 of 3 responses, not scored"), ("unread", "1 of 3 responses")]
    sampled = [row("a", mode="sampled", score=1.0, **judged), never("c", mode="sampled")]
    assert score_samples(sampled).excluded == 1
    assert texts("sampled", sampled) == [("failed", "1 of 2 responses, not scored")]


def test_every_cause_is_explained_and_they_come_in_order() -> None:
    rows = [row(f"{n}", finish="length", text="and so on " * 40, tokens=200) for n in range(3)] + [never("x")]
    found = [cause for cause, _ in texts("cot", rows)]
    assert found == ["truncated", "repetition", "failed"]
    assert set(found) < set(CAUSES)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_comparison_says_which_side_lacks_answers(tmp_path: Path, missing: int) -> None:
    for name, rows in (("a", [row("x"), row("y", "wrong")]), ("b", [row("x"), never("y") if missing else row("y")])):
        stage = Run(tmp_path / name).stage("evaluate/set/base/cot")
        write_rows(stage.path("00000-x"), Prediction, rows)
        stage.save_manifest(Manifest(stage=stage.name, settings={"model": name}, inputs=[], shards=["00000-x"], finished=True))
    [found] = compare_evaluations(tmp_path / "a", tmp_path / "b")
    said = "1 of 2 answers of b/base never came and counts as not correct; `mixpo retry` retries them"
    assert found["notes"] == [said] * missing
    assert found["b"]["failed"] == asdict(score([row("x"), never("y")]))["failed"] * missing


def test_with_a_judge_a_comparison_leaves_them_out(tmp_path: Path) -> None:
    marks = [row("x", score=1.0, judge="grader #1"), row("y", score=0.0, judge="grader #1")]
    for name, rows in (("a", marks), ("b", [marks[0], never("y")])):
        stage = Run(tmp_path / name).stage("evaluate/set/base/cot")
        write_rows(stage.path("00000-x"), Prediction, rows)
        stage.save_manifest(Manifest(stage=stage.name, settings={"model": name}, inputs=[], shards=["00000-x"], finished=True))
    [found] = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert found["n"] == 1
    assert found["notes"] == ["1 of 2 answers of b/base never came and counts nowhere; `mixpo retry` retries them"]


def test_rows_that_a_predictions_file_lacks_are_not_to_be_retried() -> None:
    scores = {"failed": 1, "cut": 0, "loops": 0, "n": 4, "accuracy": 0.5}
    sets = {"test": {"theirs": {"cot": scores}, "mpo": {"cot": scores}}}
    found = alarms(sets, {("test", "theirs", "cot")})
    assert [(alarm["model"], alarm["cause"]) for alarm in found] == [("mpo", "failed"), ("theirs", "absent")]
    assert "retry" not in CAUSES["absent"]
