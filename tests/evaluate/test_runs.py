"""Benchmarks in a whole run: answers kept, marked, marked again to the same bytes, compared or refused, and shown."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_files import png, save_png
from judges import asked, serving
from small_run import manifest_of, said
from table_files import jsonl, parquet

from mixpo.cli import main
from mixpo.commands.check import check
from mixpo.commands.compare import compare_evaluations
from mixpo.commands.plan import dry_run
from mixpo.commands.retry import retry
from mixpo.commands.status import status
from mixpo.errors import EvaluateError, MixpoError, RecipeError, RunError, SourceError
from mixpo.evaluate.benchmarks import BENCHMARKS
from mixpo.pipeline import open_context, open_run, rescore, run_stage
from mixpo.progress import Silent
from mixpo.recipe import BENCHMARK_NAMES, EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, OFFICIAL_BENCHMARKS, load
from mixpo.records import Prediction
from mixpo.report.table import summary_rows
from mixpo.stages.job import Context
from mixpo.stages.models import Models

RECIPE = """
[source]
kind = "digits"
count = 4
[model]
path = "{model}"
device = "cpu"
[sample]
engine = "scripted"
script = "script.jsonl"
n = 2
[evaluate]
max_new_tokens = 400
{judge}
[[evaluate.sets]]
name = "pope"
source = {{ kind = "benchmark", name = "pope", path = "pope" }}
{more}
"""
VET = '[[evaluate.sets]]\nname = "vet"\nsource = { kind = "benchmark", name = "mmvet", path = "vet" }\n'
JUDGE = '[evaluate.judge]\nmodel = "judge-7b"\nurls = ["http://127.0.0.1:{port}/v1"]\nattempts = 2\nretries = 1\n'
SAID = {"dog": "Yes", "cat": "**No**", "bus": "**No**", "cup": "no"}


def write(folder: Path, model: Path, judge: str = "", more: str = "") -> Path:
    rows = [
        {"question_id": str(n), "question": f"Is there a {thing} here?", "answer": "yes" if n < 2 else "no", "category": name,
         "image": {"bytes": png(n), "path": None}}
        for name in ("adversarial", "popular", "random") for n, thing in enumerate(SAID)
    ]  # fmt: skip
    parquet(folder / "pope" / "data" / "test-0.parquet", rows)
    for n in range(3):
        save_png(folder / "vet" / "images" / f"v{n}.png", n)
    vet = {f"v1_{n}": {"imagename": f"v{n}.png", "question": f"Free {n}?", "answer": "a", "capability": ["ocr"]} for n in range(3)}
    (folder / "vet" / "mm-vet.json").write_text(json.dumps(vet))
    script = [{"question": f"a {thing} here", "responses": [answer]} for thing, answer in SAID.items()]
    free = [{"question": f"Free {n}?", "responses": [text]} for n, text in enumerate(("clear one", "vague", "clear two"))]
    jsonl(folder / "script.jsonl", [*script, *free])
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, judge=judge, more=more))
    return folder / "recipe.toml"


def opened(recipe: Path, root: Path, *settings: str) -> Context:
    return open_context(load(recipe, settings), recipe.parent, root, Silent())


def evaluated(recipe: Path, root: Path, *settings: str) -> Context:
    context = opened(recipe, root, *settings)
    run_stage(context, ("answer", "evaluate"))
    run_stage(context, ("report",))
    return context


def report(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "report.json").read_text()))


def digests(root: Path) -> dict[str, str]:
    """Of the predictions. Questions name their images by absolute path, so that a copied run has other bytes there."""
    files = sorted((root / "evaluate").glob("*/base/*/*.parquet"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("judge")
    with serving("words", folder):
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, server: Path) -> Path:
    """A finished evaluation of POPE and of MM-Vet with a judge that cannot say a number of "vague"."""
    folder = tmp_path_factory.mktemp("benchmarks")
    recipe = write(folder, tiny_folder, JUDGE.format(port=(server / "port").read_text()), VET)
    evaluated(recipe, folder / "run")
    return folder


def figures(found: dict[str, Any], name: str, mode: str) -> dict[str, float]:
    rows = found["figures"] if found.get("set") == name else found["sets"][name]["figures"]
    return {f"{row['by'].split()[0]}/{row['name']}": row["value"] for row in rows if row["mode"] == mode and not row["group"]}


def test_pope_by_both_extractors_because_they_differ(run: Path) -> None:
    found = report(run / "run")
    assert found["benchmark"] == "POPE"
    # Ours reads yes no no no: F1 2/3. The official rule reads "**No**" as yes: yes yes yes no: P 2/3, R 1, F1 0.8.
    assert figures(found, "pope", "direct") == pytest.approx(
        {"robust/F1 (mean of categories)": 200 / 3, "robust/F1 (pooled)": 200 / 3, "robust/accuracy": 75.0,
         "paper/F1 (mean of categories)": 80.0, "paper/F1 (pooled)": 80.0, "paper/accuracy": 75.0}
    )  # fmt: skip
    page = (run / "run" / "report.html").read_text()
    assert "POPE (pope): published metrics" in page
    # No second F1 beside them, by other rules for what is neither yes nor no.
    assert "yes_no" not in found["models"]["base"]["direct"]
    assert "Yes/no questions" not in page
    assert "paper" in page


def test_judged_marks_leave_out_what_cannot_be_read(run: Path) -> None:
    rows = list(open_run(run / "run").run.stage("evaluate/vet/base/direct").read_all(Prediction))
    assert [(row.score, row.outcome) for row in rows] == [(0.9, "correct"), (None, "undecided"), (0.9, "correct")]
    assert all(row.judge.startswith("judge-7b-2026-01-01 #") for row in rows)
    found = report(run / "run")
    assert figures(found, "vet", "direct") == {"judge/score": pytest.approx(90.0)}
    scores = found["sets"]["vet"]["models"]["base"]["direct"]
    assert (scores["accuracy"], scores["n"], scores["excluded"]) == (pytest.approx(0.9), 3, 1)
    assert any((alarm["cause"], alarm["text"]) == ("unread", "1 of 3 responses") for alarm in found["alarms"])
    assert manifest_of(open_run(run / "run").run, "evaluate/vet/base/direct").counts["judge not readable"] == 1


def test_marking_again_gives_the_same_bytes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Path) -> None:
    """Without the data, the model's weights or the judge: only the saved answers and replies are used."""
    import shutil

    root = Path(shutil.copytree(run / "run", tmp_path / "run", symlinks=True))
    before, asked = digests(root), (server / "log").read_text()
    monkeypatch.setattr(Models, "fresh", lambda *_, **__: pytest.fail("a model was loaded"))
    for path in (root / "evaluate").rglob("*.parquet"):
        if "source" not in path.parts:
            path.unlink()
    context = replace(open_run(root), progress=Silent())
    rescore(context)
    assert digests(root) == before
    assert (server / "log").read_text() == asked
    # By the other extractor: other marks of the same answers.
    assert main(["score", str(root), "--set", "evaluate.extractor=paper"]) == 0
    assert report(root)["models"]["base"]["direct"]["accuracy"] == 0.75
    rows = list(open_run(root).run.stage("evaluate/pope/base/direct").read_all(Prediction))
    assert [(row.outcome[0], [(other.extractor, other.outcome[0]) for other in row.others]) for row in rows[:4]] == [
        ("c", [("robust", "c")]), ("c", [("robust", "w")]), ("w", [("robust", "c")]), ("c", [("robust", "c")]),
    ]  # fmt: skip
    assert digests(root) != before


def test_settings_that_are_refused_do_not_stay(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: Path) -> None:
    import shutil

    root = Path(shutil.copytree(run / "run", tmp_path / "run", symlinks=True))
    before = (root / "recipe.json").read_text()
    assert main(["score", str(root), "--set", "evaluate.judge.prompts=nowhere"]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["score", str(root), "--set", "evaluate.max_new_tokens=10"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the saved answers were made in another way (decode.max_new_tokens: 400 -> 10); `mixpo evaluate` samples them again" in said
    assert (root / "recipe.json").read_text() == before
    assert main(["score", str(root)]) == 0


def test_a_kill_between_answers_and_marks_loses_no_answer(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    root = Path(shutil.copytree(run / "run", tmp_path / "run", symlinks=True))
    before = digests(root)
    for folder in (root / "evaluate").glob("*/base"):
        shutil.rmtree(folder)
    monkeypatch.setattr("mixpo.stages.engine.create", lambda *_, **__: pytest.fail("something was sampled"))
    run_stage(opened(run / "recipe.toml", root), ("answer", "evaluate"))
    assert digests(root) == before


def test_what_a_judge_will_be_asked_is_said_before(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = write(tmp_path, tiny_folder, JUDGE.format(port=9), VET)
    rows = {row.stage: row for row in dry_run(opened(recipe, tmp_path / "run"))}
    for mode in ("cot", "direct"):
        assert rows[f"evaluate/vet/base/{mode}"].requests == 3
        assert rows[f"evaluate/vet/base/{mode}"].basis == "asked of judge judge-7b"
        assert rows[f"evaluate/pope/base/{mode}"].requests == 0  # by rules


def test_equal_evaluations_are_compared_and_others_refused(run: Path, tmp_path: Path, tiny_folder: Path, server: Path) -> None:
    judge = JUDGE.format(port=(server / "port").read_text())
    other = write(tmp_path, tiny_folder, judge, VET)
    lines = [json.loads(line) for line in (tmp_path / "script.jsonl").read_text().splitlines()]
    for line in lines:
        if "cat" in line["question"]:
            line["responses"] = ["yes"]
    jsonl(tmp_path / "script.jsonl", lines)
    evaluated(other, tmp_path / "run")
    first, second = run / "run", tmp_path / "run"
    with pytest.raises(EvaluateError, match=r"were evaluated with different settings: script: .* --anyway"):
        compare_evaluations(first, second)
    found = {(row["set"], row["mode"]): row for row in compare_evaluations(first, second, anyway=True)}
    assert set(found) == {("pope", "cot"), ("pope", "direct"), ("vet", "cot"), ("vet", "direct")}
    row = found["pope", "direct"]
    assert (row["n"], row["only_a"], row["only_b"], row["difference"]) == (12, 0, 3, 0.25)
    # The three are about one image of four: McNemar would say 0.25.
    assert row["p"] == 1.0
    assert (found["vet", "direct"]["n"], found["vet", "direct"]["difference"]) == (2, 0.0)
    # Of A: F1 2/3 in each category; of B, where the cat is right too: 1. One image of each question stands in all three categories.
    mean_f1 = next(figure for figure in row["figures"] if figure["name"] == "F1 (mean of categories)")
    assert (mean_f1["a"], mean_f1["b"], mean_f1["n"]) == (pytest.approx(200 / 3), 100.0, 12)
    assert mean_f1["difference"] == pytest.approx(100 / 3)
    assert mean_f1["low"] < 100 / 3 < mean_f1["high"]
    assert mean_f1["p"] == 1.0  # only one image of four differs, and swapping it gives as large a difference
    assert [figure["name"] for figure in found["vet", "direct"]["figures"]] == ["score"]
    same = compare_evaluations(first, first)
    assert all(row["difference"] == 0 and row["p"] == 1 and not row["differences"] for row in same)
    one = first / "evaluate" / "pope" / "base" / "direct"
    assert compare_evaluations(one, one)[0]["n"] == 12
    with pytest.raises(EvaluateError, match=r"mode: cot -> direct|mode: direct -> cot"):
        compare_evaluations(one, first / "evaluate" / "pope" / "base" / "cot")
    # Both models are called "base"; their runs tell them apart, by their whole paths where they have the same name too.
    assert {(row["a"]["name"], row["b"]["name"]) for row in found.values()} == {(f"{first}/base", f"{second}/base")}
    renamed = second.rename(tmp_path / "other")
    names = {(row["a"]["name"], row["b"]["name"]) for row in compare_evaluations(first, renamed, anyway=True)}
    assert names == {("run/base", "other/base")}
    renamed.rename(second)
    assert main(["compare", str(first), str(second)]) == 1
    assert main(["compare", str(first), str(second), "--anyway"]) == 0


def test_prompts_and_extractors_are_named_in_the_refusal(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    recipe = write(tmp_path, tiny_folder)
    evaluated(recipe, tmp_path / "one")
    evaluated(recipe, tmp_path / "two", "prompt.cot=brief", "evaluate.extractor=paper")
    with pytest.raises(EvaluateError, match=r"extractor: robust -> paper; prompt\.cot: "):
        compare_evaluations(tmp_path / "one", tmp_path / "two")
    with pytest.raises(EvaluateError, match="holds no evaluations"):
        compare_evaluations(tmp_path / "one", tmp_path)


def test_other_blocks_of_questions_are_no_other_data(run: Path, tmp_path: Path, tiny_folder: Path, server: Path) -> None:
    """How questions lie in files decides nothing; which questions there are does."""
    recipe = write(tmp_path, tiny_folder, JUDGE.format(port=(server / "port").read_text()), VET)
    evaluated(recipe, tmp_path / "small", "shard_size=5")
    assert {row["n"] for row in compare_evaluations(run / "run", tmp_path / "small")} == {12, 2}
    context = open_context(load(recipe), tmp_path, tmp_path / "part", Silent(), limit=2)
    run_stage(context, ("answer", "evaluate"))
    with pytest.raises(EvaluateError, match="questions: 10 are only in the first, 0 only in the second"):
        compare_evaluations(run / "run", tmp_path / "part")


def test_a_recipe_without_a_source_only_evaluates(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = write(tmp_path, tiny_folder)
    recipe.write_text(recipe.read_text().replace('[source]\nkind = "digits"\ncount = 4\n', ""))
    assert main(["run", str(recipe), "--dir", str(tmp_path / "run")]) == 0
    assert list(report(tmp_path / "run")["models"]) == ["base"]
    stages = {row["stage"]: row["state"] for row in status(open_run(tmp_path / "run")).stages}
    assert set(stages.values()) == {"done"}
    assert "source" not in stages
    assert not [name for name in stages if name.startswith("round-")]
    assert not [finding for finding in check(load(recipe), tmp_path, Silent()).findings if finding.where == "source"]
    assert main(["evaluate", str(recipe), "--dir", str(tmp_path / "run"), "--dry-run"]) == 0
    with pytest.raises(RecipeError, match=r"nothing to sample: the recipe has no \[source\]"):
        run_stage(opened(recipe, tmp_path / "run"), ("sample", "continue"))
    (tmp_path / "empty.toml").write_text("seed = 1\n")
    with pytest.raises(RecipeError, match=r"nothing to do: add a table \[source\] .* or \[\[evaluate\.sets\]\]"):
        load(tmp_path / "empty.toml")


def test_a_judged_benchmark_without_a_judge_stops_before_any_model(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path, tiny_folder, more=VET)
    monkeypatch.setattr(Models, "fresh", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match=r"the set 'vet' holds free answers .* add a table \[evaluate\.judge\]"):
        load(recipe)
    assert main(["run", str(recipe), "--dir", str(tmp_path / "run")]) == 2
    assert main(["check", str(recipe)]) == 2
    far = '[evaluate.judge]\nmodel = "j"\nurls = ["https://judge.example/v1"]\napi_key_env = "NO_SUCH_KEY"\n'
    keyless = write(tmp_path, tiny_folder, far, VET)
    with pytest.raises(RecipeError, match="NO_SUCH_KEY is not set"):
        evaluated(keyless, tmp_path / "run")
    monkeypatch.undo()
    assert "evaluate" in {finding.where for finding in check(load(keyless), tmp_path, Silent()).findings}


def test_a_benchmark_with_unusable_rows_is_refused_unless_told(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = write(tmp_path, tiny_folder)
    rows = [
        {"question_id": str(n), "question": "Is it?", "answer": answer, "category": "random", "image": {"bytes": png(n), "path": None}}
        for n, answer in enumerate(("yes", "maybe"))
    ]
    parquet(tmp_path / "pope" / "data" / "test-0.parquet", rows)
    with pytest.raises(SourceError, match=r"1 row of the benchmark cannot be used.*'maybe' is neither yes nor no.*source\.partial = true"):
        run_stage(opened(recipe, tmp_path / "run"), ("answer",))
    text = recipe.read_text().replace('path = "pope" }', 'path = "pope", partial = true }')
    recipe.write_text(text)
    context = opened(recipe, tmp_path / "run")
    with pytest.raises(MixpoError, match="the script has no answer"):
        run_stage(context, ("answer", "evaluate"))
    assert any("1 row skipped" in line for line in said(context))


@pytest.mark.slow
def test_a_judge_that_could_not_be_read_is_asked_again(tmp_path: Path, tiny_folder: Path) -> None:
    """Nothing but its replies is made anew, and only where none could be read."""
    pytest.importorskip("openai")
    with serving("late", tmp_path / "judge"):
        port = (tmp_path / "judge" / "port").read_text()
        recipe = write(tmp_path, tiny_folder, JUDGE.format(port=port), VET)
        root = tmp_path / "run"
        evaluated(recipe, root)
        answers = {path: path.read_bytes() for path in (root / "answer").rglob("*.parquet")}
        before = digests(root)
        assert [row.unread for row in open_run(root).run.stage("evaluate/vet/base/direct").read_all(Prediction)] == [True] * 3
        assert len(asked(tmp_path / "judge")) == 6  # three answers (the same ones in both modes), each put before the judge twice

        # The judge is as it was: asked once more, and nothing is lost.
        assert [(row.stage, row.asked, row.failed) for row in retry(open_run(root))] == [
            ("evaluate/vet/base/cot", 3, 3),
            ("evaluate/vet/base/direct", 3, 3),
        ]
        assert len(asked(tmp_path / "judge")) == 12

        (tmp_path / "judge" / "awake").touch()
        context = replace(open_run(root), progress=Silent())
        found = retry(context)
        assert any("3 questions had failed: 3 x the judge's reply could not be read" in line for line in said(context))
        assert [(row.asked, row.failed) for row in found] == [(3, 0), (3, 0)]
        assert len(asked(tmp_path / "judge")) == 15  # nothing is asked whose reply could be read
        assert retry(open_run(root)) == []
        assert [row.score for row in open_run(root).run.stage("evaluate/vet/base/direct").read_all(Prediction)] == [0.7] * 3
        # What had a mark, or needs none, is as it was.
        kept = {name: digest for name, digest in digests(root).items() if name.startswith("evaluate/pope")}
        assert kept == {name: digest for name, digest in before.items() if name.startswith("evaluate/pope")}
        assert {path: path.read_bytes() for path in (root / "answer").rglob("*.parquet")} == answers
        after = digests(root)
    # The new replies are kept like the others: marked again without a judge, to the same bytes.
    for path in (root / "evaluate").rglob("*/base/*/*.parquet"):
        path.unlink()
    assert main(["score", str(root)]) == 0
    assert digests(root) == after
    assert report(root)["sets"]["vet"]["models"]["base"]["direct"]["accuracy"] == pytest.approx(0.7)


def test_what_cannot_be_compared_is_said_beside_what_can(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that cannot be read on any answer of a set spoils only that set, and the exit status tells."""
    pytest.importorskip("openai")
    with serving("late", tmp_path / "judge"):
        evaluated(write(tmp_path, tiny_folder, JUDGE.format(port=(tmp_path / "judge" / "port").read_text()), VET), tmp_path / "run")
    found = compare_evaluations(tmp_path / "run", tmp_path / "run")
    told = {(row["set"], row["n"], row["difference"], bool(row["problem"])) for row in found}
    assert told == {("pope", 12, 0.0, False), ("vet", 0, None, True)}
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().out
    assert "! vet, direct: no question counts on both sides, because the judge's replies could not be read" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("vet") and "direct" in line]
    assert line.split() == ["vet", "direct", "Base", "model", "none", "Base", "model", "none", "none", "0"]
    others = [line.split() for line in shown.splitlines() if re.match("pope +(direct|chain of thought) +Base model", line)]
    assert [cells[-1] for cells in others] == ["12", "12"]
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run"), "--json"]) == 1
    assert [row["p"] for row in json.loads(capsys.readouterr().out) if row["set"] == "vet"] == [None, None]


def test_an_answer_that_failed_is_no_reply_that_could_not_be_read(tmp_path: Path, tiny_folder: Path, server: Path) -> None:
    """Images that only their header says are images: the answers fail, and the alarm does not blame the judge."""
    recipe = write(tmp_path, tiny_folder, JUDGE.format(port=(server / "port").read_text()), VET)
    for path in (tmp_path / "vet" / "images" / "v0.png", *(tmp_path / "run" / "images").glob("*")):
        path.write_bytes(path.read_bytes()[:45])
    recipe.write_text(recipe.read_text().replace('engine = "scripted"\nscript = "script.jsonl"', 'engine = "transformers"'))
    evaluated(recipe, tmp_path / "run", "evaluate.max_new_tokens=4", "max_error_rate=1")
    found = report(tmp_path / "run")
    scores = found["sets"]["vet"]["models"]["base"]["direct"]
    assert (scores["failed"], scores["excluded"] - scores["unread"]) == (1, 1)
    alarms = [(alarm["cause"], alarm["text"]) for alarm in found["alarms"] if alarm["set"] == "vet"]
    # Of the others the judge could not be read: there is nothing to compare, and no zero to show, but there is a report.
    assert scores["excluded"] == scores["n"] == 3
    assert found["sets"]["vet"]["gaps"] == found["sets"]["vet"]["figure_differences"] == []
    assert [row[2] for row in summary_rows(found, "vet")] == ["none", "none"]
    assert ("failed", "1 of 3 responses, not scored") in alarms


def test_nothing_saved_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    context = opened(write(tmp_path, tiny_folder), tmp_path / "run")
    with pytest.raises(RunError, match="no saved answers to score"):
        rescore(context)


def test_a_benchmark_is_no_training_source(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[source]\nkind = "benchmark"\nname = "pope"\npath = "x"\n')
    with pytest.raises(RecipeError, match="unknown kind 'benchmark'"):
        load(path)
    path.write_text(
        '[source]\nkind = "digits"\n[[evaluate.sets]]\nname = "a"\nsource = { kind = "benchmark", name = "mathvist", path = "x" }\n'
    )
    with pytest.raises(RecipeError, match="unknown benchmark 'mathvist', did you mean 'mathvista'"):
        load(path)


def test_the_recipe_and_the_table_name_the_same_benchmarks() -> None:
    assert tuple(BENCHMARKS) == BENCHMARK_NAMES
    assert tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.rubric) == JUDGED_BENCHMARKS
    assert tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.extraction) == EXTRACTED_BENCHMARKS
    assert tuple(name for name, benchmark in BENCHMARKS.items() if "official" in benchmark.checks) == OFFICIAL_BENCHMARKS
    for name, benchmark in BENCHMARKS.items():
        wanted = set() if benchmark.rubric else {"robust", "paper"}
        assert set(benchmark.checks) - {"official", "given"} == wanted | ({"judge"} if name in EXTRACTED_BENCHMARKS else set())
