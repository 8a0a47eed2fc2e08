"""CRPE: rotations counted by what is asked, whatever their order; circular and row accuracy by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from bench_files import fact, figures, load, outcomes, questions, reason, save_png, value
from table_files import jsonl, tsv

from mixpo.types import Question, Skipped

OPTIONS = ["on", "under", "beside", "behind"]
TAIL = "Please answer directly with only the letter of the correct option and nothing else."


def rotations(number: int, category: str, gold: str = "under") -> list[dict[str, object]]:
    made = []
    for turn in range(4):
        options = OPTIONS[turn:] + OPTIONS[:turn]
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=True))
        made.append(
            {"question_id": number * 4 + turn, "image": f"coco/val2017/{number}.jpg", "text": f"Where is thing {number}?\n{lines}\n{TAIL}",
             "correct_option": "ABCD"[options.index(gold)], "category": category}
        )  # fmt: skip
    return made


@pytest.fixture
def rows() -> list[dict[str, object]]:
    made = rotations(1, "subject") + rotations(2, "predicate") + rotations(3, "predicate", "on") + rotations(4, "object")
    random.Random(3).shuffle(made)
    return made


def folder(tmp_path: Path, made: list[dict[str, object]]) -> Path:
    for number in range(1, 6):
        save_png(tmp_path / "coco" / "val2017" / f"{number}.jpg", number)
    jsonl(tmp_path / "crpe_relation.jsonl", made)
    return tmp_path


def said(found: list[Question], wrong: set[int]) -> list[str]:
    """The right letter, but for rows whose question number is in `wrong`."""
    answers = [(q.answer or "", int(fact(q, "id"))) for q in found]
    return ["BCDA"["ABCD".index(answer)] if number in wrong else answer for answer, number in answers]


def test_circular_and_row_accuracy_by_hand(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    found = questions("crpe", folder(tmp_path, rows))
    assert len(found) == 16
    # One rotation of question 2 (rows 8 to 11) is wrong: predicate 1 of 2, subject and object all right.
    result = figures("crpe", found, said(found, {9}))
    assert result[0].value == pytest.approx((100 + 50 + 100) / 3)
    assert (result[0].n, result[0].excluded) == (4, 0)
    assert value(result, "row accuracy") == pytest.approx(100 * 15 / 16)
    assert value(result, "circular accuracy", "predicate") == 50.0
    assert value(result, "row accuracy", "predicate") == pytest.approx(700 / 8)


def test_a_question_without_all_rotations_is_left_out_and_counted(tmp_path: Path) -> None:
    found = questions("crpe", folder(tmp_path, rotations(1, "subject") + rotations(2, "subject")[:3]))
    result = figures("crpe", found, said(found, set()))
    assert (value(result, "circular accuracy", "subject"), result[0].n, result[0].excluded) == (100.0, 1, 1)
    assert value(result, "row accuracy") == 100.0


def test_existence_alone(tmp_path: Path) -> None:
    found = questions("crpe", folder(tmp_path, rotations(1, "exist")))
    result = figures("crpe", found, said(found, {4}))
    assert (result[0].name, result[0].value) == ("circular accuracy (mean of categories)", 0.0)
    assert value(result, "row accuracy") == 75.0


@pytest.mark.parametrize(
    ("answer", "robust", "paper"),
    [
        ("B", "c", "c"), ("B. under", "c", "c"), ("(B)", "c", "w"), ("**B**", "c", "w"), ("under", "c", "c"), ("It is under it.", "c", "c"),
        ("Based on the picture, on", "w", "c"), ("", "m", "w"), ("C", "w", "w"), ("nothing", "w", "w"), ("b", "c", "w"),
    ],
)  # fmt: skip
def test_answers_by_both_extractors(tmp_path: Path, answer: str, robust: str, paper: str) -> None:
    first = questions("crpe", folder(tmp_path, rotations(1, "subject")))[:1]
    assert first[0].answer == "B"
    assert outcomes("crpe", first, [answer], "robust") == robust
    assert outcomes("crpe", first, [answer], "paper") == paper


@pytest.mark.parametrize("whole", [False, True])
def test_a_table_may_hold_the_letter_or_the_whole_option(tmp_path: Path, whole: bool) -> None:
    """With a bare letter the released rule compares with nothing, and any other reply is right; here it is not."""
    made = []
    for row in rotations(1, "subject"):
        letter = str(row["correct_option"])
        line = next(line for line in str(row["text"]).splitlines() if line.startswith(f"{letter}. "))
        made.append({"index": row["question_id"], "image_path": row["image"], "question": row["text"], "answer": line if whole else letter,
                     "category": "subject"})  # fmt: skip
    path = tsv(tmp_path / "CRPE_RELATION.tsv", made)
    folder(tmp_path, rotations(1, "subject"))
    found = questions("crpe", tmp_path, path)
    assert [q.answer for q in found] == ["B", "A", "D", "C"]
    assert outcomes("crpe", found, ["I do not know"] * 4, "paper") == "wwww"


def test_a_missing_coco_image_is_said(tmp_path: Path) -> None:
    folder(tmp_path, rotations(9, "subject"))
    found = load("crpe", tmp_path)
    assert all(isinstance(item, Skipped) and "coco/val2017/9.jpg" in item.reason for item in found)


@pytest.mark.parametrize(
    ("given", "letter"),
    [("B", "B"), ("b", "B"), ("(B)", "B"), ("B. below", "B"), ("(B) below", "B"), ("by", "C"), ("below", "B"), ("above", None)],
)
def test_the_correct_option_as_a_letter_a_line_or_a_text(tmp_path: Path, given: str, letter: str | None) -> None:
    """A text that begins with the letter of another option is no letter: "by" is not B."""
    save_png(tmp_path / "1.jpg")
    row = {
        "index": 1,
        "image_path": "1.jpg",
        "question": "Where?",
        "A": "on",
        "B": "below",
        "C": "by",
        "answer": given,
        "category": "object",
    }
    tsv(tmp_path / "CRPE_RELATION.tsv", [row])
    (found,) = load("crpe", tmp_path)
    if letter is None:
        assert reason(found) == "the correct option 'above' is none of 3"
    else:
        assert found.answer == letter  # type: ignore[union-attr]
