"""M3CoT: two formats, six options, the released rule with its faults beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_files import figures, load, outcomes, png, questions, save_png, value
from table_files import jsonl, parquet

from mixpo.evaluate.benchmarks import prompt_of
from mixpo.evaluate.benchmarks.m3cot import read_paper
from mixpo.types import Skipped

SIX = ["ant", "bee", "cat", "dog", "eel", "fox"]


def row(number: int, **values: object) -> dict[str, object]:
    base: dict[str, object] = {
        "id": f"m-{number}", "category": "c", "image_id": str(number), "question": f"Which {number}?", "choices": SIX, "context": "",
        "answer": "F", "rationale": "r", "split": "test", "image": {"bytes": png(number), "path": None},
        "domain": "science", "topic": "biology",
    }  # fmt: skip
    return {**base, **values}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(1), row(2, context="Look.", answer="C", domain="commonsense", topic="social"), row(3, choices=["1", "10"], answer="B")]
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [row(9)])
    return tmp_path


def test_the_hub_folder(folder: Path) -> None:
    found = questions("m3cot", folder)
    assert found[1].text == "<image>\nLook.\nWhich 2?\nA. ant\nB. bee\nC. cat\nD. dog\nE. eel\nF. fox"
    assert (prompt_of(found[1], "direct") or "").endswith("F. fox\nAnswer with the option's letter from the given choices directly.")
    assert prompt_of(found[1], "cot") is None


def test_the_scienceqa_form_counts_options_from_zero(tmp_path: Path) -> None:
    save_png(tmp_path / "images" / "1.png")
    rows: list[dict[str, Any]] = [
        {"image": "images/1.png", "question": "Which?", "hint": "Look.", "choices": SIX, "answer": 5},
        {"image": "images/1.png", "question": "Which?", "hint": "Look.", "choices": ["a", "b"], "answer": 2},
        {"image": None, "question": "Without a picture?", "hint": "", "choices": ["a", "b"], "answer": 0},
        {"image": "images/none.png", "question": "Which?", "choices": ["a", "b"], "answer": 0},
    ]
    jsonl(tmp_path / "test.jsonl", rows)
    first, wrong, bare, missing = load("m3cot", tmp_path)
    assert first.answer == "F"  # type: ignore[union-attr]
    assert isinstance(wrong, Skipped)
    assert "none of the 2 options" in wrong.reason
    assert bare.images == ()  # type: ignore[union-attr]
    assert isinstance(missing, Skipped)
    assert "not found under" in missing.reason


@pytest.mark.parametrize(
    ("answers", "robust", "paper"),
    [
        (["F", "C", "B"], "ccc", "ccc"),
        (["F. fox", "(C)", "B."], "ccc", "ccc"),
        (["f", "**C**", "10"], "ccc", "www"),  # paper: "1" stands inside "10"
        (["A fox", "A cat", "10 apples"], "ccc", "www"),
        (["G", "none", "1"], "www", "www"),
    ],
)
def test_answers_by_both_extractors(folder: Path, answers: list[str], robust: str, paper: str) -> None:
    found = questions("m3cot", folder)
    assert outcomes("m3cot", found, answers, "robust") == robust
    assert outcomes("m3cot", found, answers, "paper") == paper


def test_the_released_rule() -> None:
    assert read_paper("A cat", SIX) == "A"
    assert read_paper("the cat and the bee", SIX) == "B"  # the first option in order, not in the text
    assert read_paper("10 apples", ["1", "10"]) == "A"  # "1" stands inside "10"
    assert read_paper("b", SIX) == "b"
    assert read_paper("(Z) x", ["1", "2"]) == "Z"
    assert read_paper("", SIX) == ""


def test_figures_by_hand(folder: Path) -> None:
    found = figures("m3cot", questions("m3cot", folder), ["F", "A", "B"])
    assert found[0].value == pytest.approx(200 / 3)
    assert (value(found, "science", "domain"), value(found, "commonsense", "domain")) == (100.0, 0.0)
    assert (value(found, "biology", "topic"), value(found, "social", "topic")) == (100.0, 0.0)
