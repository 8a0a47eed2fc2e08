"""Nothing of a row is unused in silence: preference pairs and responses are refused by name, other columns are listed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_run
from failures import fails

from mixpo.cli import main
from mixpo.errors import SourceError

PROMPT = [{"role": "user", "content": "What?"}]
PAIRS = [
    ({"question": "What?", "chosen": "a", "rejected": "b"}, "mmpr", "chosen, rejected"),
    ({"prompt": "What?", "chosen": "a", "rejected": "b"}, "trl", "chosen, rejected"),
    ({"chosen": PROMPT, "rejected": PROMPT}, "trl", "chosen, rejected"),
    ({"messages": PROMPT, "rejected_response": "b"}, "ms-swift", "rejected_response"),
    ({"messages": PROMPT, "rejected_messages": PROMPT}, "ms-swift", "rejected_messages"),
    ({"conversations": PROMPT, "chosen": "a", "rejected": "b"}, "llama-factory", "chosen, rejected"),
    ({"instruction": "What?", "chosen": "a", "rejected": "b"}, "llama-factory", "chosen, rejected"),
    ({"prompt": "What?", "completions": [{"response": "a"}]}, "vlfeedback", "completions"),
]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("row", "kind", "held"), PAIRS)
def test_pairs_in_a_source_are_refused(folder: Path, collect: Callable[..., Any], row: dict[str, Any], kind: str, held: str) -> None:
    write(folder, [{"question": "What?", "answer": "a"}, row])
    with fails("source-holds-pairs", SourceError, path=folder / "data.jsonl") as failure:
        collect(kind="jsonl", path="data.jsonl")
    assert failure.parts[1:] == (held, "jsonl", kind)


def test_pairs_in_a_data_set_are_refused(folder: Path, collect: Callable[..., Any]) -> None:
    import datasets

    row = {"question": "What?", "answer": "a", "chosen": "a", "rejected": "b", "mood": "x"}
    datasets.Dataset.from_list([row]).save_to_disk(folder / "saved")
    with fails("source-holds-pairs", SourceError, key="chosen") as failure:
        collect(kind="hub", path="saved", image="")
    assert failure.parts[1:] == ("chosen, rejected", "hub", "mmpr")


def test_pairs_of_a_function_are_refused(folder: Path, collect: Callable[..., Any]) -> None:
    (folder / "gives_pairs.py").write_text(f"def rows():\n    yield {PAIRS[0][0]!r}\n")
    with fails("source-holds-pairs", SourceError, key="chosen"):
        collect(kind="python", target="gives_pairs:rows")


def test_unknown_columns_are_listed_once(folder: Path, noticed: Callable[..., Any]) -> None:
    write(folder, [{"question": f"{n}?", "answer": "a", "mood": "x", **({"level": 1} if n % 2 else {"level": None})} for n in range(40)])
    (notice,) = noticed(kind="jsonl", path="data.jsonl")
    assert (notice.where, notice.text) == (str(folder / "data.jsonl"), "columns that are not used: level (20 rows), mood (40 rows)")


def test_unknown_columns_of_a_data_set(folder: Path, noticed: Callable[..., Any]) -> None:
    import datasets

    datasets.Dataset.from_list([{"question": "What?", "answer": "a", "mood": "x"}] * 3).save_to_disk(folder / "saved")
    assert [notice.text for notice in noticed(kind="hub", path="saved", image="")] == ["columns that are not used: mood (3 rows)"]


def test_a_run_and_its_check_refuse_and_list(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    small_run.write_jsonl(tmp_path / "questions.jsonl", [{**row, "mood": "x"} for row in rows])
    assert main(["check", str(recipe), "--json"]) == 0
    assert [row["problem"] for row in json.loads(capsys.readouterr().out)["notices"]] == ["columns that are not used: mood (4 rows)"]
    context = small_run.open_small(recipe, tmp_path / "run")
    small_run.plan_of(context)
    assert f"source: {tmp_path / 'questions.jsonl'}: columns that are not used: mood (4 rows)" in small_run.said(context)
    manifest = context.run.stage("source").manifest
    assert manifest is not None
    assert manifest.facts["notices"] == [f"{tmp_path / 'questions.jsonl'}: columns that are not used: mood (4 rows)"]
    small_run.write_jsonl(tmp_path / "questions.jsonl", [{**row, "chosen": "a", "rejected": "b"} for row in rows])
    assert main(["check", str(recipe)]) == 3
    assert '[[preferences]] kind = "mmpr"' in capsys.readouterr().out
    assert main(["run", str(recipe), "--dir", str(tmp_path / "run")]) == 3
    assert '[[preferences]] kind = "mmpr"' in capsys.readouterr().err


def test_responses_belong_to_the_file_engine(tmp_path: Path, tiny_folder: Path) -> None:
    """The same file may hold questions and responses, if the recipe reads both."""
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    small_run.write_jsonl(tmp_path / "questions.jsonl", [{**row, "responses": ["a", "b"]} for row in rows])
    with fails("source-holds-responses", SourceError, key="sample.responses"):
        small_run.plan_of(small_run.open_small(recipe, tmp_path / "run"))
    text = recipe.read_text().replace('engine = "scripted"', 'engine = "file"\nresponses = "questions.jsonl"')
    recipe.write_text(text.replace("[evaluate]\n", '[evaluate]\nengine = "scripted"\n'))
    assert small_run.plan_of(small_run.open_small(recipe, tmp_path / "run")).shards("source")


def test_a_conversation_is_a_question(folder: Path, collect: Callable[..., Any]) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
    ]
    last = {"role": "user", "content": "Which color?"}
    write(folder, [
        {"messages": [*turns, last], "image": "0.png", "answer": "red"},
        {"messages": turns, "question": "Which color?", "image": "0.png", "answer": "red", "domain": "again"},
        {"conversations": [{"from": "human", "value": "What?"}], "image": ["0.png", "1.png"]},
    ])  # fmt: skip
    (first, other), skipped = collect(kind="jsonl", path="data.jsonl")
    assert [row.reason for row in skipped] == ["duplicate of an earlier row (same text, images, answer and choices)"]
    assert [(turn.role, turn.text) for turn in first.history] == [
        ("system", "Be brief."), ("user", "<image>\nWhat?"), ("assistant", "A cat."),
    ]  # fmt: skip
    assert (first.text, first.answer, len(first.images), first.verbatim) == ("Which color?", "red", 1, False)
    assert (other.text, other.history) == ("<image>\n<image>\nWhat?", ())
    write(folder, [{"question": "Which color?", "answer": "red", "image": "0.png"}])
    assert collect(kind="jsonl", path="data.jsonl")[0][0].id != first.id


def test_a_conversation_with_a_response(folder: Path, collect: Callable[..., Any]) -> None:
    """Chat data as SFT uses it: the last assistant turn is the response."""
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}, {"from": "human", "value": "Which color?"}]
    write(folder, [
        {"conversations": [*turns, {"from": "gpt", "value": "It is red."}], "image": "0.png"},
        {"messages": [{"role": "assistant", "content": "Hello."}]},
    ])  # fmt: skip
    ((question,), skipped) = collect(kind="jsonl", path="data.jsonl")
    assert (question.text, question.rationale, question.answer, len(question.history)) == ("Which color?", "It is red.", None, 2)
    assert [row.reason for row in skipped] == ["the prompt must end with a user turn, not with the assistant's"]


def test_a_column_of_conversations(folder: Path, collect: Callable[..., Any]) -> None:
    import datasets

    turns = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    datasets.Dataset.from_list([{"talk": turns, "answer": "4"}]).save_to_disk(folder / "saved")
    ((question,), skipped) = collect(kind="hub", path="saved", image="", messages="talk")
    assert (question.text, len(question.history), question.answer, skipped) == ("And 2 + 2?", 2, "4", [])
