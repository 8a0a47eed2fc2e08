"""Rows as published files and other tools' users have them: read rightly, or refused by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failures import fails
from imported_pairs import imported, read_pairs
from preference_files import picture, turn
from table_files import jsonl, parquet

from mixpo.errors import SourceError

Row = dict[str, Any]

SIDES = {"chosen": "It is red.", "rejected": "It is blue."}
IMAGE = "<image>\nColor?"


def trl(content: object, **more: object) -> Row:
    return {
        "prompt": [turn("user", content)],
        "chosen": [turn("assistant", SIDES["chosen"])],
        "rejected": [turn("assistant", SIDES["rejected"])],
        **more,
    }


def encoded(folder: Path) -> str:
    return base64.b64encode((folder / "0.png").read_bytes()).decode()


READ: list[tuple[str, Callable[[Path], Row]]] = [
    # parts of a message as processors and servers take them
    ("trl", lambda folder: trl([{"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": "Color?"}])),
    ("trl", lambda folder: trl([{"image": "0.png"}, {"text": "Color?"}])),
    ("trl", lambda folder: trl([{"type": "image", "path": "0.png"}, {"type": "text", "text": "Color?", "image": None}])),
    ("trl", lambda folder: trl([{"type": "image", "text": None}, {"type": "text", "text": "Color?"}], images=[picture(folder, 0)])),
    # images inside of the text of a file
    ("trl", lambda folder: {"prompt": "Color?", "images": [f"data:image/png;base64,{encoded(folder)}"], **SIDES}),
    ("mmpr", lambda folder: {"question": "Color?", "image": encoded(folder), **SIDES}),
    # messages in a column of texts
    ("trl", lambda folder: {**{name: json.dumps(value) for name, value in trl("Color?").items()}, "images": ["0.png"]}),
    # TRL's columns beside one that ms-swift has too
    ("trl", lambda folder: {**trl("Color?"), "images": ["0.png"], "messages": [turn("user", "Color?"), turn("assistant", "It is red.")]}),
    # the forms that ms-swift reads beside `messages`
    ("ms-swift", lambda folder: {"query": "Color?", "response": "It is red.", "rejected_response": "It is blue.", "images": "0.png"}),
    (
        "ms-swift",
        lambda folder: {
            "conversations": [{"from": "human", "value": "<image>Color?"}, {"from": "gpt", "value": "It is red."}],
            "rejected_response": "It is blue.",
            "images": ["0.png"],
        },
    ),
]


@pytest.mark.parametrize(("kind", "make"), READ)
def test_it_is_read(folder: Path, kind: str, make: Callable[[Path], Row]) -> None:
    row = make(folder)
    stored = any(isinstance(image, dict) for image in row.get("images", ()))
    path = parquet(folder / "pairs.parquet", [row]) if stored else jsonl(folder / "pairs.jsonl", [row])
    pairs, skipped, notices = imported(path)
    assert not skipped
    assert f"read as {kind}" in [notice.text for notice in notices]
    ((question, pair),) = pairs
    assert (question.text, len(question.images), pair.chosen, pair.rejected) == (IMAGE, 1, "It is red.", "It is blue.")


def test_a_system_column_is_part_of_the_prompt(folder: Path) -> None:
    ((question, _),) = read_pairs(jsonl(folder / "pairs.jsonl", [{"system": "Be brief.", "question": "Color?", **SIDES}]))
    assert [(message.role, message.text) for message in question.history] == [("system", "Be brief.")]


LISTED: list[tuple[Row, str]] = [
    ({"prompt": "What?", "videos": ["a.mp4"], **SIDES}, "has videos"),
    ({"messages": [turn("user", "?"), turn("assistant", "a")], "rejected_response": "b", "tools": "[{}]"}, "has tools"),
    ({"messages": [turn("user", "?"), turn("assistant", "a")], "rejected_response": "b", "objects": {"ref": ["x"]}}, "has objects"),
    (trl([{"type": "video", "video": "a.mp4"}]), "a part of type 'video'"),
    ({**trl("?"), "chosen": [{**turn("assistant", "a"), "tool_calls": [{"id": 1}]}]}, "a message has tool_calls"),
    ({**trl("?"), "chosen": [{**turn("assistant", "a"), "reasoning_content": "so"}]}, "a message has reasoning_content"),
    ({"prompt": "", **SIDES}, "prompt is empty"),
    ({"prompt": "What?", "img_path": "0.png", **SIDES}, "a column 'img_path'"),
    ({"prompt": "What?", "image": "0.png", "image_2": "1.png", **SIDES}, "put all images of a row in one list"),
    ({"prompt": "What?", "image": "/9j/" + "A" * 99 + "!", **SIDES}, "is broken base64"),
]


@pytest.mark.parametrize(("row", "reason"), LISTED)
def test_a_row_that_would_become_another_is_listed(folder: Path, row: Row, reason: str) -> None:
    pairs, (skipped,), _ = imported(jsonl(folder / "pairs.jsonl", [row]))
    assert not pairs
    assert reason in skipped.reason


@pytest.mark.parametrize("column", ["input", "query", "text", "problem", "Question", "user"])
def test_no_prompt_is_guessed_beside_a_column_that_holds_one(folder: Path, column: str) -> None:
    """Both sides begin with "It is", which TRL's form without a prompt would take for the prompt."""
    path = jsonl(folder / "pairs.jsonl", [{column: "What color?", **SIDES}])
    with fails("preferences-unknown-format", SourceError) as failure:
        imported(path)
    assert "name the columns" in failure.message
    ((question, _),) = read_pairs(path, kind="jsonl", columns={"prompt": column})
    assert question.text == "What color?"


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prompt": "?", "completion": "a", "label": True}, "(KTO) is no pair"),
        ({"image": "0.png", "conversations": [{}], "rejected_conversations": [{}]}, "name the columns"),
        ({"image": "0.png", "conversations": [{}], "output_1": {}, "output_2": {}, "preference": 2}, "name the columns"),
    ],
)
def test_other_forms_of_preference_are_named(folder: Path, row: Row, hint: str) -> None:
    with fails("preferences-unknown-format", SourceError) as failure:
        imported(jsonl(folder / "pairs.jsonl", [row]))
    assert hint in failure.message


def test_llama_factory_names_what_it_has(folder: Path) -> None:
    rows = [{"q": [turn("user", "?")], "v": ["a.mp4"], "chosen": turn("assistant", "a"), "rejected": turn("assistant", "b")}] * 2
    jsonl(folder / "rows.jsonl", [{**rows[0], "v": None}, rows[1]])
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    index = {
        "clips": {
            "file_name": "rows.jsonl", "formatting": "openai", "ranking": True, "tags": tags, "columns": {"messages": "q", "videos": "v"},
        },
        "far": {"hf_hub_url": "who/what", "ranking": True},
    }  # fmt: skip
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(index))
    pairs, (skipped,), _ = imported(path, datasets=("clips",))
    assert [pair.chosen for _, pair in pairs] == ["a"]
    assert "has v, which is not supported" in skipped.reason
    with fails("preferences-on-the-hub", SourceError, key="far") as failure:
        imported(path)
    assert 'path = "who/what"' in failure.message


def test_a_text_that_is_no_utf8_in_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"One?", b"\xff\xfe", b"Three?"])
    prompts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    pq.write_table(pa.table({"prompt": prompts, **{side: [text] * 3 for side, text in SIDES.items()}}), folder / "pairs.parquet")
    pairs, (skipped,), _ = imported(folder / "pairs.parquet")
    assert [question.text for question, _ in pairs] == ["One?", "Three?"]
    assert skipped.where.endswith("pairs.parquet[1]")
    assert "not UTF-8" in skipped.reason


def test_types_of_arrow(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pa.large_list(pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))
    columns = {
        "prompt": pa.array(["Color?", "Two?"], pa.large_string()),
        "chosen": pa.array([SIDES["chosen"]] * 2).dictionary_encode(),
        "rejected": pa.array([SIDES["rejected"]] * 2, pa.large_string()),
        "images": pa.array([[picture(folder, 0)], None], stored),
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    pairs = read_pairs(folder / "pairs.parquet")
    assert [(question.text, len(question.images)) for question, _ in pairs] == [(IMAGE, 1), ("Two?", 0)]
