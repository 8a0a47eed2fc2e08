"""MMPR collections: meta.json, prompts and pairs, and the way back from an export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from failures import fails

from mixpo.errors import SourceError
from mixpo.prompts import PROMPTS
from mixpo.sources.mmpr import bare_question

ROW = {"image": "0.png", "question": "<image>\nWhat color?", "answer": "red"}


def collection(folder: Path, entries: Mapping[str, Sequence[Mapping[str, object]]], **extra: object) -> Path:
    for name, rows in entries.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {name: {"root": ".", "annotation": f"{name}.jsonl", "repeat_time": 1, "data_augment": False, **extra} for name in entries}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


def test_prompts_become_questions(folder: Path, collect: Callable[..., Any]) -> None:
    other = {"image": ["1.png"], "question": "How many?", "answer_gt": 1}
    collection(folder, {"prompts": [ROW, {**ROW, "image": "gone.png"}], "others": [other, other]})
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert [(q.source, q.answer, q.kind, len(q.images)) for q in questions] == [("prompts", "red", "text", 1), ("others", "1", "number", 1)]
    assert [s.where for s in skipped] == [f"{folder / 'prompts.jsonl'}:2", f"{folder / 'others.jsonl'}:2"]
    assert "not found" in skipped[0].reason
    assert "duplicate" in skipped[1].reason


def test_pairs_are_refused(folder: Path, collect: Callable[..., Any]) -> None:
    collection(folder, {"prompts": [ROW], "pairs": [{**ROW, "chosen": "Red.", "rejected": "Blue."}]})
    with fails("source-holds-pairs", SourceError, path=folder / "pairs.jsonl", key="chosen") as failure:
        collect(kind="mmpr", path="meta.json")
    assert failure.parts[1:] == ("chosen, rejected", "mmpr", "mmpr")


def test_datasets_chooses(folder: Path, collect: Callable[..., Any]) -> None:
    collection(folder, {"first": [ROW], "second": [{**ROW, "answer": "blue"}]})
    assert [q.source for q in collect(kind="mmpr", path="meta.json", datasets=["second"])[0]] == ["second"]
    with pytest.raises(SourceError, match="no 'secnd', did you mean 'second'"):
        collect(kind="mmpr", path="meta.json", datasets=["secnd"])


def test_repeat_time_below_one_keeps_a_share_by_content(folder: Path, collect: Callable[..., Any], noticed: Callable[..., Any]) -> None:
    rows = [{"question": f"What is {n}?", "answer": n} for n in range(400)]
    collection(folder, {"set": rows}, repeat_time=0.25)
    kept, skipped = collect(kind="mmpr", path="meta.json")
    assert skipped == []
    assert 70 <= len(kept) <= 130  # 100 expected, standard deviation 8.7
    assert [(n.where, n.text) for n in noticed(kind="mmpr", path="meta.json")] == [
        (f"{folder / 'meta.json'}: set", f"repeat_time = 0.25 drops {400 - len(kept)} of 400 rows")
    ]
    collection(folder, {"set": list(reversed(rows[:200]))}, repeat_time=0.25)
    half = collect(kind="mmpr", path="meta.json")[0]
    assert {q.id for q in half} == {q.id for q in kept if int(q.answer or -1) < 200}
    collection(folder, {"set": rows}, repeat_time=0.5)
    assert {q.id for q in kept} < {q.id for q in collect(kind="mmpr", path="meta.json")[0]}


def test_repeat_time_above_one_counts_once(folder: Path, collect: Callable[..., Any]) -> None:
    collection(folder, {"set": [ROW]}, repeat_time=4)
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert (len(questions), skipped) == (1, [])


def test_a_torn_annotation_is_noticed(folder: Path, collect: Callable[..., Any], noticed: Callable[..., Any]) -> None:
    collection(folder, {"set": [ROW]}, length=90)
    questions, skipped = collect(kind="mmpr", path="meta.json")
    assert (len(questions), skipped) == (1, [])
    assert "length = 90, but" in noticed(kind="mmpr", path="meta.json")[0].text
    assert "has 1 row;" in noticed(kind="mmpr", path="meta.json")[0].text


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
def test_unusable_meta(folder: Path, collect: Callable[..., Any], meta: str | None, reason: str) -> None:
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
