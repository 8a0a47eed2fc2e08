"""MM-Vet, LLaVA-Bench and MMHal: formats, what a judge is shown, how replies are read, figures by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bench_files import b64, fact, png, questions, reason, save_png, value
from table_files import jsonl, parquet, tsv

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks import BENCHMARKS, Figure, GradedRow, facts_of, llava_bench, mmhal, mmvet, prompt_of
from mixpo.evaluate.benchmarks.metrics import table
from mixpo.types import Question


def figures(name: str, asked: list[Question], replies: list[str]) -> list[Figure]:
    rows = [GradedRow(question=q, facts=facts_of(q), outcome="correct", reply=reply) for q, reply in zip(asked, replies, strict=True)]
    return table(BENCHMARKS[name], rows)


# --- MM-Vet ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vet(tmp_path: Path) -> list[Question]:
    rows = {
        f"v1_{n}": {"imagename": f"v1_{n}.png", "question": "What is x?", "answer": "-1 <AND> -5", "imagesource": "x", "capability": names}
        for n, names in enumerate((["ocr", "math"], ["rec"], ["math", "ocr"]))
    }
    for n in range(3):
        save_png(tmp_path / "images" / f"v1_{n}.png", n)
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    return questions("mmvet", tmp_path)


def test_mmvet_reads_the_official_json(vet: list[Question]) -> None:
    assert [fact(q, "id") for q in vet] == ["v1_0", "v1_1", "v1_2"]
    assert vet[0].text == "<image>\nWhat is x?"
    assert fact(vet[2], "capabilities") == ["math", "ocr"]
    assert prompt_of(vet[0], "direct") == vet[0].text
    assert "Final answer" not in (prompt_of(vet[0], "cot") or "Final answer")


def test_mmvet_other_formats(tmp_path: Path) -> None:
    hub = {"question_id": "v1_0", "image": {"bytes": png(), "path": None}, "question": "q", "answer": "a", "capability": "rec, know"}
    parquet(tmp_path / "data" / "test-0.parquet", [hub])
    (first,) = questions("mmvet", tmp_path)
    table_row = {"index": 5, "image": b64(), "question": "q", "answer": "a", "category": "know,rec"}
    (second,) = questions("mmvet", tmp_path, tsv(tmp_path / "MMVet.tsv", [table_row]))
    assert fact(first, "capabilities") == fact(second, "capabilities") == ["know", "rec"]


@pytest.mark.parametrize(
    ("reply", "mark"),
    [("0.5", 0.5), ("0.5 .", 0.5), ("Correctness: 0.5", 0.5), ("1", 1.0), ("1.0", 1.0), ("0", 0.0), (" .7\n", 0.7), ("", None),
     ("good", None),     ("0.5 or 0.6", None), ("1.5", None), ("10", None), ("-1", None), ("2", None)],
)  # fmt: skip
def test_mmvet_marks(reply: str, mark: float | None) -> None:
    assert mmvet.read(reply) == (None if mark is None else (mark,))


def test_mmvet_figures_by_hand(vet: list[Question]) -> None:
    found = figures("mmvet", vet, ["0.5", "1.0", "nonsense"])
    assert (found[0].value, found[0].n, found[0].excluded) == (75.0, 2, 1)  # never (0.5 + 1 + 0) / 3
    assert (value(found, "ocr", "capability"), value(found, "math", "capability"), value(found, "rec", "capability")) == (50.0, 50.0, 100.0)
    assert value(found, "math+ocr", "combination") == 50.0
    # Two marks can only be drawn as 50, 75 or 100.
    assert (found[0].low, found[0].high) == (50.0, 100.0)


# --- LLaVA-Bench -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    for n in (1, 2):
        save_png(tmp_path / "images" / f"00{n}.jpg", n)
    asked = [
        {"question_id": n, "image": f"00{n % 2 + 1}.jpg", "text": f"Q{n}", "category": c}
        for n, c in enumerate(("conv", "detail", "complex"))
    ]
    jsonl(tmp_path / "questions.jsonl", asked)
    jsonl(tmp_path / "context.jsonl", [{"image": "001.jpg", "caption": ["one", "two"]}, {"image": "002.jpg", "caption": "three"}])
    jsonl(tmp_path / "answers_gpt4.jsonl", [{"question_id": n, "text": f"ref {n}", "answer_id": "x"} for n in (2, 1, 0)])
    return tmp_path


def test_llava_joins_context_and_reference(wild: Path) -> None:
    found = questions("llava_bench", wild)
    assert [(q.answer, fact(q, "context")) for q in found] == [("ref 0", "one\ntwo"), ("ref 1", "three"), ("ref 2", "one\ntwo")]
    assert prompt_of(found[0], "direct") == "<image>\nQ0\nAnswer this question in detail."
    jsonl(wild / "context.jsonl", [{"image": "002.jpg", "caption": "three"}])
    with pytest.raises(SourceError, match=r"no context of image 001\.jpg; keep context\.jsonl"):
        questions("llava_bench", wild)


def test_llava_other_formats(tmp_path: Path) -> None:
    hub = {
        "question_id": 1,
        "question": "q",
        "image": {"bytes": png(), "path": None},
        "caption": "c",
        "gpt_answer": "g",
        "category": "conv",
    }
    parquet(tmp_path / "data" / "train-0.parquet", [hub])
    (first,) = questions("llava_bench", tmp_path)
    line = {"index": 1, "question": "q", "image": b64(), "caption": "c", "gpt4_ans": "g", "category": "llava_bench_conv"}
    (second,) = questions("llava_bench", tmp_path, tsv(tmp_path / "LLaVABench.tsv", [line]))
    assert [(q.answer, q.domain, fact(q, "context")) for q in (first, second)] == [("g", "conv", "c")] * 2


@pytest.mark.parametrize(
    ("reply", "marks"),
    [("8 7\nbecause", (8, 7)), ("Assistant 1: 8\nAssistant 2: 9", (8, 9)), ("<think>3 4</think> 8 9", (8, 9)),
     ("Assistant 1: 8/10, Assistant 2: 9/10\nmore", (8, 9)), ("Assistant 1 is 3 times better", None),
        ("Assistant 1 scores 8 and Assistant 2 scores 9.", (8, 9)), ("Assistant 1 scores 8 and Assistant 2 scores 90.", None),
        ("Assistant 1: 80\nAssistant 2: 9", None),
     ("<think>8 9", None), ("8, 7", (8, 7)), ("8 7 ", (8, 7)), ("8.5 7\n", (8.5, 7)), ("8/10 and 7/10", (8, 7)),
     ("\n\nScores:\n9 10", (9, 10)),
     ("", None), ("8", None), ("good and bad", None), ("0 7", None), ("8 11", None), ("1: 8, 2: 7", None)],
)  # fmt: skip
def test_llava_marks(reply: str, marks: tuple[float, float] | None) -> None:
    assert llava_bench.read(reply) == marks


def test_llava_is_a_ratio_of_means(wild: Path) -> None:
    found = figures("llava_bench", questions("llava_bench", wild), ["10 5", "4, 4", "??"])
    assert found[0].value == pytest.approx(900 / 14)  # a mean of ratios would be 75
    assert (found[0].n, found[0].excluded) == (2, 1)
    assert [figure.value for figure in found[1:3]] == [45.0, 70.0]
    assert [value(found, name, "category") for name in ("conv", "detail")] == [50.0, 100.0]
    assert math.isnan(value(found, "complex", "category"))
    assert (found[0].low, found[0].high) == (50.0, 100.0)  # one of the two images drawn twice
    assert figures("llava_bench", questions("llava_bench", wild), ["5 10", "5 10", "5 10"])[0].value == 200.0
    # Images 002 (rows 0 and 2: 9/20) and 001 (row 1: 4/4): one of them drawn twice gives the ends.
    spread = figures("llava_bench", questions("llava_bench", wild), ["10 5", "4, 4", "10 4"])[0]
    assert spread.value == pytest.approx(1300 / 24)
    assert (spread.low, spread.high) == (45.0, 100.0)


# --- MMHal ------------------------------------------------------------------------------------------------------------------


def hal(number: int, kind: str) -> dict[str, object]:
    return {
        "question_type": kind, "question_topic": "animal", "image_id": str(number), "image_src": "x", "image_content": ["dog", "grass"],
        "question": f"Q{number}?", "gt_answer": "a dog", "image": b64(number),
    }  # fmt: skip


def test_mmhal_reads_images_inside_the_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "mmhal-bench_with_image.jsonl", [hal(1, "attribute"), hal(2, "other")])
    found = questions("mmhal", tmp_path)
    assert Path(found[1].images[0].path).read_bytes() == png(2)
    assert fact(found[0], "context") == "dog, grass"
    assert prompt_of(found[0], "direct") == "<image>\nQ1?"
    cot = prompt_of(found[0], "cot") or ""
    assert cot.startswith("<image>\nQ1?\n\nPlease think step by step")
    assert "Rationale:\n{rationale}\nAnswer: {answer}" in cot


def test_mmhal_broken_images_are_said(tmp_path: Path) -> None:
    from bench_files import load

    jsonl(
        tmp_path / "mmhal-bench_with_image.jsonl",
        [{**hal(1, "attribute"), "image": b64(1)[:-3]}, {**hal(2, "other"), "image": "data:image/png;base64," + b64(2)},
         {**hal(3, "other"), "image": "../../etc/passwd"}, {**hal(4, "other"), "image": "A" * 200},
         {**hal(5, "other"), "image": "data:text,x"}],
    )  # fmt: skip
    cut, good, outside, text, plain = load("mmhal", tmp_path)
    assert "not valid base64" in reason(cut)
    assert isinstance(good, Question)
    assert "outside the root" in reason(outside)
    assert "not an image" in reason(text)
    assert "data URI without base64" in reason(plain)


@pytest.mark.parametrize(
    ("reply", "mark"),
    [("Fine.\nRating: 5", 5), ("**Rating: 5**", 5), ("Rating:5", 5), ("Rating: **5**", 5), ("rating: 0, no", 0), ("Rating: 3.", 3),
     ("Rating: 4\nRating: 4", 4), ("Rating: 4\nRating: 2", None), ("5", None), ("Rating: 7", None), ("Rating: 55", None), ("", None),
     ("Rating: 2 or 3", None), ("Rating: 2-3", None), ("<think>Rating: 1</think>Rating: 4", 4)],
)  # fmt: skip
def test_mmhal_ratings(reply: str, mark: int | None) -> None:
    assert mmhal.read(reply) == (None if mark is None else (mark,))


def test_mmhal_figures_by_hand(tmp_path: Path) -> None:
    """Types come from the rows: here they are in another order than the official cycle."""
    jsonl(tmp_path / "mmhal-bench_with_image.jsonl", [hal(n, kind) for n, kind in enumerate(("other", "attribute", "other", "counting"))])
    found = figures("mmhal", questions("mmhal", tmp_path), ["Rating: 6", "Rating:2", "Rating: 1", "I will not rate."])
    assert (found[0].value, found[0].n, found[0].excluded) == (3.0, 3, 1)
    assert value(found, "hallucination rate") == pytest.approx(200 / 3)
    assert value(found, "informativeness") == pytest.approx(100 * (1 + 2 / 3 + 1 / 3) / 3)
    assert (value(found, "other", "type"), value(found, "attribute", "type")) == (3.5, 2.0)


def test_what_is_judged_of_a_response() -> None:
    text = "Rationale:\nAnswer: early\nAnswer: late"
    assert mmhal.part(text, "cot") == "late"
    assert mmhal.part(text, "direct") == text
    assert mmhal.part(" no marker ", "cot") == "no marker"
