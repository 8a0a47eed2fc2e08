"""MathVision: letters, values, and the texts around a question."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_files import b64, fact, figures, outcomes, parquet, png, questions, tsv, value

from mixpo.evaluate.benchmarks import prompt_of
from mixpo.evaluate.benchmarks.mathvision import infer_letter


def row(number: int, **values: object) -> dict[str, object]:
    base: dict[str, object] = {
        "id": str(number), "question": f"What is it? <image1> Number {number}.", "options": [], "image": f"images/{number}.jpg",
        "decoded_image": {"bytes": png(number), "path": None}, "answer": "3", "solution": None, "level": 2, "subject": "algebra",
    }  # fmt: skip
    return {**base, **values}


ROWS = [
    row(1, options=["12", "15", "18", "21", "24"], answer="B"),
    row(2, answer=r"\frac{1}{2}", level=5, subject="counting"),
    row(3, options=["A", "B", "C", "D", "E"], answer="E"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "data" / "testmini-00000-of-00001.parquet", ROWS)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [*ROWS, row(4)])
    return tmp_path


def test_questions_and_prompts(folder: Path) -> None:
    found = questions("mathvision", folder)
    assert [q.answer for q in found] == ["B", r"\frac{1}{2}", "E"]
    assert len(questions("mathvision", folder, split="test")) == 4
    assert found[0].text == "<image>\nWhat is it? Number 1.\n(A) 12\n(B) 15\n(C) 18\n(D) 21\n(E) 24"
    direct = prompt_of(found[0], "direct") or ""
    assert direct.startswith("<image>\nHint: ")
    assert direct.endswith("\nQuestion: What is it? Number 1.\nChoices:\n(A) 12\n(B) 15\n(C) 18\n(D) 21\n(E) 24")
    assert prompt_of(found[0], "cot") is None
    assert [fact(q, "level") for q in found] == ["2", "5", "2"]


def test_the_vlmevalkit_table_loses_hint_and_choices_in_chain_of_thought(tmp_path: Path) -> None:
    text = "Hint: h\nQuestion: How many?\nChoices:\n(A) 1\n(B) 2"
    rows = [{"index": 7, "image": b64(), "question": text, "answer": "B", "choices": "['1', '2']", "category": "counting"}]
    (found,) = questions("mathvision", tmp_path, tsv(tmp_path / "MathVision_MINI.tsv", rows))
    assert found.text == "<image>\nHow many?\n(A) 1\n(B) 2"
    assert prompt_of(found, "direct") == f"<image>\n{text}"
    assert fact(found, "subject") == "counting"


@pytest.mark.parametrize(
    ("answers", "robust", "paper"),
    [
        (["B", r"\frac{1}{2}", "E"], "ccc", "ccc"),
        (["15", "0.5", "(E)"], "ccc", "ccc"),
        (["**B**", r"Answer: \boxed{1/2}", "Final answer: E."], "ccc", "ccc"),
        (["12", "1/3", "A"], "www", "www"),
        (["B or C", "2", ""], "uwm", "www"),
    ],
)
def test_answers_by_both_extractors(folder: Path, answers: list[str], robust: str, paper: str) -> None:
    found = questions("mathvision", folder)
    assert outcomes("mathvision", found, answers, "robust") == robust
    assert outcomes("mathvision", found, answers, "paper") == paper


def test_the_article_counts_as_a_letter_by_the_old_rule() -> None:
    assert infer_letter("A good guess", ["1", "2"]) == "A"
    assert infer_letter("it is (B).", ["1", "2"]) == "B"
    assert infer_letter("A, or B", ["1", "2"]) is None
    assert infer_letter("two cats", ["one cat", "two cats"]) == "B"
    assert infer_letter("", ["1", "2"]) is None


def test_model_text_is_never_run(folder: Path, tmp_path: Path) -> None:
    evil = f"__import__('pathlib').Path({str(tmp_path / 'owned')!r}).touch()"
    found = questions("mathvision", folder)
    assert outcomes("mathvision", found[1:2], [evil], "paper") in ("w", "u")
    assert not (tmp_path / "owned").exists()


def test_figures_by_hand(folder: Path) -> None:
    found = figures("mathvision", questions("mathvision", folder), ["B", "0.4", "E"])
    assert found[0].value == pytest.approx(200 / 3)
    assert (value(found, "algebra", "subject"), value(found, "counting", "subject")) == (100.0, 0.0)
    assert (value(found, "2", "level"), value(found, "5", "level")) == (100.0, 0.0)
