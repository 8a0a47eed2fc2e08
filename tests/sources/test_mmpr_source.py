"""MMPR collections: meta.json, prompts and pairs, and the way back from an export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixpo.errors import SourceError
from mixpo.export.mmpr import export_mmpr
from mixpo.images import reference
from mixpo.pairs.provenance import make_pair
from mixpo.prompts import PROMPTS
from mixpo.sources.build import make_question
from mixpo.sources.mmpr import bare_question, read_pairs
from mixpo.types import Pair, Question, Response, Skipped, content_id

ROW = {"image": "0.png", "question": "<image>\nWhat color?", "answer": "red"}


def collection(folder: Path, entries: dict[str, list[dict[str, object]]], **extra: object) -> Path:
    for name, rows in entries.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {name: {"root": ".", "annotation": f"{name}.jsonl", "repeat_time": 1, "data_augment": False, **extra} for name in entries}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


def test_prompts_and_pairs_become_questions(folder: Path, collect: Callable[..., object]) -> None:
    pair = {"image": ["1.png"], "question": "How many?", "chosen": "One.", "rejected": "Two.", "answer_gt": 1}
    collection(folder, {"prompts": [ROW, {**ROW, "image": "gone.png"}], "pairs": [pair, {**pair, "rejected": "Three."}]})
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert [(q.source, q.answer, q.kind, len(q.images)) for q in questions] == [("prompts", "red", "text", 1), ("pairs", "1", "number", 1)]
    assert [s.where for s in skipped] == [f"{folder / 'prompts.jsonl'}:2", f"{folder / 'pairs.jsonl'}:2"]
    assert "not found" in skipped[0].reason
    assert "duplicate" in skipped[1].reason


def test_datasets_chooses(folder: Path, collect: Callable[..., object]) -> None:
    collection(folder, {"first": [ROW], "second": [{**ROW, "answer": "blue"}]})
    assert [q.source for q in collect(kind="mmpr", path="meta.json", datasets=["second"])[0]] == ["second"]
    with pytest.raises(SourceError, match="no 'secnd', did you mean 'second'"):
        collect(kind="mmpr", path="meta.json", datasets=["secnd"])


def test_repeat_time_below_one_keeps_a_share_by_content(folder: Path, collect: Callable[..., object]) -> None:
    rows = [{"question": f"What is {n}?", "answer": n} for n in range(400)]
    collection(folder, {"set": rows}, repeat_time=0.25)
    kept, skipped = collect(kind="mmpr", path="meta.json")
    assert 70 <= len(kept) <= 130  # 100 expected, standard deviation 8.7
    assert [(s.where, s.reason) for s in skipped] == [
        (f"{folder / 'meta.json'}: set", f"repeat_time = 0.25 leaves out {400 - len(kept)} of 400 rows")
    ]
    collection(folder, {"set": list(reversed(rows[:200]))}, repeat_time=0.25)
    half = collect(kind="mmpr", path="meta.json")[0]
    assert {q.id for q in half} == {q.id for q in kept if int(q.answer or -1) < 200}
    collection(folder, {"set": rows}, repeat_time=0.5)
    assert {q.id for q in kept} < {q.id for q in collect(kind="mmpr", path="meta.json")[0]}


def test_repeat_time_above_one_counts_once(folder: Path, collect: Callable[..., object]) -> None:
    collection(folder, {"set": [ROW]}, repeat_time=4)
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert (len(questions), skipped) == (1, [])


def test_a_torn_annotation_is_noticed(folder: Path, collect: Callable[..., object]) -> None:
    collection(folder, {"set": [ROW]}, length=90)
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert len(questions) == 1
    assert "length = 90, but" in skipped[0].reason
    assert "has 1 row;" in skipped[0].reason


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ("[]", "must be an object"),
        ("{}", "at least one data set"),
        ('{"a": 5}', "a: must be an object with root and annotation"),
        ('{"a": {"root": "."}}', "a: annotation must be a path"),
        ('{"a": {"root": ".", "annotation": "gone.jsonl"}}', r"annotation .*gone\.jsonl not found"),
        ('{"a": {"root": "gone", "annotation": "a.jsonl"}}', "root .*gone is not a folder"),
        ('{"a": {"root": "..", "annotation": "a.jsonl"}}', r"root '\.\.' lies outside"),
        ('{"a": {"root": ".", "annotation": "/etc/passwd"}}', "annotation '/etc/passwd' lies outside"),
        ('{"a": {"root": ".", "annotation": "a.jsonl", "repeat_time": 0}}', "repeat_time must be a number above 0"),
        ('{"a": {"root": ".", "annotation": "a.jsonl", "repeat_time": NaN}}', "repeat_time must be a number above 0"),
        ('{"a": {"root": ".", "annotation": "a.jsonl", "length": "3"}}', "length must be a whole number"),
    ],
)
def test_unusable_meta(folder: Path, collect: Callable[..., object], meta: str | None, reason: str) -> None:
    (folder / "a.jsonl").write_text(json.dumps(ROW))
    if meta is not None:
        (folder / "meta.json").write_text(meta)
    with pytest.raises(SourceError, match=reason):
        collect(kind="mmpr", path="meta.json")


@pytest.mark.parametrize("name", sorted(set(PROMPTS) - {"plain", "brief", "boxed", "think"}))
def test_wrapping_is_taken_off(name: str) -> None:
    assert bare_question("<image>\n" + PROMPTS[name].render("What is {x}?")) == "<image>\nWhat is {x}?"


def test_a_bare_question_stays(folder: Path) -> None:
    for text in ("<image>\nWhat?", "What?", "Is <image> like <image>?", "<image>\n<image>\nWhat?"):
        assert bare_question(text) == text
    assert bare_question("What?\nAnswer with the option's letter from the given choices directly.") == "What?"


# --- pairs ---------------------------------------------------------------------------------------------------------------

PAIR = {"image": "0.png", "question": "What color?\nA. red\nB. blue", "chosen": "It is red. Final answer: A", "rejected": "Final answer: B"}


def test_released_pairs_come_in_as_text(folder: Path) -> None:
    found = list(read_pairs(collection(folder, {"set": [{**PAIR, "answer_gt": "A"}]}), folder))
    assert len(found) == 1
    assert not isinstance(found[0], Skipped)
    question, pair = found[0]
    assert (question.answer, question.kind, question.source) == ("A", "choice", "set")
    assert pair == Pair(
        id=content_id("correctness", question.id, PAIR["chosen"], PAIR["rejected"], -1, -1, 0),
        question=question.id,
        chosen=PAIR["chosen"],
        rejected=PAIR["rejected"],
        origin="correctness",
    )


def test_provenance_is_restored(folder: Path) -> None:
    row = {
        **PAIR,
        "answer_gt": None,
        "chosen_meta": {"index": 3, "token_ids": [1, 2, 3], "answer": "A"},
        "rejected_meta": {"index": 5, "token_ids": [1, 4], "answer": None, "cut": 1},
        "origin": "dropout_ntp",
    }
    ((question, pair),) = read_pairs(collection(folder, {"set": [row]}), folder)  # type: ignore[misc]
    assert isinstance(question, Question)
    assert (pair.origin, pair.cut, pair.chosen_index, pair.rejected_index) == ("dropout_ntp", 1, 3, 5)
    assert (pair.chosen_ids, pair.rejected_ids, pair.chosen_answer, pair.rejected_answer) == ((1, 2, 3), (1, 4), "A", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "chosen must be text"),
        ({"rejected": ""}, "rejected must be text"),
        ({"rejected": PAIR["chosen"]}, "the same text"),
        ({"origin": "magic"}, "origin must be one of"),
        ({"chosen_meta": {"token_ids": "1 2"}}, "token_ids must be a list of whole numbers"),
        ({"chosen_meta": {"index": 1.5}}, "index must be a whole number"),
        ({"image": "../x.png"}, "lies outside the root"),
    ],
)
def test_bad_pairs_are_listed(folder: Path, change: dict[str, object], reason: str) -> None:
    found = list(read_pairs(collection(folder, {"set": [{**PAIR, **change}, PAIR]}), folder))
    assert isinstance(found[0], Skipped)
    assert found[0].where == f"{folder / 'set.jsonl'}:1"
    assert reason in found[0].reason
    assert isinstance(found[1], tuple)


def test_an_export_comes_back_whole(folder: Path) -> None:
    images = [reference(folder / f"{n}.png") for n in range(3)]
    questions = [
        make_question(text="What color?", images=images[:1], answer="red", domain="color", source="s"),
        make_question(text="Is <image> like <image>?", images=images[1:], answer="no", source="s"),
        make_question(text="哪个？", answer="B", choices=["红", "蓝"], source="s"),
        make_question(text="Describe it.", images=images[2:], source="s"),
    ]
    rows = [(q, made(q, i, origin)) for q in questions for i, origin in enumerate(("correctness", "format", "dropout_ntp"))]
    export_mmpr(rows, folder / "out")
    back = [item for item in read_pairs(folder / "out" / "meta.json", folder / "out") if not isinstance(item, Skipped)]
    assert {pair.id: pair for _, pair in back} == {pair.id: pair for _, pair in rows}
    found = {question.id: question for question, _ in back}
    for question in questions:
        same = found[question.id]
        assert (same.text, same.answer, same.kind, same.choices, same.domain) == (
            question.text,
            question.answer,
            question.kind,
            question.choices,
            question.domain,
        )
        assert [image.digest for image in same.images] == [image.digest for image in question.images]


def made(question: Question, number: int, origin: str) -> Pair:
    chosen = Response(question=question.id, index=number, text=f"Right {number}. 答案: A\n", token_ids=(1, 2, number))
    rejected = Response(question=question.id, index=9, text="Wrong\u2028", token_ids=(3,), prefix_len=int(origin == "dropout_ntp"))
    return make_pair(question.id, chosen, rejected, origin, "A", None)  # type: ignore[arg-type]
