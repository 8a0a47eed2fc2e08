"""The JSONL source: good rows of every form, and malformed rows with the right line and hint."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mixpo.errors import SourceError
from mixpo.images import digest_file
from mixpo.sources import DUPLICATE
from mixpo.types import Question, Skipped

Both = tuple[list[Question], list[Skipped]]
GOOD = {"image": "0.png", "question": "What color?", "answer": "red"}


def test_every_form_of_a_row(jsonl: Callable[..., Both], folder: Path) -> None:
    questions, skipped = jsonl(
        GOOD,
        {"image": ["0.png", "1.png"], "question": "Same?", "answer": "no", "id": 7, "domain": "compare", "source": "mine"},
        {"image": ["2.png"], "question": "Is <image> blue?", "answer": "yes"},
        {"question": "What is 2 + 2?", "answer": 4},
        {"image": None, "question": "One plus one?", "answer": "2"},
        {"image": "", "question": "Say something."},
        {"question": "Any?", "image_id": 7, "answer_type": "text", "question_id": 1},
        {"image": str(folder / "1.png"), "question": "Which?\nA. red\nB. green", "answer": "B", "score": 0.5},
        domain="general",
    )
    assert skipped == []
    assert [(q.kind, q.answer, len(q.images), q.domain, q.source) for q in questions] == [
        ("text", "red", 1, "general", "data"),
        ("yes_no", "no", 2, "compare", "mine"),
        ("yes_no", "yes", 1, "general", "data"),
        ("number", "4", 0, "general", "data"),
        ("number", "2", 0, "general", "data"),
        ("none", None, 0, "general", "data"),
        ("none", None, 0, "general", "data"),
        ("choice", "B", 1, "general", "data"),
    ]
    assert questions[1].text == "<image>\n<image>\nSame?"
    assert questions[1].images[1].digest == digest_file(folder / "1.png")
    assert Path(questions[1].images[1].path) == folder / "1.png"


MALFORMED: list[tuple[object, str]] = [
    (b'{"question": "a", }', "not valid JSON: "),
    (b'{"question": "a"', "not valid JSON: "),
    (b'{"question": "\xff\xfe"}', "not UTF-8 text (byte 15 of the line)"),
    (b'"just text"', "holds text, not an object"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", "an integer has too many digits"),
    ({"image": "0.png"}, "no field 'question'; the row has 'image'"),
    ({}, "the row has no fields"),
    ({"image": "0.png", "question": 5}, "question must be text, not a number"),
    ({"image": "0.png", "question": " "}, "question is empty"),
    ({"image": "gone.png", "question": "a"}, "image 'gone.png' not found under"),
    ({"image": 5, "question": "a"}, "image must be a path or a list of paths, not a number"),
    ({"image": ["0.png", ""], "question": "a"}, "not an empty path"),
    ({"image": ["0.png", None], "question": "a"}, "not null"),
    ({"image": "../secret.png", "question": "a"}, "lies outside the root"),
    ({"image": "/etc/passwd", "question": "a"}, "lies outside the root"),
    ({"image": "link.png", "question": "a"}, "lies outside the root"),
    ({"image": "x\0y", "question": "a"}, "is not a usable path"),
    ({"image": "x" * 5000, "question": "a"}, "is not a usable path"),
    ({"image": "https://example.org/a.png", "question": "a"}, "is a URL; download it"),
    ({"image": "empty.png", "question": "a"}, "the file is empty (0 bytes)"),
    ({"image": "sub\\0.png", "question": "a"}, "write its path with /"),
    ({"image": 5, "question": "a"}, "image must be a path or a list of paths, not a number"),
    (None, "holds null, not an object"),
    ("a", "holds text, not an object"),
    ({"image": "sub", "question": "a"}, "not a regular file"),
    ({"images": ["0.png"], "question": "a"}, "unknown field 'images', did you mean 'image'? It would not be used"),
    ({"img": "0.png", "question": "a"}, "unknown field 'img', did you mean 'image'?"),
    ({"imge": "0.png", "question": "a"}, "unknown field 'imge', did you mean 'image'?"),
    ({"image": None, "image_path": "0.png", "question": "a"}, "unknown field 'image_path', did you mean 'image'?"),
    ({"prompt": "a", "answer": "b"}, "unknown field 'prompt', did you mean 'question'?"),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "gpt", "value": "c"}]},
        "must end with a user turn, not with the assistant's",
    ),
    ({"messages": [{"role": "user", "content": "a"}], "question": "b"}, "must alternate, not user, user"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "the role 'tool' is not supported"),
    ({"messages": [{"role": "user", "content": 5}]}, "must be text or a list of parts, not a number"),
    ({"question": "a", "anwser": "b"}, "unknown field 'anwser', did you mean 'answer'?"),
    ({"question": "a", "label": "b"}, "unknown field 'label', did you mean 'answer'?"),
    ({"image": "0.png", "question": "<image> <image> a"}, "the prompt has 2 <image> tokens but 1 image"),
    ({"question": "a", "answer": {"b": 1}}, "answer must be text or a number, not an object"),
    ({"question": "a", "answer": True}, "answer is true"),
    (b'{"question": "a", "answer": NaN}', "answer is nan"),
    ({"question": "a", "choices": "b"}, "choices must be a list, not text"),
    ({"question": "a", "domain": 3}, "domain must be text, not a number"),
]


@pytest.mark.parametrize(("row", "reason"), MALFORMED)
def test_malformed_rows_are_listed_with_line_and_hint(jsonl: Callable[..., Both], folder: Path, row: object, reason: str) -> None:
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    (folder / "0.png").rename(root / "0.png")
    (folder / "1.png").rename(folder / "secret.png")
    (root / "empty.png").touch()
    os.symlink(folder / "secret.png", root / "link.png")
    good, last = {**GOOD, "id": 1}, {**GOOD, "question": "And this?"}
    questions, skipped = jsonl(good, b"", row, last, root="root")
    assert [q.text for q in questions] == ["<image>\nWhat color?", "<image>\nAnd this?"]
    assert [s.where for s in skipped] == [f"{folder / 'data.jsonl'}:3"]
    assert reason in skipped[0].reason
    assert "\n" not in skipped[0].reason
    assert skipped[0].stage == "source"


def test_symbolic_links_inside_the_root_are_fine(jsonl: Callable[..., Both], folder: Path) -> None:
    os.symlink(folder / "0.png", folder / "link.png")
    questions, skipped = jsonl({**GOOD, "image": "link.png"})
    assert len(questions) == 1
    assert skipped == []


def test_duplicates_are_counted(jsonl: Callable[..., Both], folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    questions, skipped = jsonl(
        GOOD, {**GOOD, "id": 5}, {**GOOD, "image": "copy.png"}, {**GOOD, "answer": "blue"}, {**GOOD, "image": "1.png"}
    )
    assert len(questions) == 3
    assert [(s.where.rpartition(":")[2], s.reason) for s in skipped] == [("2", DUPLICATE), ("3", DUPLICATE)]


def test_wrong_kind_is_listed(jsonl: Callable[..., Both]) -> None:
    questions, skipped = jsonl(GOOD, {**GOOD, "answer": "5"}, answer_kind="number")
    assert [q.answer for q in questions] == ["5"]
    assert "the answer is 'red'" in skipped[0].reason


def test_byte_order_mark_and_windows_lines(jsonl: Callable[..., Both]) -> None:
    questions, skipped = jsonl(b'\xef\xbb\xbf{"question": "a"}\r', b'{"question": "b"}\r')
    assert [q.text for q in questions] == ["a", "b"]
    assert skipped == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b'[{"question": "a"}]', "one JSON array"),
        (None, "no such file"),
        (b"image,question,answer\n1.png,What?,3\n", r"data\.jsonl: is a table \(CSV or TSV\); write one JSON object a line"),
        (b'\n"image"\t"Question"\n1.png\tWhat?\n', "is a table"),
        (b"id;prompt\n", "is a table"),
        ('{"question": "a"}'.encode("utf-16"), "is UTF-16 text; save the file as UTF-8"),
        pytest.param(gzip.compress(b'{"question": "a"}', mtime=0), "is compressed; unpack it", id="gzip"),
        (b"PAR1\x15\x04", 'is a Parquet file; source.kind = "hub"'),
        (b"PK\x03\x04\x14", "is a zip archive"),
    ],
)
def test_unusable_files(collect: Callable[..., Both], folder: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (folder / "data.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        collect(kind="jsonl", path="data.jsonl")


def test_a_torn_last_line_is_said(collect: Callable[..., Both], folder: Path) -> None:
    (folder / "data.jsonl").write_bytes(b'{"question": "a"}\n{"question": "b\n{"question": "c')
    questions, skipped = collect(kind="jsonl", path="data.jsonl")
    assert [q.text for q in questions] == ["a"]
    assert [s.reason for s in skipped] == [
        "not valid JSON: Invalid control character at column 16",
        "not valid JSON: Unterminated string starting at column 14; the file ends in this line, so its end may be missing",
    ]


def test_rows_that_only_look_like_a_table_are_listed_one_by_one(collect: Callable[..., Both], folder: Path) -> None:
    (folder / "data.jsonl").write_bytes(b'"question", 5\n{"question": "a, b"}\n')
    with pytest.raises(SourceError, match="is a table"):
        collect(kind="jsonl", path="data.jsonl")
    (folder / "data.jsonl").write_bytes(b'what, ever\n{"question": "a, b"}\n')
    questions, skipped = collect(kind="jsonl", path="data.jsonl")
    assert ([q.text for q in questions], len(skipped)) == (["a, b"], 1)


def test_missing_root_and_folder_as_file(collect: Callable[..., Both], folder: Path) -> None:
    (folder / "data.jsonl").write_text('{"question": "a"}')
    with pytest.raises(SourceError, match=r"source\.root: .*nowhere is not a folder"):
        collect(kind="jsonl", path="data.jsonl", root="nowhere")
    with pytest.raises(SourceError, match="is not a file"):
        collect(kind="jsonl", path=".")


def test_order_of_rows_changes_no_id(jsonl: Callable[..., Both]) -> None:
    rows = [{**GOOD, "image": f"{n}.png"} for n in range(3)]
    forward, backward = jsonl(*rows)[0], jsonl(*reversed(rows))[0]
    assert forward == list(reversed(backward))
