"""The same rows of each benchmark in every format that people have: all of them give the same questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bench_files import b64, png, questions, save_png
from table_files import jsonl, parquet, tsv

from mixpo.types import Question

Rows = Sequence[Mapping[str, Any]]


def arrow(path: Path, rows: Rows) -> Path:
    """What `datasets` writes with save_to_disk: an Arrow stream beside JSON files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(str(path), made.schema) as stream:
        stream.write_table(made)
    (path.parent / "dataset_info.json").write_text("{}")
    (path.parent / "state.json").write_text("{}")
    shutil.copy(path, path.with_name("cache-0123456789abcdef.arrow"))  # what .map() and .filter() leave there
    return path


def keyed(path: Path, rows: Rows, key: str) -> Path:
    """A JSON object of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(row[key]): {name: value for name, value in row.items() if name != key} for row in rows}))
    return path


def listed(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows)))
    return path


def inside(number: int) -> dict[str, Any]:
    """An image as the hub's files hold it."""
    return {"bytes": png(number), "path": None}


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


# --- two rows of each --------------------------------------------------------------------------------------------------------

VISTA: Rows = [
    {"pid": "1", "question": "How many?", "image": "images/1.png", "decoded_image": inside(1), "choices": None, "unit": None,
     "precision": None, "answer": "14", "question_type": "free_form", "answer_type": "integer",
     "query": "Hint: h.\nQuestion: How many?", "metadata": {"task": "t", "skills": ["s"], "split": "testmini"}},
    {"pid": "2", "question": "Which?", "image": "images/2.png", "decoded_image": inside(2), "choices": ["x", "y"], "unit": None,
     "precision": None, "answer": "y", "question_type": "multi_choice", "answer_type": "text",
     "query": "Hint: h.\nQuestion: Which?\nChoices:\n(A) x\n(B) y", "metadata": {"task": "t", "skills": ["s"], "split": "testmini"}},
]  # fmt: skip
VISTA_TSV = [
    {"index": row["pid"], "image": b64(n), "question": row["query"], "answer": row["answer"], "question_type": row["question_type"],
     "answer_type": row["answer_type"], "choices": str(row["choices"]) if row["choices"] else "", "answer_option": "B" if n == 2 else "",
     "task": "t", "skills": "['s']"}
    for n, row in enumerate(VISTA, start=1)
]  # fmt: skip
VISION: Rows = [
    {"id": "1", "question": "How many? <image1>", "options": [], "image": "images/1.png", "decoded_image": inside(1), "answer": "3",
     "solution": None, "level": 1, "subject": "algebra"},
    {"id": "2", "question": "Which? <image1>", "options": ["x", "y"], "image": "images/2.png", "decoded_image": inside(2), "answer": "B",
     "solution": None, "level": 2, "subject": "counting"},
]  # fmt: skip
VISION_TSV = [
    {"index": "1", "image": b64(1), "question": "Hint: h\nQuestion: How many?", "answer": "3", "choices": "[]", "category": "algebra"},
    {"index": "2", "image": b64(2), "question": "Hint: h\nQuestion: Which?\nChoices:\n(A) x\n(B) y", "answer": "B", "choices": "['x', 'y']",
     "category": "counting"},
]  # fmt: skip
COT = [
    {"id": f"m-{n}", "category": "c", "image_id": str(n), "question": "Which?", "choices": ["x", "y"], "context": "Look.", "answer": "B",
     "rationale": "r", "split": "test", "image": inside(n), "domain": "science", "topic": "biology"}
    for n in (1, 2)
]  # fmt: skip
COT_JSONL = [{"image": f"images/{n}.png", "question": "Which?", "hint": "Look.", "choices": ["x", "y"], "answer": 1} for n in (1, 2)]
VET = [
    {
        "question_id": f"v1_{n}",
        "image": inside(n),
        "image_source": "x",
        "question": "What?",
        "answer": "a <AND> b",
        "capability": "ocr, math",
    }
    for n in (1, 2)
]
VET_JSON = [
    {
        "key": f"v1_{n}",
        "imagename": f"{n}.png",
        "question": "What?",
        "answer": "a <AND> b",
        "imagesource": "x",
        "capability": ["math", "ocr"],
    }
    for n in (1, 2)
]
VET_TSV = [{"index": n, "image": b64(n), "question": "What?", "answer": "a <AND> b", "category": "ocr,math"} for n in (1, 2)]
WILD = [
    {"question_id": n, "question": "Describe.", "image": inside(n), "caption": "c", "gpt_answer": "g", "category": "detail"} for n in (1, 2)
]
WILD_TSV = [
    {"index": n, "question": "Describe.", "image": b64(n), "caption": "c", "gpt4_ans": "g", "category": "llava_bench_detail"}
    for n in (1, 2)
]
POPE = [
    {"id": str(n), "question_id": str(n), "question": "Is there a dog?", "answer": "yes", "image_source": "COCO_1", "image": inside(n),
     "category": "random"}
    for n in (1, 2)
]  # fmt: skip
POPE_TSV = [{"index": n, "image": b64(n), "question": "Is there a dog?", "answer": "Yes", "category": "random"} for n in (1, 2)]
TAIL = "\nAnswer the question using a single word or phrase."
POPE_JSONL = [{"question_id": n, "image": f"images/{n}.png", "text": f"Is there a dog?{TAIL}", "category": "random"} for n in (1, 2)]
LABELS = [{"question_id": n, "image": f"images/{n}.png", "text": "Is there a dog?", "label": "yes"} for n in (1, 2)]
CRPE = [
    {"question_id": n, "image": f"images/{n}.png", "text": "Where?\nA. on\nB. under\nOnly the letter.", "correct_option": "B",
     "category": "predicate"}
    for n in (1, 2)
]  # fmt: skip
CRPE_TSV = [
    {"index": row["question_id"], "image_path": row["image"], "question": row["text"], "answer": "B", "category": "predicate"}
    for row in CRPE
]
HAL = [
    {"question_type": "attribute", "question_topic": "animal", "image_id": str(n), "image_src": "x", "image_content": ["dog"],
     "question": "What?", "gt_answer": "a dog", "image": b64(n)}
    for n in (1, 2)
]  # fmt: skip
HAL_PATHS = [without(row, "image") | {"image_path": f"images/{n}.png"} for n, row in enumerate(HAL, start=1)]
HAL_HUB = [row | {"image": inside(n)} for n, row in enumerate(HAL, start=1)]


def wild_files(base: Path) -> Path:
    jsonl(base / "questions.jsonl", [{"question_id": n, "image": f"00{n}.png", "text": "Describe.", "category": "detail"} for n in (1, 2)])
    jsonl(base / "context.jsonl", [{"image": f"00{n}.png", "caption": "c"} for n in (1, 2)])
    jsonl(base / "answers_gpt4.jsonl", [{"question_id": n, "text": "g", "answer_id": "x"} for n in (1, 2)])
    return base


def pope_files(base: Path) -> Path:
    jsonl(base / "coco" / "coco_pope_random.json", LABELS)
    return jsonl(base / "llava_pope_test.jsonl", POPE_JSONL)


Write = Callable[[Path], object]
FORMS: dict[str, dict[str, Write]] = {
    "mathvista": {
        "hub folder": lambda base: parquet(base / "data" / "testmini-00000-of-00001.parquet", VISTA),
        "saved data set": lambda base: arrow(base / "testmini" / "data-00000-of-00001.arrow", VISTA),
        "table": lambda base: tsv(base / "MathVista_MINI.tsv", VISTA_TSV),
        "official JSON": lambda base: keyed(base / "annot_testmini.json", [without(row, "decoded_image") for row in VISTA], "pid"),
    },
    "mathvision": {
        "hub folder": lambda base: parquet(base / "data" / "testmini-00000-of-00001.parquet", VISION),
        "saved data set": lambda base: arrow(base / "testmini" / "data-00000-of-00001.arrow", VISION),
        "table": lambda base: tsv(base / "MathVision_MINI.tsv", VISION_TSV),
        "official JSONL": lambda base: jsonl(base / "data" / "testmini.jsonl", [without(row, "decoded_image") for row in VISION]),
    },
    "m3cot": {
        "hub folder": lambda base: parquet(base / "data" / "test-00000-of-00001.parquet", COT),
        "saved data set": lambda base: arrow(base / "test" / "data-00000-of-00001.arrow", COT),
        "ScienceQA form": lambda base: jsonl(base / "test.jsonl", COT_JSONL),
    },
    "mmvet": {
        "hub folder": lambda base: parquet(base / "data" / "test-00000-of-00001.parquet", VET),
        "saved data set": lambda base: arrow(base / "test" / "data-00000-of-00001.arrow", VET),
        "table": lambda base: tsv(base / "MMVet.tsv", VET_TSV),
        "official JSON": lambda base: keyed(base / "mm-vet.json", VET_JSON, "key"),
    },
    "llava_bench": {
        "hub folder": lambda base: parquet(base / "data" / "train-00000-of-00001.parquet", WILD),
        "saved data set": lambda base: arrow(base / "train" / "data-00000-of-00001.arrow", WILD),
        "table": lambda base: tsv(base / "LLaVABench.tsv", WILD_TSV),
        "official JSONL": wild_files,
    },
    "pope": {
        "hub folder": lambda base: parquet(base / "data" / "test-00000-of-00001.parquet", POPE),
        "saved data set": lambda base: arrow(base / "test" / "data-00000-of-00001.arrow", POPE),
        "table": lambda base: tsv(base / "POPE.tsv", POPE_TSV),
        "official JSONL": pope_files,
    },
    "crpe": {
        "official JSONL": lambda base: jsonl(base / "crpe_relation.jsonl", CRPE),
        "hub folder": lambda base: parquet(base / "data" / "crpe_relation-0.parquet", CRPE),
        "table": lambda base: tsv(base / "CRPE_RELATION.tsv", CRPE_TSV),
    },
    "mmhal": {
        "official JSONL": lambda base: jsonl(base / "mmhal-bench_with_image.jsonl", HAL),
        "with paths": lambda base: jsonl(base / "mmhal-bench_with_image.jsonl", HAL_PATHS),
        "hub folder": lambda base: parquet(base / "data" / "test-00000-of-00001.parquet", HAL_HUB),
        "JSON": lambda base: listed(base / "mmhal.json", HAL),
    },
}  # fmt: skip
FILES = {"official JSON": {"mathvista": "annot_testmini.json"}, "JSON": {"mmhal": "mmhal.json"}}
"""Files that no folder search finds by itself, because every kind of JSON may lie there."""


def content(question: Question) -> tuple[object, ...]:
    """What must not depend on the format."""
    return question.text, question.answer, question.kind, question.choices, [Path(image.path).read_bytes() for image in question.images]


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in FORMS.items() for form in forms])
def test_every_format_gives_the_same_questions(tmp_path: Path, name: str, form: str) -> None:
    first = next(iter(FORMS[name]))
    found = []
    for chosen in (first, form):
        base = tmp_path / chosen.replace(" ", "-")
        for number in (1, 2):
            save_png(base / "images" / f"{number}.png", number)
            save_png(base / "images" / f"00{number}.png", number)
        FORMS[name][chosen](base)
        found.append(questions(name, base, FILES.get(chosen, {}).get(name, ".")))
    assert [content(question) for question in found[0]] == [content(question) for question in found[1]]
    assert len(found[0]) == 2
    assert found[0][0].domain == found[1][0].domain or form == "ScienceQA form"  # which has no domain


def test_a_folder_with_both_tables_gives_the_small_one(tmp_path: Path) -> None:
    tsv(tmp_path / "MathVision_MINI.tsv", VISION_TSV)
    tsv(tmp_path / "MathVision.tsv", [*VISION_TSV, *VISION_TSV])
    assert len(questions("mathvision", tmp_path)) == 2


def test_images_beside_the_folder_with_the_rows(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "testmini.jsonl", [without(row, "decoded_image") for row in VISION])
    for number in (1, 2):
        save_png(tmp_path / "images" / f"{number}.png", number)
    for path in (".", "data", "data/testmini.jsonl"):
        assert [len(question.images) for question in questions("mathvision", tmp_path, path)] == [1, 1]
