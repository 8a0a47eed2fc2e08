"""Checks of your own: what they return, what happens when they fail, and pairs from scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_run
from failures import fails

import mixpo
from mixpo.cli import main
from mixpo.errors import RecipeError, TrainError
from mixpo.pairs.correctness import correctness_pairs
from mixpo.recipe import PairsTable, VerifyTable
from mixpo.types import Question, Response, Verdict
from mixpo.verify import Verifier
from mixpo.verify.custom import code_digest

OWN = """
import os, time
import numpy as np

RETURNED = {"list": [1], "nothing": None, "text": "right", "two": 2.0, "nan": float("nan"), "percent": 85}
NUMPY = {"true": np.True_, "single": np.float32(0.75), "array": np.array([1, 0])}
not_callable = 1

def one(answer): ...
def by_name(*, answer, response, ground_truth, question): ...
async def later(answer, response, ground_truth, question): ...
def several(answer, response, ground_truth, question): yield True

def check(answer, response, ground_truth, question):
    print("noise")
    what = response.split(": ")[-1]
    if what == "raise":
        raise KeyError(what)
    if what == "hang":
        time.sleep(60)
    if what == "hang once" and not os.path.exists(__file__ + ".hung"):
        open(__file__ + ".hung", "w").close()
        time.sleep(60)
    if what == "die":
        os._exit(1)
    if what == "leave":
        raise SystemExit
    if what in RETURNED:
        return RETURNED[what]
    if what in NUMPY:
        return NUMPY[what]
    if what in ("undecided", "malformed"):
        return what
    if what.startswith("0."):
        return float(what)
    return answer == ground_truth and question["domain"] == "sums" and question["images"] == []
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def verifier(folder: Path) -> Iterator[Verifier]:
    with Verifier(VerifyTable(custom="own:check", custom_timeout_s=2, workers=1), recipe_folder=folder) as verifier:
        yield verifier.start()


def question(**other: str) -> Question:
    return Question(id="q", text="1 + 1?", answer="2", kind="number", **{"domain": "sums", **other})  # type: ignore[arg-type]


def verdicts(verifier: Verifier, *texts: str) -> list[Verdict]:
    responses = [Response(question="q", index=index, text=text) for index, text in enumerate(texts)]
    return [*verifier.verify_all(question(), responses)]


def test_what_a_check_may_return(verifier: Verifier) -> None:
    made = verdicts(verifier, "Final answer: 2", "Final answer: 3", "x: undecided", "x: malformed", "x: 0.75", "x: 0.25")
    assert [verdict.outcome for verdict in made] == ["correct", "wrong", "undecided", "malformed", "correct", "wrong"]
    assert [verdict.score for verdict in made] == [None, None, None, None, 0.75, 0.25]
    assert made[0].extracted == "2"


def test_scalars_of_numpy_count_as_those_of_python(verifier: Verifier) -> None:
    made = verdicts(verifier, "x: true", "x: single", "x: array", "Final answer: 3")
    assert [verdict.outcome for verdict in made] == ["correct", "correct", "undecided", "wrong"]
    assert [verdict.score for verdict in made] == [None, 0.75, None, None]
    assert "returned ndarray" in made[2].reason


def test_a_time_out_is_tried_once_more(verifier: Verifier) -> None:
    assert [verdict.outcome for verdict in verdicts(verifier, "2: hang once")] == ["wrong"]


def test_a_failure_makes_one_verdict_undecided(verifier: Verifier) -> None:
    made = verdicts(verifier, "x: raise", "x: leave", "x: hang", "x: die", "Final answer: 2")
    assert [verdict.outcome for verdict in made] == ["undecided"] * 4 + ["correct"]
    line = OWN.split("\n").index("        raise KeyError(what)") + 1
    assert made[0].reason == f"custom check raised KeyError in own.py, line {line}"
    assert made[1].reason.startswith("custom check raised SystemExit in own.py, line ")
    assert [verdict.reason for verdict in made[2:4]] == ["custom check exceeded 2 s", "custom check ended its process"]


def test_what_is_no_verdict_is_named(verifier: Verifier) -> None:
    made = verdicts(verifier, "x: list", "x: nothing", "x: text", "x: two", "x: nan", "x: percent")
    assert {verdict.outcome for verdict in made} == {"undecided"}
    of_type, number = ", no outcome, no True or False, no score from 0 to 1", "a number that is no score from 0 to 1"
    text = "a text other than correct, wrong, malformed and undecided"
    returned = [verdict.reason.removeprefix("custom check returned ") for verdict in made]
    assert returned == [f"list{of_type}", f"NoneType{of_type}", text, number, number, number]


def test_by_source_or_domain(folder: Path) -> None:
    table = VerifyTable(custom={"geo*": "own:check"}, workers=1)
    with Verifier(table, recipe_folder=folder) as verifier:
        half = Response(question="q", index=0, text="Final answer: 0.5")
        assert verifier.verify(question(source="geometry"), half).score == 0.5
        assert verifier.verify(question(source="sums"), half).score is None


def test_a_check_that_cannot_be_used(folder: Path) -> None:
    for target in ("own:chek", "owm:check", *(f"own:{name}" for name in ("not_callable", "one", "by_name", "later", "several"))):
        verifier = Verifier(VerifyTable(custom=target, workers=1), recipe_folder=folder)
        with verifier, fails("custom-check-not-usable", RecipeError, key="verify.custom"):
            verifier.start()
    with pytest.raises(ValueError, match="custom"):
        VerifyTable(custom="own.check")


def test_a_changed_function_is_another_check(folder: Path) -> None:
    table = VerifyTable(custom="own:check")
    before = code_digest(table, folder)
    (folder / "own.py").write_text(OWN + "\n")
    assert before.keys() == code_digest(table, folder).keys() == {"own:check"}
    assert before != code_digest(table, folder)


def test_pairs_by_margin() -> None:
    scores = [0.9, 0.55, 0.5, 0.1]
    responses = [Response(question="q", index=i, text=f"response {i}", token_ids=(i,)) for i in range(4)]
    judged = [Verdict(question="q", index=i, outcome="correct", extracted=str(i), score=score) for i, score in enumerate(scores)]
    pairs, drops = correctness_pairs(question(), responses, judged, PairsTable(min_margin=0.35), 0)
    assert [(pair.chosen_index, pair.rejected_index) for pair in pairs] == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert drops == {"margin": 1}  # 0.55 and 0.5; what does not score higher is no pair to drop
    close, _ = correctness_pairs(question(), responses, judged, PairsTable(min_margin=1), 0)
    assert close == []


def test_a_run_with_a_check(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    (tmp_path / "own.py").write_text(
        "def score(answer, response, truth, question):\n    return 1.0 if answer == truth else 0.2\n"
        "def broken(answer, response, truth, question):\n    return 1 / 0\n"
    )
    settings = {"verify.custom": "own:score", "pairs.min_margin": 0.5}
    made = mixpo.run(recipe, directory=tmp_path / "run", set=settings, until="pair", quiet=True)
    assert all(row["chosen_answer"] == row["answer"] for row in made.pairs() if row["origin"] == "correctness")
    manifest = json.loads((tmp_path / "run/round-1/verify/manifest.json").read_text())
    assert manifest["counts"]["correct"] == manifest["counts"]["wrong"] == 16
    with fails("custom-check-not-usable", RecipeError):
        mixpo.run(recipe, directory=tmp_path / "unused", set={"verify.custom": "own:scoer"}, quiet=True)
    assert not (tmp_path / "unused" / "round-1").exists()  # before anything was sampled
    with fails("no-pairs", TrainError) as error:
        settings = {"verify.custom": "own:broken", "pairs.dropout_ntp": False}
        mixpo.run(recipe, directory=tmp_path / "run", set=settings, until="pair", quiet=True)
    assert "; undecided: custom check raised ZeroDivisionError in own.py, line 4 (32); no verdict is decided: " in error.message
    assert main(["check", str(recipe), "--set", "verify.custom=own:scoer"]) == 3
    assert "verify.custom = 'own:scoer' cannot be used: AttributeError" in capsys.readouterr().out
