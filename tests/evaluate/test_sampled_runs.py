"""Several sampled responses per question in whole runs: graded, reported, shown by status, compared and viewed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from table_files import jsonl

from mixpo.cli import main
from mixpo.commands.compare import accuracy_table, compare_evaluations, figure_table
from mixpo.pipeline import open_run
from mixpo.records import Prediction

RECIPE = """
[model]
path = "{model}"
device = "cpu"
[sample]
engine = "scripted"
script = "{script}"
[evaluate]
modes = ["cot"]
samples = 4
max_new_tokens = 400
[[evaluate.sets]]
name = "lakes"
source = {{ kind = "benchmark", name = "m3cot", path = "test.jsonl" }}
[[evaluate.sets]]
name = "sums"
source = {{ kind = "jsonl", path = "sums.jsonl" }}
"""
# Greedy decoding takes the first response, sampling all four.
FIRST = {
    "animal 0": [
        "The answer is A.",
        "The answer is (A) heron.",
        "The answer is B.",
        "Some bird stands in the water, and some trees grow around it, but I would need more light.",
    ],
    "animal 1": ["The answer is A.", "The answer is B.", "The answer is C.", "The answer is C."],
    "of 1 and 2": ["Final answer: 3", "Final answer: 4", "Final answer: 3.0", "Hm."],
    "of 2 and 3": ["Hm.", "Hm.", "Hm.", "Hm."],
}
SECOND = {**FIRST, "animal 1": ["The answer is B."] * 4, "of 2 and 3": ["Final answer: 5"] * 4}


def run(folder: Path, model: Path, name: str, script: dict[str, list[str]]) -> Path:
    asked = {"choices": ["heron", "otter", "lynx"], "domain": "d", "topic": "t"}
    rows = [{"id": str(n), "question": f"Which animal {n} is at the lake?", "answer": "AB"[n], **asked} for n in range(2)]
    jsonl(folder / "test.jsonl", rows)
    jsonl(folder / "sums.jsonl", [{"question": f"What is the sum of {n} and {n + 1}?", "answer": str(2 * n + 1)} for n in (1, 2)])
    jsonl(folder / f"{name}.jsonl", [{"question": text, "responses": responses} for text, responses in script.items()])
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(model=model, script=f"{name}.jsonl"))
    assert main(["run", str(recipe), "--dir", str(folder / name)]) == 0
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sampled")
    return run(folder, tiny_folder, "first", FIRST), run(folder, tiny_folder, "second", SECOND)


def test_report_has_every_figure(runs: tuple[Path, Path]) -> None:
    report = json.loads((runs[0] / "report.json").read_text())
    lakes, sums = report["models"]["base"], report["sets"]["sums"]["models"]["base"]
    assert {mode: scores["no_answer"] for mode, scores in lakes.items()} == {"cot": 0.0, "sampled": 1 / 8}
    assert {mode: scores["no_answer"] for mode, scores in sums.items()} == {"cot": 1 / 2, "sampled": 5 / 8}
    found = {figure["name"]: figure["value"] for figure in lakes["sampled"]["figures"]}
    # animal 0: A A B and none, A is right. animal 1: A B C C, B is right.
    assert lakes["sampled"]["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found == pytest.approx(
        {"pass@2": (5 / 6 + 1 / 2) / 2, "pass@4": 1.0, "maj@2": ((3 + 2 / 2) / 6 + 3 / 2 / 6) / 2, "maj@4": 1 / 2}
    )
    found = {figure["name"]: figure["value"] for figure in sums["sampled"]["figures"]}
    assert (found["pass@4"], found["maj@4"]) == (0.5, 0.5)  # 3 and 3.0 are one answer, and win against 4
    page = (runs[0] / "report.html").read_text()
    assert "Sampled responses" in page
    for text in ("mean@4", "pass@2", "pass@4", "maj@2", "maj@4", "5 (62.5\N{NO-BREAK SPACE}%)"):
        assert text in page


def test_status_has_the_scores(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(runs[0])]) == 0
    shown = capsys.readouterr().out
    assert "5 without a final answer (62.5\N{NO-BREAK SPACE}%)" in " ".join(shown.split(" "))
    assert "maj@4" in shown
    assert main(["status", str(runs[0]), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["sets"]["sums"]["models"]["base"]["sampled"]["per_question"] == 4


def test_compare_is_over_all_samples(runs: tuple[Path, Path]) -> None:
    found = {(row["set"], row["mode"]): row for row in compare_evaluations(*runs, anyway=True)}
    lakes = found["lakes", "sampled"]
    assert (lakes["a"]["accuracy"], lakes["b"]["accuracy"]) == (3 / 8, 3 / 4)
    assert (lakes["n"], lakes["only_a"], lakes["only_b"], lakes["difference"]) == (2, 0, 1, 3 / 8)
    figures = {figure["name"]: (figure["a"], figure["b"]) for figure in lakes["figures"]}
    assert figures["maj@4"] == (50.0, 100.0)
    assert figures["pass@4"] == (100.0, 100.0)
    assert figures["mean@4"] == (37.5, 75.0)
    assert figures["maj@2"][1] == pytest.approx(100 * ((3 + 2 / 2) / 6 + 1) / 2)  # choices of the questions decide the votes
    assert [row["b"]["no_answer"] for row in (found["sums", "cot"], found["sums", "sampled"])] == [0.0, 1 / 8]
    assert "62.5 / 12.5\N{NO-BREAK SPACE}%" in accuracy_table([found["sums", "sampled"]])[1][0]
    assert {row[2] for row in figure_table([lakes])[1]} == {"mean@4", "pass@2", "pass@4", "maj@2", "maj@4"}
    assert all(row["difference"] == 0 and row["p"] == 1 for row in compare_evaluations(runs[0], runs[0]))


def test_viewer_has_them_too(runs: tuple[Path, Path]) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from mixpo.viewer.app import create_app
    from mixpo.viewer.views import Views

    views = Views(open_run(runs[0]))
    client = TestClient(create_app(views, "token"), base_url="http://127.0.0.1:8765")
    page = client.get("/evaluation").text
    assert "maj@4 <b>50.0\N{NO-BREAK SPACE}%</b>" in page
    assert "5 (62.5\N{NO-BREAK SPACE}%)" in page
    rows = list(open_run(runs[0]).run.stage("evaluate/lakes/base/sampled").read_all(Prediction))
    one = client.get(f"/evaluation/lakes/{rows[0].question}", params={"mode": "sampled"}).text
    assert "The answer is (A) heron." in one
    assert "sample 3" in one
    views.index.close()
