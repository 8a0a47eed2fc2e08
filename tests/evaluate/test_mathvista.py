"""MathVista in its three formats, with scores computed by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from bench_files import b64, fact, figures, outcomes, png, questions, save_png, value
from hypothesis import given
from hypothesis import strategies as st
from table_files import jsonl, parquet, tsv

from mixpo.evaluate.benchmarks import prompt_of
from mixpo.evaluate.benchmarks.mathvista import check_paper
from mixpo.types import Question, Skipped
from mixpo.verify.judgement import Options

UNUSED = Options(tolerance=0.0, algebra=lambda *_: None)  # type: ignore[arg-type]

META = {"category": "general-vqa", "context": "bar chart", "grade": "high school", "language": "english", "source": "ChartQA"}


def row(number: int, **values: object) -> dict[str, object]:
    meta = {**META, "task": "figure question answering", "skills": ["statistical reasoning"], "split": "testmini"}
    base: dict[str, object] = {
        "pid": str(number), "question": f"Question {number}?", "image": f"images/{number}.jpg",
        "decoded_image": {"bytes": png(number), "path": None},
        "choices": None, "unit": None, "precision": None, "answer": "14", "question_type": "free_form", "answer_type": "integer",
        "query": f"Hint: a hint.\nQuestion: Question {number}?", "metadata": meta,
    }  # fmt: skip
    return {**base, **values}


CHOICES = ["3", "30", "a triangle"]
ROWS = [
    row(1),
    row(2, answer="1.4", answer_type="float", precision=1.0),
    row(3, answer="[1, 2]", answer_type="list"),
    row(4, answer="30", choices=CHOICES, question_type="multi_choice", answer_type="text"),
    row(5, answer="a triangle", choices=CHOICES, question_type="multi_choice", answer_type="text",
        metadata={**META, "task": "geometry problem solving", "skills": ["geometry reasoning", "statistical reasoning"]}),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "data" / "testmini-00000-of-00001-7.parquet", ROWS)
    parquet(tmp_path / "data" / "test-00000-of-00002-7.parquet", [row(9, answer="", metadata={**META, "split": "test"})])
    return tmp_path


def test_the_hub_folder_gives_testmini(folder: Path) -> None:
    found = questions("mathvista", folder)
    assert [q.answer for q in found] == ["14", "1.4", "[1, 2]", "B", "C"]
    assert [q.kind for q in found] == ["number", "number", "text", "choice", "choice"]
    assert found[0].text == "<image>\nHint: a hint.\nQuestion: Question 1?"
    assert prompt_of(found[0], "direct") == found[0].text
    assert prompt_of(found[0], "cot") is None  # the recipe's chain of thought
    assert Path(found[0].images[0].path).read_bytes() == png(1)
    assert fact(found[4], "skills") == ["geometry reasoning", "statistical reasoning"]


def test_the_withheld_answers_of_test_are_said(folder: Path) -> None:
    from bench_files import load

    (skipped,) = load("mathvista", folder, split="test")
    assert isinstance(skipped, Skipped)
    assert "not public" in skipped.reason


@pytest.mark.parametrize(
    ("answers", "robust", "paper"),
    [
        (["14", "1.4", "[1, 2]", "B", "(C)"], "ccccc", "ccccc"),
        (["14.0", "1.44", "[1,2]", "30", "C"], "ccccc", "ccwcc"),
        (["Final answer: **14**", "Answer: 1.36", "1, 2", "Final answer: **B**", "a triangle"], "ccccc", "wcwwc"),
        (["15", "1.5", "[2, 1]", "A", "(A) 3"], "wwwww", "wwwww"),
        # Nearest choice by edit distance: garbage scores by the official rule.
        (["fourteen", "", "none", "xx", "a tangle"], "cmwww", "wwwwc"),
    ],
)
def test_answers_by_both_extractors(folder: Path, answers: list[str], robust: str, paper: str) -> None:
    found = questions("mathvista", folder)
    assert outcomes("mathvista", found, answers, "robust") == robust
    assert outcomes("mathvista", found, answers, "paper") == paper


def test_chain_of_thought(folder: Path) -> None:
    found = questions("mathvista", folder)
    # The early marker wins by the paper's rule, the last one by ours.
    said = [
        "The answer: it is 3.\nSo Final answer: 14",
        "x\nFinal answer: 1.4",
        r"Final answer: \boxed{[1, 2]}",
        "so it must be B\nor so",
        "Answer: C",
    ]
    assert outcomes("mathvista", found, said, "robust", "cot") == "ccccc"  # the fourth concludes without a marker
    assert outcomes("mathvista", found, said, "paper", "cot") == "wcwmc"  # which the paper's rule needs, or a judge
    said[3] = "so it must be B\nor C, I cannot tell"
    assert outcomes("mathvista", found, said, "robust", "cot") == "cccmc"


def test_figures_by_hand(folder: Path) -> None:
    found = figures("mathvista", questions("mathvista", folder), ["14", "9", "[1, 2]", "A", "C"])
    assert found[0].name == "accuracy"
    assert found[0].value == 60.0
    assert (found[0].n, found[0].low < 60 < found[0].high) == (5, True)  # type: ignore[operator]
    assert value(found, "figure question answering", "task") == 50.0
    assert value(found, "geometry problem solving", "task") == 100.0
    assert value(found, "statistical reasoning", "skill") == 60.0  # a row counts in each of its skills
    assert value(found, "geometry reasoning", "skill") == 100.0
    assert value(found, "multi_choice", "question_type") == 50.0
    assert value(found, "float", "answer_type") == 0.0


def test_the_vlmevalkit_table(tmp_path: Path) -> None:
    rows = [
        {"index": 1, "image": b64(1), "question": ROWS[0]["query"], "answer": "14",
         "question_type": "free_form", "answer_type": "integer", "task": "t",         "skills": "['s']"},
        {"index": 2, "image": "1", "question": 'Hint: x\nQuestion: a "b"\tc?', "answer": "30", "answer_option": "B",
         "choices": str(CHOICES),         "question_type": "multi_choice", "answer_type": "text", "task": "t", "skills": "['s']"},
    ]  # fmt: skip
    found = questions("mathvista", tmp_path, tsv(tmp_path / "MathVista_MINI.tsv", rows))
    assert [q.answer for q in found] == ["14", "B"]
    assert found[1].text == '<image>\nHint: x\nQuestion: a "b"\tc?'
    assert found[0].images[0].digest == found[1].images[0].digest  # the second row lends the first one's image
    assert fact(found[1], "skills") == ["s"]


def test_the_official_json_and_a_built_query(tmp_path: Path) -> None:
    import json

    save_png(tmp_path / "images" / "1.jpg")
    row_json = {k: v for k, v in ROWS[3].items() if k not in ("decoded_image", "query", "pid")} | {"image": "images/1.jpg", "unit": "cm"}
    (tmp_path / "annot_testmini.json").write_text(json.dumps({"4": row_json}))
    (found,) = questions("mathvista", tmp_path, "annot_testmini.json")
    assert fact(found, "id") == "4"
    lines = found.text.splitlines()
    assert lines[1].startswith("Hint: ")
    assert lines[2:] == ["Question: Question 4? (Unit: cm)", "Choices:", "(A) 3", "(B) 30", "(C) a triangle"]


def levenshtein(left: str, right: str) -> int:
    """The definition, slow."""

    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (left[i - 1] != right[j - 1]))

    return edits(len(left), len(right))


@given(st.text("xyz 五", max_size=8), st.lists(st.text("xyz 五", min_size=1, max_size=8), min_size=2, max_size=5, unique=True))
def test_an_answer_that_is_no_choice_counts_as_the_nearest_one(said: str, choices: list[str]) -> None:
    """The first of the nearest, as the authors' `get_most_similar` takes it."""
    nearest = min(choices, key=lambda choice: levenshtein(said.strip(), choice))
    asked = Question(id="q", text="?", images=(), kind="choice", choices=tuple(choices), answer="ABCDE"[choices.index(nearest)])
    assert check_paper(said, asked, {}, UNUSED).outcome == "correct"
    for letter in set("ABCDE"[: len(choices)]) - {asked.answer}:
        assert check_paper(said, replace(asked, answer=letter), {}, UNUSED).outcome == "wrong"


def test_other_formats_are_refused(tmp_path: Path) -> None:
    from mixpo.errors import SourceError

    jsonl(tmp_path / "test.jsonl", [{"a": 1}])
    with pytest.raises(SourceError, match=r"nothing of the split testmini; it has test\.jsonl"):
        questions("mathvista", tmp_path)
    (tmp_path / "x.xls").write_text("x")
    with pytest.raises(SourceError, match=r"not a format that is read here; known: \.parquet"):
        questions("mathvista", tmp_path, "x.xls")
    with pytest.raises(SourceError, match=r"no such file or folder; check source\.path"):
        questions("mathvista", tmp_path, "nowhere")
    with pytest.raises(SourceError, match=r"no such file or folder, did you mean 'test\.jsonl'"):
        questions("mathvista", tmp_path, "tset.jsonl")
