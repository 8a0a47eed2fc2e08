"""Responses of other tools: every format is read and matched, faults are counted and listed, and a run without a model grades them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_files import load, questions, save_png
from judges import asked as asked_judge
from judges import serving
from table_files import jsonl, tsv

from mixpo.cli import main
from mixpo.commands.check import Checked, check
from mixpo.commands.compare import compare_evaluations
from mixpo.errors import EvaluateError, MixpoError, RecipeError
from mixpo.evaluate.predictions import Matched, PredictedRow, match, read_predictions
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.recipe import load as load_recipe
from mixpo.recipe import parse
from mixpo.records import Prediction
from mixpo.sources.build import make_question
from mixpo.types import Question, Skipped
from mixpo.viewer.evaluations import Evaluations

ANIMALS = ("heron", "otter", "lynx", "toad")
GOLDS = "BCAD"


def data_rows(count: int = 4) -> list[dict[str, Any]]:
    return [
        {"id": f"nature-{n}", "question": f"Which animal number {n} sits by the lake?", "choices": list(ANIMALS), "answer": GOLDS[n % 4],
         "domain": "science", "topic": "lakes"}
        for n in range(count)
    ]  # fmt: skip


def asked(folder: Path, count: int = 4) -> list[Question]:
    return questions("m3cot", folder, jsonl(folder / "test.jsonl", data_rows(count)))


def matched(path: Path, among: list[Question]) -> Matched:
    return match(read_predictions(path), among)


def answers(result: Matched, among: list[Question]) -> list[str | None]:
    return [result.rows[q.id].response if q.id in result.rows else None for q in among]


TEXTS = ["It is (B).", "It is (C).", "It is (C).", "It is (D)."]


def mathvista_form(folder: Path) -> Path:
    rows = {
        f"nature-{n}": {"question": data_rows()[n]["question"], "response": text, "extraction": text[7]} for n, text in enumerate(TEXTS)
    }
    path = folder / "output_x.json"
    path.write_text(json.dumps(rows))
    return path


def mathv_form(folder: Path) -> Path:
    return jsonl(
        folder / "x.jsonl", [{"id": f"nature-{n}", "response": text, "model_answer": text[7].lower()} for n, text in enumerate(TEXTS)]
    )


def vlmeval_tsv(folder: Path) -> Path:
    rows = [
        {"index": f"nature-{n}", "question": data_rows()[n]["question"], "answer": GOLDS[n], "prediction": text}
        for n, text in enumerate(TEXTS)
    ]
    return tsv(folder / "Model_M3CoT.tsv", rows)


def vlmeval_xlsx(folder: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "prediction"])
    for n, text in enumerate(TEXTS):
        book.active.append([f"nature-{n}", data_rows()[n]["question"], text])
    book.save(folder / "Model_M3CoT.xlsx")
    return folder / "Model_M3CoT.xlsx"


def lmms_eval(folder: Path) -> Path:
    """The rows in another order: `doc_id` is the position in the data, and the target proves it."""
    rows = [
        {
            "doc_id": n,
            "target": ANIMALS["ABCD".index(GOLDS[n])],
            "filtered_resps": [[TEXTS[n]]],
            "input": f"Look.\n{data_rows()[n]['question']}",
        }
        for n in (2, 0, 3, 1)
    ]
    return jsonl(folder / "20260101_samples_m3cot.jsonl", rows)


def lmms_eval_metric(folder: Path) -> Path:
    """The id is inside of a metric's value."""
    rows = [{"doc_id": 9, "resps": [TEXTS[n]], "gpt_score": {"question_id": f"nature-{n}"}} for n in range(4)]
    return jsonl(folder / "a_samples_b.jsonl", rows)


def plain(folder: Path) -> Path:
    return jsonl(folder / "plain.jsonl", [{"question_id": f"nature-{n}", "response": text} for n, text in enumerate(TEXTS)])


def chat(folder: Path) -> Path:
    rows = [{"id": f"nature-{n}", "messages": ["[Question]\nWhich?\n[Choices]", "Let me see.", text]} for n, text in enumerate(TEXTS)]
    return jsonl(
        folder / "chat.jsonl", [{**row, "messages": [data_rows()[n]["question"], *row["messages"][1:]]} for n, row in enumerate(rows)]
    )


def text_only(folder: Path) -> Path:
    """No id at all: the whole question identifies the row."""
    among = asked(folder)
    return jsonl(folder / "text.jsonl", [{"question": q.text, "response": text} for q, text in zip(among, TEXTS, strict=True)])


FORMATS = [mathvista_form, mathv_form, vlmeval_tsv, vlmeval_xlsx, lmms_eval, lmms_eval_metric, plain, chat, text_only]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_every_format_is_read_and_matched(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    among = asked(tmp_path)
    result = matched(write(tmp_path), among)
    assert answers(result, among) == TEXTS
    assert (list(result.skipped), list(result.missing)) == ([], [])


def test_short_answers_come_along(tmp_path: Path) -> None:
    assert [row.given for row in read_predictions(mathvista_form(tmp_path)) if isinstance(row, PredictedRow)] == list("BCCD")
    assert [row.given for row in read_predictions(mathv_form(tmp_path)) if isinstance(row, PredictedRow)] == list("bccd")
    assert {row.given for row in read_predictions(plain(tmp_path)) if isinstance(row, PredictedRow)} == {None}


def test_a_formula_in_a_sheet_stays_text(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["index", "prediction"])
    book.active.append([3, "=1+1"])
    book.active.append([4.0, 14])
    book.save(tmp_path / "x.xlsx")
    rows = [row for row in read_predictions(tmp_path / "x.xlsx") if isinstance(row, PredictedRow)]
    assert [(row.ids, row.response) for row in rows] == [(("3",), "=1+1"), (("4",), "14")]


def test_faults_of_a_file_are_counted_and_listed(tmp_path: Path) -> None:
    among = asked(tmp_path)
    rows: list[dict[str, Any]] = [
        {"id": "nature-0", "response": "first"},
        {"id": "nature-0", "response": "second"},
        {"id": "nature-7", "response": "of nothing"},
        {"id": "nature-1", "question": "How many boats are on the sea?", "response": "of another question"},
        {"id": "nature-2"},
        {"doc_id": 3, "target": "otter", "resps": "of another position"},
        {"response": "of whom?"},
    ]
    result = matched(jsonl(tmp_path / "x.jsonl", rows), among)
    assert answers(result, among) == ["first", None, None, None]
    assert result.counts == {"rows": 7, "duplicates": 1, "unmatched": 5, "missing": 3}
    lines = [(item.where.rpartition(":")[2], item.reason) for item in result.skipped]
    assert [line for line, _ in lines] == ["2", "3", "4", "5", "6", "7"]
    reasons = [reason for _, reason in lines]
    assert "second row for the same question" in reasons[0]
    assert "no question with the id nature-7" in reasons[1]
    assert "another one than that of id nature-1" in reasons[2]
    assert "no response" in reasons[3]
    assert "position 3 with the answer 'otter'" in reasons[4]
    assert "no id" in reasons[5]


def test_an_id_of_several_questions_needs_a_category(tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "question": f"Is there a {thing} in the image?", "answer": "yes", "category": name, "image": ""}
        for name, thing in (("random", "kite"), ("popular", "chair"))
    ]
    for row in rows:
        row["image"] = "COCO_1.jpg"
    among = questions("pope", tmp_path, jsonl(tmp_path / "test.jsonl", rows), images="optional")
    named = [{"question_id": 1, "category": name, "response": name} for name in ("popular", "random")]
    result = matched(jsonl(tmp_path / "x.jsonl", named), among)
    assert answers(result, among) == ["random", "popular"]
    (skipped,) = matched(jsonl(tmp_path / "y.jsonl", [{"question_id": 1, "response": "yes"}]), among).skipped
    assert "belongs to 2 questions" in skipped.reason


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("x.pkl", b"\x80\x04cos\nsystem\n", "predictions-pickle"),
        ("x.parquet", b"no table", "predictions-unreadable"),
        ("x.xlsx", b"no sheet", "predictions-unreadable"),
        ("x.md", b"", "predictions-unreadable"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MixpoError) as error:
        list(read_predictions(tmp_path / name))
    assert error.value.code == code
    with pytest.raises(EvaluateError) as missing:
        list(read_predictions(tmp_path / "nothing.jsonl"))
    assert missing.value.code == "predictions-missing"


def test_official_pope_files_are_json_lines(tmp_path: Path) -> None:
    for name in ("random", "popular", "adversarial"):
        row = {"question_id": 1, "image": "COCO_1.jpg", "text": f"Is there a {name} kite in the image?", "label": "yes"}
        (tmp_path / f"coco_pope_{name}.json").write_text("".join(json.dumps({**row, "question_id": n}) + "\n" for n in (1, 2)))
    among = questions("pope", tmp_path, images="optional")
    assert sorted(q.domain for q in among) == ["adversarial"] * 2 + ["popular"] * 2 + ["random"] * 2
    (tmp_path / "other.jsonl").write_text('{"question_id": 1, "image": "x.jpg", "text": "Is it?", "label": "no"}\n')
    (skipped,) = load("pope", tmp_path, "other.jsonl", images="optional")
    assert isinstance(skipped, Skipped)
    assert "no category; add it, or name the file coco_pope_random.json" in skipped.reason


def test_addresses_of_mmhal_become_files_in_images(tmp_path: Path) -> None:
    row = {"question_type": "attribute", "image_src": "https://example.org/a/b_o.jpg", "image_content": ["Hydrant"], "question": "Colour?",
           "gt_answer": "Red", "model_answer": ""}  # fmt: skip
    (tmp_path / "mmhal-bench_answer_template.json").write_text(json.dumps([row]))
    (skipped,) = load("mmhal", tmp_path)
    assert isinstance(skipped, Skipped)
    assert f"image 'images/b_o.jpg' not found under {tmp_path}" in skipped.reason
    assert skipped.reason.endswith("; save https://example.org/a/b_o.jpg there")
    save_png(tmp_path / "images" / "b_o.jpg")
    (asked_one,) = questions("mmhal", tmp_path)
    assert asked_one.images[0].path.endswith("images/b_o.jpg")


def test_annotations_are_no_questions(tmp_path: Path) -> None:
    (tmp_path / "annot_testmini.json").write_text(json.dumps({"1": {"answer_latex": "1.2"}, "2": None}))
    for item in load("mathvista", tmp_path):
        assert isinstance(item, Skipped)
        assert "holds annotations only" in item.reason
        assert "not public" not in item.reason


def test_mathvista_from_its_repository(tmp_path: Path) -> None:
    """The folder also holds annotations, and the test split without answers."""
    row = {"question": "How many boats?", "answer": "3", "question_type": "free_form", "answer_type": "integer", "image": "images/1.png",
           "query": "Question: How many boats?", "metadata": {}}  # fmt: skip
    (tmp_path / "testmini.json").write_text(json.dumps({"1": {"pid": "1", **row}}))
    (tmp_path / "annot_testmini.json").write_text(json.dumps({"1": {"answer_latex": "3"}}))
    (tmp_path / "test.json").write_text(json.dumps({"2": {"pid": "2", **row, "answer": ""}}))
    (tmp_path / "source.json").write_text(json.dumps({"boats": {"total": 1}}))
    save_png(tmp_path / "images" / "1.png")
    (only,) = questions("mathvista", tmp_path)
    assert only.answer == "3"


def test_paper_without_a_judge_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chain of thought without a marker goes to a language model in the released scripts: no score of anything else is printed."""
    row = {"question": "How many boats?", "answer": "3", "question_type": "free_form", "answer_type": "integer", "image": "1.png",
           "query": "Question: How many boats?", "metadata": {"split": "testmini"},
           "response": "There is one at the pier.\nTwo more are on the water, so I see three."}  # fmt: skip
    path = tmp_path / "output_x.json"
    path.write_text(json.dumps({"1": {"pid": "1", **row}}))
    args = ["score", "--predictions", str(path), "--benchmark", "mathvista", "--dir", str(tmp_path / "run"), "--extractor", "paper"]
    assert main(args) == 1
    shown = capsys.readouterr()
    assert "1 of 1 response without a final-answer marker" in shown.err
    assert "add [evaluate.judge]" in shown.err
    assert "%" not in shown.out


# --- a run without a model ----------------------------------------------------------------------------------------------


def score(folder: Path, path: Path, *more: str, run: str = "run") -> int:
    jsonl(folder / "test.jsonl", data_rows())
    args = ["score", "--predictions", str(path), "--benchmark", "m3cot", "--data", str(folder / "test.jsonl"), "--dir", str(folder / run)]
    return main([*args, *more])


def rows_of(folder: Path, name: str, run: str = "run") -> list[Prediction]:
    return list(open_run(folder / run).run.stage(f"evaluate/m3cot/{name}/cot").read_all(Prediction))


def test_a_file_is_graded_reported_compared_and_viewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(tmp_path, plain(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "75.0" in shown
    assert [row.outcome for row in rows_of(tmp_path, "plain")] == ["correct", "correct", "wrong", "correct"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [f["value"] for f in report["figures"] if not f["group"] and f["by"] == "robust"] == [75.0]
    assert {f["name"] for f in report["figures"] if f["group"] == "domain"} == {"science"}
    better = jsonl(tmp_path / "better.jsonl", [{"id": f"nature-{n}", "response": f"({GOLDS[n]})"} for n in range(4)])
    assert score(tmp_path, better, run="other") == 0
    (compared,) = compare_evaluations(tmp_path / "run", tmp_path / "other")
    assert (compared["a"]["name"], compared["b"]["name"], compared["difference"]) == ("plain", "better", 0.25)
    viewed = Evaluations(open_run(tmp_path / "run").run)
    assert viewed.columns("m3cot") == [("plain", "cot")]
    assert viewed.answers("m3cot", "plain", "cot").scores["accuracy"] == 0.75
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_the_file_is_not_needed_to_grade_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mathv_form(tmp_path)
    assert score(tmp_path, path) == 0
    path.unlink()
    assert main(["score", str(tmp_path / "run"), "--set", "evaluate.extractor=given"]) == 0
    assert [row.extracted for row in rows_of(tmp_path, "x")] == ["b", "c", "c", "d"]
    assert main(["score", str(tmp_path / "run"), "--set", "evaluate.extractor=official"]) == 0
    assert [row.outcome[0] for row in rows_of(tmp_path, "x")] == list("ccwc")


def test_half_a_file_is_refused_unless_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = jsonl(tmp_path / "half.jsonl", [{"id": f"nature-{n}", "response": f"({GOLDS[n]})"} for n in range(2)])
    assert score(tmp_path, half) == 1
    assert "responses to 2 of 4 questions; missing are nature-2, nature-3" in capsys.readouterr().err
    assert score(tmp_path, half, "--partial") == 0
    assert [row.outcome for row in rows_of(tmp_path, "half")] == ["correct", "correct"]
    assert "100.0" in capsys.readouterr().out
    assert score(tmp_path, jsonl(tmp_path / "none.jsonl", [{"id": "other", "response": "x"}]), "--partial", run="none") == 1


def test_unmatched_rows_are_listed_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plain(tmp_path)
    path.write_text(path.read_text() + '{"id": "extra", "response": "x"}\n')
    assert score(tmp_path, path) == 0
    assert "5 rows, 1 unmatched, 0 duplicates" in capsys.readouterr().err
    stage = open_run(tmp_path / "run").run.stage("answer/m3cot/plain/cot")
    listed = [Skipped(**json.loads(line)) for line in (stage.folder / "unmatched.jsonl").read_text().splitlines()]
    assert [item.where.rpartition(":")[2] for item in listed] == ["5"]
    assert stage.manifest is not None
    assert stage.manifest.facts["predictions"] == {"rows": 5, "duplicates": 0, "unmatched": 1, "missing": 0}


def test_given_needs_short_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(tmp_path, plain(tmp_path), "--extractor", "given") == 1
    assert "no short answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"own_models": False}, "leaves nothing to evaluate"),
        ({"extractor": "given"}, "short answers of [[evaluate.predictions]] only"),
        ({"own_models": False, "predictions": [{"name": "a", "path": "x", "set": "m3cott"}]}, "there is no 'm3cott', did you mean 'm3cot'"),
        ({"own_models": False, "predictions": [{"name": "base", "path": "x"}]}, "name of a model of this run"),
        ({"own_models": False, "predictions": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "same name, set and mode"),
    ],
)
def test_recipes_that_cannot_work(evaluate: dict[str, Any], message: str) -> None:
    source = {"kind": "benchmark", "name": "m3cot", "path": "x"}
    with pytest.raises(RecipeError, match="evaluate") as error:
        parse({"evaluate": {"sets": [{"name": "m3cot", "source": source}], **evaluate}}, "recipe")
    assert message in str(error.value)


@pytest.mark.parametrize("args", [[], ["--predictions", "x.jsonl"], ["run", "--predictions", "x.jsonl"]])
def test_the_command_says_what_it_needs(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *args]) == 2
    assert "--predictions" in capsys.readouterr().err


# --- beside a model of one's own, with a judge, checked beforehand, and viewed ------------------------------------------------

TOGETHER = """
[model]
path = "{model}"
device = "cpu"
[sample]
engine = "scripted"
script = "script.jsonl"
[evaluate]
modes = ["cot"]
[evaluate.judge]
model = "judge-7b"
urls = ["{url}"]
attempts = 1
[[evaluate.sets]]
name = "lakes"
source = {{ kind = "benchmark", name = "m3cot", path = "test.jsonl" }}
[[evaluate.sets]]
name = "vet"
source = {{ kind = "benchmark", name = "mmvet", path = "vet" }}
[[evaluate.predictions]]
name = "other"
set = "lakes"
path = "other.jsonl"
[[evaluate.predictions]]
name = "other"
set = "vet"
path = "vet.tsv"
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Path]:
    """A run with a scripted model and predictions on two sets, one of which needs a judge; and the judge's requests in judge/log."""
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("together")
    jsonl(folder / "test.jsonl", data_rows())
    for n in range(3):
        save_png(folder / "vet" / "images" / f"v{n}.png", n)
    vet = {f"v1_{n}": {"imagename": f"v{n}.png", "question": f"Free {n}?", "answer": "a", "capability": ["ocr"]} for n in range(3)}
    (folder / "vet" / "mm-vet.json").write_text(json.dumps(vet))
    tsv(
        folder / "vet.tsv",
        [{"index": f"v1_{n}", "question": f"Free {n}?", "prediction": "<b>clear</b>" if n else "vague"} for n in range(3)],
    )
    jsonl(folder / "other.jsonl", [{"id": f"nature-{n}", "response": f"<script>1</script> The answer is ({GOLDS[n]})."} for n in range(4)])
    jsonl(folder / "script.jsonl", [{"question": "", "responses": ["The answer is (B)."]}])
    with serving("words", folder / "judge") as url:
        (folder / "recipe.toml").write_text(TOGETHER.format(model=tiny_folder, url=url))
        assert main(["run", str(folder / "recipe.toml"), "--dir", str(folder / "run")]) == 0
        yield folder


def test_predictions_beside_a_model(together: Path) -> None:
    report = json.loads((together / "run" / "report.json").read_text())
    assert list(report["models"]) == ["base", "other"]
    assert [report["models"][name]["cot"]["accuracy"] for name in ("base", "other")] == [0.25, 1.0]
    (compared,) = [row for row in report["comparisons"] if row["b"] == "other"]
    assert (compared["a"], compared["difference"], compared["only_b"]) == ("base", 0.75, 3)
    (figure,) = [row for row in report["figure_differences"] if row["name"] == "accuracy"]
    assert (figure["model_a"], figure["model_b"], figure["a"], figure["b"]) == ("base", "other", 25.0, 100.0)


def test_a_judge_grades_predictions(together: Path) -> None:
    rows = list(open_run(together / "run").run.stage("evaluate/vet/other/cot").read_all(Prediction))
    assert [(row.score, row.unread) for row in rows] == [(None, True), (0.9, False), (0.9, False)]
    assert all(row.judge.startswith("judge-7b") for row in rows)
    report = json.loads((together / "run" / "report.json").read_text())["sets"]["vet"]
    (figure,) = [row for row in report["figures"] if row["model"] == "other" and not row["group"]]
    assert (figure["name"], figure["value"], figure["n"], figure["excluded"]) == ("score", pytest.approx(90.0), 2, 1)
    prompts = [request["messages"][-1]["content"] for request in asked_judge(together / "judge")]
    assert sum("<b>clear</b>" in prompt for prompt in prompts) == 2


def test_pages_of_scored_predictions(together: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from mixpo.viewer.app import create_app
    from mixpo.viewer.views import Views

    views = Views(open_run(together / "run"))
    client = TestClient(create_app(views, "token"), base_url="http://127.0.0.1:8765")
    sets = client.get("/evaluation").text
    assert sets.count('<th scope="row">other</th>') == 2
    listed = client.get("/evaluation/lakes").text
    assert "Which animal number 3 sits by the lake?" in listed
    assert '<th scope="col" class="middle">other</th>' in listed
    (stage,) = [open_run(together / "run").run.stage("evaluate/lakes/other/cot")]
    first = next(iter(stage.read_all(Prediction)))
    page = client.get(f"/evaluation/lakes/{first.question}").text
    for text in ("&lt;script&gt;1&lt;/script&gt; The answer is (B).", "answer <b>B</b>", 'aria-label="other, chain of thought"', "correct"):
        assert text in page
    assert "<script>1" not in page
    assert client.get("/evaluation/lakes", params={"change": "gained"}).text.count('class="row-link brief"') == 3
    vet = next(iter(open_run(together / "run").run.stage("evaluate/vet/other/cot").read_all(Prediction)))
    judged = client.get(f"/evaluation/vet/{vet.question}").text
    assert "Reply of judge judge-7b" in judged
    assert "I would say it is rather good." in judged
    assert client.get("/report").status_code == 200
    views.index.close()


def checked(folder: Path, predictions: str, more: str = "") -> Checked:
    """The check of a recipe whose only models are predictions; the folder holds no image and no model."""
    jsonl(folder / "test.jsonl", [{**row, "image": f"nowhere/{n}.png"} for n, row in enumerate(data_rows())])
    (folder / "recipe.toml").write_text(
        f'[evaluate]\nown_models = false\n{more}[[evaluate.sets]]\nname = "lakes"\n'
        'source = { kind = "benchmark", name = "m3cot", path = "test.jsonl", images = "optional" }\n'
        f'[[evaluate.predictions]]\nname = "other"\npath = "{predictions}"\n'
    )
    return check(load_recipe(folder / "recipe.toml"), folder, Silent())


def test_check_reads_predictions_and_needs_no_model(tmp_path: Path) -> None:
    path = plain(tmp_path)
    path.write_text(path.read_text() + '{"id": "extra", "response": "x"}\n' + '{"id": "nature-0", "response": "again"}\n')
    result = checked(tmp_path, path.name)
    assert result.findings == []
    assert {name: number for name, number in result.counts.items() if name.startswith("predictions")} == {
        "predictions other: rows": 6, "predictions other: duplicate rows": 1, "predictions other: unmatched rows": 1,
    }  # fmt: skip
    assert [notice.where.rpartition(":")[2] for notice in result.notices] == ["5", "6"]


@pytest.mark.parametrize(
    ("name", "more", "problem"),
    [
        ("none.jsonl", "", "no such predictions file"),
        ("half.jsonl", "", "has responses to 2 of 4 questions; missing are nature-2, nature-3"),
        ("x.pkl", "", "pickle files are not opened"),
        ("plain.jsonl", 'extractor = "given"\n', "no short answers"),
    ],
)
def test_check_names_what_is_wrong_with_predictions(tmp_path: Path, name: str, more: str, problem: str) -> None:
    plain(tmp_path)
    jsonl(tmp_path / "half.jsonl", [{"id": f"nature-{n}", "response": "(A)"} for n in range(2)])
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04cos\nsystem\n")
    (found,) = checked(tmp_path, name, more).findings
    assert found.where == "predictions other"
    assert problem in found.problem
    partial = tmp_path / "recipe.toml"
    partial.write_text(partial.read_text() + "partial = true\n")
    assert len(check(load_recipe(partial), tmp_path, Silent()).findings) == (name != "half.jsonl")


def test_rows_of_your_own_are_matched_by_their_ids(tmp_path: Path) -> None:
    questions = [make_question(text="How many?", answer=answer, row_id=name) for name, answer in (("a-1", "1"), ("a-2", "2"))]
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"id": "a-2", "response": "2"}\n{"id": "a-3", "response": "3"}\n')
    matched = match(read_predictions(path), questions)
    assert {name: row.response for name, row in matched.rows.items()} == {questions[1].id: "2"}
    assert [item.reason for item in matched.skipped] == ["no question with the id a-3"]
