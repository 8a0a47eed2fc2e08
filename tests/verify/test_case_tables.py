"""Every row of tests/cases holds; a reported bug becomes a row there."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixpo.prompts import PROMPTS
from mixpo.verify import check, extract
from mixpo.verify.check import TOLERANCE, judge, make_algebra
from mixpo.verify.extract import STYLES
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.pool import FormulaPool

CASES = Path(__file__).parents[1] / "cases"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


def label(row: dict[str, Any]) -> str:
    return f"{row.get('kind') or row['style']}: {row['note']}"


EXTRACT, CHECK = read("extract.jsonl"), read("check.jsonl")
CHEAP = [row for row in CHECK if not row.get("algebra")]
ALGEBRA = [row for row in CHECK if row.get("algebra")]


@pytest.mark.parametrize("row", EXTRACT, ids=label)
def test_extract(row: dict[str, Any]) -> None:
    assert extract(row["text"], row["style"], row.get("choices", ()), thinking=row.get("thinking", False)) == row["answer"]


@pytest.mark.parametrize("row", CHEAP, ids=label)
def test_check_without_computer_algebra(row: dict[str, Any]) -> None:
    def unwanted(predicted: str, gold: str) -> Judgement:
        raise AssertionError(f"{predicted!r} against {gold!r} must be decided without a worker")

    options = Options(tolerance=row.get("tolerance", TOLERANCE), algebra=unwanted, choices=tuple(row.get("choices", ())))
    outcome = "malformed" if not row["predicted"] else judge(row["predicted"], row["gold"], row["kind"], options).outcome
    assert outcome == row["outcome"]
    public = check(row["predicted"], row["gold"], row["kind"], row.get("choices"), tolerance=options.tolerance)
    assert (public.outcome, public.extracted) == (row["outcome"], row["predicted"] or None)
    assert public.reason


@pytest.mark.parametrize("row", ALGEBRA, ids=label)
def test_check_with_computer_algebra(row: dict[str, Any], pool: FormulaPool) -> None:
    options = Options(tolerance=TOLERANCE, algebra=make_algebra(pool, TOLERANCE), choices=tuple(row.get("choices", ())))
    assert judge(row["predicted"], row["gold"], row["kind"], options).outcome == row["outcome"]


def test_tables_are_large_and_cover_everything() -> None:
    assert len(EXTRACT) >= 60
    assert len(CHECK) >= 150
    assert {row["style"] for row in EXTRACT} == set(STYLES) == {prompt.style for prompt in PROMPTS.values()} | {"auto"}
    assert {row["kind"] for row in CHECK} == {"choice", "number", "formula", "text", "yes_no", "auto"}
    assert {row["outcome"] for row in CHECK} == {"correct", "wrong", "undecided", "malformed"}
    seen = [(row["kind"], row["predicted"], row["gold"], str(row.get("choices")), row.get("tolerance")) for row in CHECK]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_the_prompt_itself_holds_no_answer(name: str) -> None:
    """A response that only repeats its instruction is malformed, unless the whole response is the answer."""
    prompt = PROMPTS[name]
    if prompt.style != "whole":
        assert extract(prompt.render("What is 3 + 4?"), prompt.style) is None


def test_unknown_style_and_kind_are_our_bugs() -> None:
    with pytest.raises(ValueError, match="unknown style 'latex'; known: final, final_zh"):
        extract("x", "latex")
    with pytest.raises(ValueError, match="unknown answer kind 'maths'; known: auto, choice"):
        check("x", "y", "maths")
