"""MMMU, MathVerse (vision only), We-Math and LogicVista: rows in the official formats, and their rules with the traps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_files import fact, figures, load, outcomes, png, questions, save_png, value
from table_files import jsonl, parquet

from mixpo.evaluate.benchmarks import prompt_of
from mixpo.evaluate.benchmarks.logicvista import read_letters
from mixpo.evaluate.benchmarks.mmmu import open_matches
from mixpo.types import Skipped


def mmmu_row(number: int, **values: object) -> dict[str, object]:
    base: dict[str, object] = {
        "id": f"validation_Art_Theory_{number}", "question": f"Compare <image 2> with <image 1>, case {number}.",
        "options": "['a red boat', 'a blue boat', '<image 2>']", "answer": "B", "question_type": "multiple-choice",
        "image_1": {"bytes": png(1), "path": None}, "image_2": {"bytes": png(2), "path": None}, "image_3": None,
    }  # fmt: skip
    return {**base, **values}


def test_mmmu_places_images_and_groups_subjects(tmp_path: Path) -> None:
    opened = mmmu_row(2, options="[]", answer="['4', 'four']", question="How many in <image 1>?", question_type="open")
    parquet(tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet", [mmmu_row(1), opened])
    choice, free = questions("mmmu", tmp_path)
    assert choice.text.startswith("Compare <image> with <image>, case 1.\nA. a red boat")
    assert [Path(image.path).read_bytes() for image in choice.images] == [png(2), png(1), png(2)]
    assert (fact(choice, "subject"), fact(choice, "discipline")) == ("Art_Theory", "Art and Design")
    assert str(prompt_of(choice, "direct")).count("<image>") == 3
    assert str(prompt_of(free, "direct")).endswith("single word or phrase.")
    assert outcomes("mmmu", [choice] * 6, ["(A) or rather (B)", "B.", "It is A B", "the second is a blue boat, I think", "b", "(C)"],
                    "official")[:4] == "cccc"  # fmt: skip
    assert outcomes("mmmu", [free] * 4, ["So there are 4.", "The answer is four", "It is 5", "44"], "official") == "ccww"
    assert outcomes("mmmu", [free] * 2, ["4", "five"], "robust")[0] == "c"


def test_mmmu_test_answers_are_not_public(tmp_path: Path) -> None:
    (skipped,) = load("mmmu", tmp_path, parquet(tmp_path / "x.parquet", [mmmu_row(1, answer="?")]))
    assert isinstance(skipped, Skipped)
    assert "use validation" in skipped.reason


@pytest.mark.parametrize(
    ("response", "golds", "right"),
    [
        ("x = 1,200", ["1200"], True),
        ("x is 3.14159", ["3.14"], True),
        ("no", ["o"], False),
        ("it is o clock", ["o"], True),
        ("It is final, my answer \n5", ["5"], True),  # an empty tail counts as none, so that the whole response is read
        ("", ["1"], False),
    ],
)
def test_mmmu_open_answers(response: str, golds: list[str], right: bool) -> None:
    assert open_matches(response, golds) == right


def we_math_rows() -> list[dict[str, Any]]:
    rows = []
    for problem, steps in (("2steps_1", 2), ("2steps_2", 2), ("3steps_1", 3), ("2steps_3", 2)):
        for step in [*map(str, range(1, steps + 1)), "multi"]:
            rows.append(
                {"ID": problem, "key": f"{steps}steps_{step}", "question": f"Step {step} of {problem}?", "answer": "C",
                 "option": "A. 1, 2;B. 3; C. 4, 5; D. 6; E. No correct answer", "image_path": "a.png", "knowledge concept": "Length"}
            )  # fmt: skip
    return rows


def test_we_math_scores_problems_not_rows(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png")
    (tmp_path / "testmini.json").write_text(json.dumps(we_math_rows()))
    asked = questions("we_math", tmp_path)
    assert asked[0].choices == ("1, 2", "3", "4, 5", "6", "No correct answer")
    # Mastered; rote (one of two steps); three right steps, the whole wrong; nothing right.
    given = list("CCC" + "CBC" + "CCCB" + "BBB")
    found = figures("we_math", asked, given, "robust")
    assert value(found, "score (strict)") == pytest.approx(100 * 1.5 / 4)
    assert value(found, "score (loose)") == pytest.approx(100 * 2.5 / 4)
    assert value(found, "inadequate generalization", "dimension") == 25.0
    assert value(found, "insufficient knowledge", "dimension") == 25.0
    assert value(found, "rote memorization (strict)", "dimension") == 25.0
    assert value(found, "rote memorization (loose)", "dimension") == 0.0
    assert value(found, "three steps", "steps") == 0.0
    texts = ["<Thought process>: <<x>> <Answer>: <<C>>", "Answer: C. 4, 5", "Final answer: C", "C", "Answer: (C)", "Cats. Answer: B"]
    assert outcomes("we_math", asked[:6], texts, "official") == "ccwcww"


def test_logicvista_compares_sets_of_letters(tmp_path: Path) -> None:
    rows = {f"v1_{n}": {"imagename": f"v{n}.png", "question": f"Which, {n}?", "answer": answer, "skill": ["inductive"]}
            for n, answer in enumerate(("C", "A, C"))}  # fmt: skip
    for n in range(2):
        save_png(tmp_path / "images" / f"v{n}.png", n)
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    one, two = questions("logicvista", tmp_path)
    assert (one.kind, two.kind, fact(two, "skills")) == ("choice", "text", ["inductive"])
    assert outcomes("logicvista", [two] * 5, ["C, A", "(A) and (C)", "AC", "A", "A, B, C"], "paper") == "cccww"
    assert outcomes("logicvista", [one] * 3, ["C", "(C).", "D"], "robust") == "ccw"
    assert [read_letters(text) for text in ("A and D", "Both", "", "ABBA", "a")] == ["AD", None, None, "AB", None]


def mathverse_row(number: int, **values: object) -> dict[str, object]:
    base: dict[str, object] = {
        "sample_index": str(number), "problem_version": "Vision Only", "question": "", "question_type": "multi-choice", "answer": "B",
        "image": "a.png", "question_for_eval": f"What is {number}?\nChoices:\nA:30°\nB:60°\nC:90°",
        "metadata": {"subject": "Plane Geometry", "subfield": "Angle"},
    }  # fmt: skip
    return {**base, **values}


def test_mathverse_reads_the_vision_only_rows(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png")
    rows = [
        mathverse_row(1), mathverse_row(2, problem_version="Text Lite"),
        mathverse_row(3, question_type="free-form", answer="10 \\sqrt{2}", question_for_eval="How long?",
                      metadata="{'subject': 'Solid Geometry', 'subfield': 'Length'}"),
    ]  # fmt: skip
    choice, free = questions("mathverse", tmp_path, jsonl(tmp_path / "testmini.jsonl", rows))
    assert (choice.choices, free.kind, fact(free, "subject")) == (("30°", "60°", "90°"), "formula", "Solid Geometry")
    assert choice.text == "<image>\nThe question is shown in the image."
    assert outcomes("mathverse", [choice] * 3, ["B", "(B) 60°", "A"], "robust") == "ccw"
    assert outcomes("mathverse", [free] * 3, ["10 \\sqrt{2}", "10√2", "14"], "paper") == "ccw"
