"""The audit finds verdicts that are planted wrong, and nothing where all checks agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_run
from small_run import open_small, plan_of

from mixpo.audit import audit
from mixpo.cli import main
from mixpo.errors import RunError
from mixpo.pipeline import run_stage
from mixpo.recipe import VerifyTable
from mixpo.records import Judged
from mixpo.types import AnswerKind, Question, Response, Verdict
from mixpo.verify.judgement import Judgement
from mixpo.verify.pool import FormulaPool
from mixpo.verify.second import contradiction, opinions


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    made = small_run.make(tmp_path, tiny_folder)
    for kinds in (["sample"], ["verify"]):
        run_stage(open_small(made, tmp_path / "run"), kinds)
    return made


def test_a_planted_verdict_is_found(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "run"
    context = open_small(recipe, run)
    assert audit(context, 5).disagree == 0
    plan = plan_of(context)
    stage, shard = context.run.stage("round-1/verify"), plan.shards("round-1/verify")[0]
    rows: list[Judged] = plan.rows("round-1/verify", 0)
    wrong = replace(rows[1].verdicts[2], outcome="wrong")
    rows[1] = replace(rows[1], verdicts=(*rows[1].verdicts[:2], wrong, rows[1].verdicts[3]))
    stage.write(shard, Judged, rows)
    found = audit(open_small(recipe, run), 5)
    assert (found.verdicts, found.disagree) == (32, 1)
    [row] = found.rows
    assert (row.question, row.index, row.outcome, row.second, row.gold) == (rows[1].question, 2, "wrong", "correct", "12")
    capsys.readouterr()
    assert main(["audit", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["index"] == 2
    assert main(["audit", str(run), "-n", "1"]) == 0
    assert "1 of " in capsys.readouterr().out


def test_verdicts_that_are_not_there(recipe: Path) -> None:
    with pytest.raises(RunError, match="round 2 has no finished verdicts"):
        audit(open_small(recipe, recipe.parent / "run"), 5, 2)


def asked(answer: str, kind: AnswerKind, **more: Any) -> Question:
    return Question(id="q", text="?", answer=answer, kind=kind, **more)


@pytest.mark.parametrize(
    ("question", "text", "extracted", "outcome", "rules", "against"),
    [
        (asked("7", "number"), "So 3 + 4.\nIt must be 7.", None, "malformed", {}, "its last line holds the right answer"),
        (asked("7", "number"), "It is 17", "17", "wrong", {}, None),
        (asked("7", "number"), "7 at first.\nNow 8", "8", "wrong", {}, None),
        (asked("B", "choice", choices=("5", "7")), "I say (B).", "A", "wrong", {}, "its last line holds the right answer"),
        (asked("B", "choice", choices=("5", "7")), "I say C.", "C", "wrong", {}, None),
        (asked("100", "number", domain="chart"), "103", "103", "correct", {"chart": "relaxed"}, "comparison by kind (numbers differ)"),
        (
            asked("100", "number", domain="chart"),
            "so 100.0",
            "100.0",
            "wrong",
            {"chart": "relaxed"},
            "comparison by kind (numbers agree)",
        ),
        (asked("red circle", "text"), "x", "a Red circle!", "wrong", {}, "comparison of words"),
        (asked("x", "text"), "x", "y", "undecided", {}, None),
    ],
)
def test_who_contradicts(
    question: Question, text: str, extracted: str | None, outcome: str, rules: dict[str, str], against: str | None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(FormulaPool, "compare", lambda *_args: Judgement("undecided", "not here"))
    verdict = Verdict(outcome=outcome, extracted=extracted)  # type: ignore[arg-type]
    table = VerifyTable.model_validate({"rules": rules})
    found = opinions(question, Response(question="q", index=0, text=text), verdict, table, FormulaPool())
    other = contradiction(verdict, found)
    assert (other and other.by) == against
