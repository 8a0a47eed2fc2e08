"""The judge that finds the short answer for MathVista and MathVision: what needs no judge, what a reply says, and a whole run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_files import figures, png, predictions
from bench_files import questions as ask
from judges import asked, serving
from small_run import manifest_of
from table_files import jsonl, parquet

from mixpo.cli import main
from mixpo.commands.compare import compare_evaluations
from mixpo.errors import EvaluateError, RecipeError
from mixpo.evaluate.benchmarks import facts_of, mathvision, mathvista
from mixpo.evaluate.benchmarks.extraction import PROMPT, read
from mixpo.pipeline import open_context, open_run, rescore, run_stage
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.records import Prediction
from mixpo.types import AnswerKind, Question


def question(kind: AnswerKind, **more: object) -> Question:
    return Question(id="q", text="Q?", images=(), answer="x", kind=kind, **more)  # type: ignore[arg-type]


CHOICE = question("choice", choices=("3", "30", "a triangle"))
NUMBER, FORMULA, TEXT = question("number"), question("formula"), question("text")


@pytest.mark.parametrize(
    ("reply", "of", "said"),
    [
        ("Extracted answer: 14", NUMBER, "14"),
        ("14", NUMBER, "14"),
        ("**14**.", NUMBER, "14"),
        ("14 cm", NUMBER, "14 cm"),
        ("extracted answer:\n14", NUMBER, "14"),
        ("**Extracted answer:** `14`", NUMBER, "14"),
        ("Extracted answer: 3\nNo, Extracted answer: 5", NUMBER, "5"),
        ("The extracted answer: what the response says, fourteen", NUMBER, "what the response says, fourteen"),  # announced: taken as it is
        ("NO ANSWER", NUMBER, ""),
        ("Extracted answer: No answer.", CHOICE, ""),
        ("C", CHOICE, "C"),
        ("(C)", CHOICE, "(C)"),
        ("C. a triangle", CHOICE, "C. a triangle"),
        ("a triangle", CHOICE, "a triangle"),
        ("[1, 2]", TEXT, "[1, 2]"),
        (r"\frac{1}{2}", FORMULA, r"\frac{1}{2}"),
        ("", NUMBER, None),
        ("Extracted answer:", NUMBER, None),
        ("I would say it is rather good.", NUMBER, None),
        ("I would say it is rather good.", CHOICE, None),
        ("I would say it is rather good.", FORMULA, None),
        ("A good guess would be the triangle.", CHOICE, None),
        ("Well.\nIt depends.", FORMULA, None),
        ("about as many as there are 14 boats here", NUMBER, None),
    ],
)
def test_what_a_reply_says(reply: str, of: Question, said: str | None) -> None:
    assert read(reply, of, {}) == said


ROW = {
    "question": "How many?", "image": "images/1.jpg", "choices": None, "unit": None, "precision": None, "answer": "14",
    "question_type": "free_form", "answer_type": "integer", "metadata": {"task": "t", "skills": ["s"]},
}  # fmt: skip


def vista(number: int, **values: object) -> dict[str, object]:
    more = {
        "pid": str(number),
        "decoded_image": {"bytes": png(number), "path": None},
        "query": f"Hint: a hint.\nQuestion: Number {number}?",
    }
    return {**ROW, **more, **values}


CHOICES = ["3", "30", "a triangle"]
SAID = {
    "Number 1?": "14", "Number 2?": "So there are fourteen of them.", "Number 3?": "It is vague.", "Number 4?": "idle talk",
    "Number 5?": "The last one, clearly.",
}  # fmt: skip
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
modes = ["direct"]
extractor = "judge"
[evaluate.judge]
model = "judge-7b"
urls = ["{url}"]
attempts = 2
[[evaluate.sets]]
name = "vista"
source = {{ kind = "benchmark", name = "mathvista", path = "vista" }}
"""


def test_what_needs_no_judge_for_mathvista(tmp_path: Path) -> None:
    parquet(tmp_path / "testmini.parquet", [vista(1), vista(2, answer_type="float"), vista(3, answer_type="list", answer="[1, 2]"),
            vista(4, answer="30", choices=CHOICES, question_type="multi_choice", answer_type="text")])  # fmt: skip
    whole, decimal, several, choice = ask("mathvista", tmp_path)

    def quick(text: str, of: Question) -> str | None:
        return mathvista.quick(text, of, facts_of(of))

    assert [quick(text, whole) for text in (" 14 ", "14.0", "14 boats", "")] == ["14", None, None, ""]
    assert [quick(text, decimal) for text in ("14", "1.50", "about 1.5")] == ["14.0", "1.5", None]
    assert [quick(text, several) for text in ("[1, 2]", "")] == [None, ""]
    assert [quick(text, choice) for text in ("30", "B", "(B) 30")] == ["30", None, None]


def test_what_needs_no_judge_for_mathvision(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "question": "What? <image1>",
        "image": "x",
        "decoded_image": {"bytes": png(), "path": None},
        "level": 1,
        "subject": "a",
    }
    parquet(tmp_path / "testmini.parquet", [{**row, "options": ["12", "15"], "answer": "B"}, {**row, "options": [], "answer": r"\pi"}])
    choice, value = ask("mathvision", tmp_path)

    def quick(text: str, of: Question) -> str | None:
        return mathvision.quick(text, of, facts_of(of))

    assert [quick(text, choice) for text in ("B", "So the answer is (B).", "A or B", "15", "")] == ["B", "B", None, None, ""]
    # VLMEvalKit looks where the letter stands first, and wants it among the last four words.
    assert [quick(text, choice) for text in ("B one two three", "B one two three four", "B, yes, surely, it is B")] == ["B", None, None]
    # An article at the beginning is no option.
    assert quick("A guess of mine would be that it is fifteen", choice) is None
    assert [quick(text, value) for text in (r" \PI ", "3.14", "")] == [r"\PI", None, ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Path]:
    """A finished evaluation, and in `server` what the judge was asked."""
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("extraction")
    rows = [*(vista(number) for number in range(1, 5)),
            vista(5, answer="a triangle", choices=CHOICES, question_type="multi_choice", answer_type="text")]  # fmt: skip
    parquet(folder / "vista" / "testmini.parquet", rows)
    jsonl(folder / "script.jsonl", [{"question": asked, "responses": [text]} for asked, text in SAID.items()])
    with serving("finds", folder / "server") as url:
        (folder / "recipe.toml").write_text(RECIPE.format(model=tiny_folder, url=url))
        context = open_context(load(folder / "recipe.toml"), folder, folder / "run", Silent())
        run_stage(context, ("answer", "evaluate"))
        run_stage(context, ("report",))
        yield folder


def rows_of(root: Path) -> list[Prediction]:
    return list(open_run(root).run.stage("evaluate/vista/base/direct").read_all(Prediction))


def report(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "report.json").read_text()))


@pytest.mark.slow
def test_a_run_by_judge(run: Path) -> None:
    rows = rows_of(run / "run")
    assert [(row.outcome, row.extracted) for row in rows] == [
        ("correct", "14"), ("correct", "14"), ("undecided", None), ("malformed", None), ("correct", "C"),
    ]  # fmt: skip
    assert [bool(row.judge) for row in rows] == [False, True, True, True, True]  # the first needs no judge
    assert [row.unread for row in rows] == [False, False, True, False, False]
    # The rules that need no judge stand beside it: ours reads a number in words.
    assert [[(other.extractor, other.outcome == "correct") for other in row.others] for row in rows[:2]] == [
        [("robust", True), ("paper", True)], [("robust", True), ("paper", False)],
    ]  # fmt: skip
    requests = asked(run / "server")
    # Four were asked about; what could not be read was asked about again, warmer.
    assert sorted(request["temperature"] for request in requests) == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert any(
        "Question: Hint: a hint.\nQuestion: Number 2?\nResponse: So there are fourteen" in r["messages"][-1]["content"] for r in requests
    )


def test_figures_leave_out_what_could_not_be_read(run: Path) -> None:
    found = report(run / "run")
    main_figure = found["figures"][0]
    # Three right, one without an answer (not right), one left out: 3 of 4, never 3 of 5.
    assert (main_figure["value"], main_figure["n"], main_figure["excluded"]) == (75.0, 4, 1)
    assert main_figure["by"].startswith("extracted by judge judge-7b-2026-01-01 #")
    assert len(main_figure["by"].rpartition("#")[2]) == 8
    scores = found["models"]["base"]["direct"]
    assert (scores["accuracy"], scores["n"], scores["correct"], scores["excluded"]) == (0.75, 5, 3, 1)
    assert any((alarm["cause"], alarm["text"]) == ("unread", "1 of 5 responses") for alarm in found["alarms"])
    counts = manifest_of(open_run(run / "run").run, "evaluate/vista/base/direct").counts
    assert counts["judge not readable"] == 1
    settings = manifest_of(open_run(run / "run").run, "evaluate/vista/base/direct").settings
    assert settings["extractor"] == "judge"
    assert settings["judge"]["model"] == "judge-7b"


def test_marking_again_asks_nothing_and_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run / "run", tmp_path / "run", symlinks=True))
    (path,) = (root / "evaluate" / "vista" / "base" / "direct").glob("*.parquet")
    before, requests = path.read_bytes(), len(asked(run / "server"))
    path.unlink()
    context = dataclasses.replace(open_run(root), progress=Silent())
    rescore(context)
    assert path.read_bytes() == before
    assert len(asked(run / "server")) == requests
    # By rules: other marks, which do not compare.
    assert main(["score", str(root), "--set", "evaluate.extractor=robust"]) == 0
    with pytest.raises(EvaluateError, match="extractor: "):
        compare_evaluations(run / "run", root)
    row = compare_evaluations(run / "run", root, anyway=True)[0]
    assert row["n"] == 4  # where the judge could not be read, nothing is compared


def test_a_wording_of_your_own_is_another_score(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run / "run", tmp_path / "run", symlinks=True))
    (run / "prompts").mkdir(exist_ok=True)
    (run / "prompts" / "mathvista.txt").write_text("Official.\n{question}\nResponse: {answer}\n\nExtracted answer: ")
    before = len(asked(run / "server"))
    assert main(["score", str(root), "--set", "evaluate.judge.prompts=prompts"]) == 0
    assert len(asked(run / "server")) == before + 5
    assert asked(run / "server")[-1]["messages"][0]["content"].startswith("Official.\nHint: a hint.")
    assert report(root)["figures"][0]["by"] != report(run / "run")["figures"][0]["by"]


def test_the_others_are_read_by_the_released_rules(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_folder, url="http://127.0.0.1:9/v1").replace("mathvista", "pope"))
    table = load(path).evaluate
    assert (table.extractor_of("pope"), table.extractor_of("mathvista"), table.extractor_of("mathvision")) == ("paper", "judge", "judge")
    assert not table.asks_judge(table.sets[0].source)


def test_without_a_judge_it_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "recipe.toml"
    whole = RECIPE.format(model=tiny_folder, url="http://127.0.0.1:9/v1")
    path.write_text(whole[: whole.index("[evaluate.judge]")] + whole[whole.index("[[evaluate.sets]]") :])
    with pytest.raises(RecipeError, match=r"the set 'vista' is read by a judge .*add a table \[evaluate\.judge\]"):
        load(path)
    path.write_text(whole + "[train.watch]\n")
    with pytest.raises(RecipeError, match="the set 'vista' needs a judge, too slow"):
        load(path)


def test_the_prompt_has_its_slots_and_all_five_forms() -> None:
    assert PROMPT.count("{question}") == PROMPT.count("{answer}") == 1
    assert PROMPT.count("Extracted answer:") == 6


def test_rules_beside_the_judge_are_those_of_a_run_without_one(tmp_path: Path) -> None:
    parquet(tmp_path / "testmini.parquet", [vista(1)])
    found = ask("mathvista", tmp_path)
    (row,) = predictions("mathvista", found, ["14.0"], "robust")
    assert [(other.extractor, other.outcome) for other in row.others] == [("paper", "correct")]
    assert figures("mathvista", found, ["14.0"])[0].value == 100.0
