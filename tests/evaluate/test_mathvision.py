"""MathVision: letters, values, and the texts around a question."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_files import b64, fact, figures, outcomes, png, predictions, questions, value
from table_files import jsonl, parquet, tsv

from mixpo.evaluate.benchmarks import prompt_of
from mixpo.evaluate.benchmarks.mathvision import infer_letter
from mixpo.evaluate.benchmarks.mathvision_official import extract_official, same_official


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


OFFICIAL = [
    # By a letter at the start or the end, or after the announcement.
    ("I think (C).", "c"), ("B\nbecause", "b"), ("(D) D\nbecause", "d"), ("The answer is 12. More.", "12"),
    ("So the answer is: x = 4", "4"),
    # The last box, cut at a brace that was never opened; units, degrees, text and spaces are removed.
    (r"\boxed{1} or \boxed{\text{7 km}}", "{7}"), (r"\boxed{30^\circ}", "30"), (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
    ("It is 0.5", r"\frac{1}{2}"), ("3/4", r"\frac{3}{4}"), (r"\boxed{.5}", r"\frac{1}{2}"), (r"\boxed{x=3}", "3"),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer"), OFFICIAL)
def test_what_the_own_script_extracts(response: str, answer: str) -> None:
    assert extract_official(response) == answer


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("A", "a", True), ("8.0", "8", True), (r"$\frac{1}{2}$", r"\frac{1}{2}", True), (r"2 \pi", "6.28", True),
        ("1:2", r"\frac{1}{2}", True), (r"\sqrt{2}", "1.41", True), ("1.414", "1.41", True), ("1.42", "1.41", False), ("", "", False),
        ("x", "y", False), ("2x", "2y", False), ("(1, 2)", "(1.001,2)", True), ("(1,2)", "[1,2]", False), ("(1,2)", "(1,3)", False),
        (r"\frac{1}{0}", "1", False), ("9**9**9", "1", False), (r"\frac{3}{4}}.theansweris:", "0.75", True), ("2^{9999}", "1", False),
        ("__import__('os')", "1", False), ("3 - - 2", "5", True), (r"\sqrt[3]{8}", "2", True), ("-2^2", "-4", True), ("10%", "10", False),
    ],
)  # fmt: skip
def test_the_own_comparison_rounds_to_two_decimals(gold: str, answer: str, same: bool) -> None:
    assert same_official(gold, answer) == same


def test_no_number_is_printed_where_the_scripts_ask_a_judge(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "question": "What is it?\n<image1>",
        "options": [],
        "answer": "60",
        "image": "images/1.jpg",
        "level": 2,
        "subject": "x",
    }
    (asked,) = questions("mathvision", tmp_path, jsonl(tmp_path / "testmini.jsonl", [row]), images="optional")
    long = "First I look at all of the numbers in this row.\nThen the gap is ten, so 60 it is."
    (reading,) = predictions("mathvision", [asked], [long], "paper", "cot")
    assert (reading.outcome, reading.extracted) == ("malformed", None)
    assert 'extractor = "judge"' in reading.reason
    assert outcomes("mathvision", [asked] * 3, ["60", long + "\nFinal answer: 60", "It is 60."], "paper", "cot")[:2] == "cc"
