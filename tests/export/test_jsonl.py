"""Exports read back: every pair comes out as it went in, with images that can be opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from failures import fails
from PIL import Image

from mixpo.errors import RunError
from mixpo.export import datasets as export_module
from mixpo.export.base import ExportCount
from mixpo.export.datasets import export_datasets, push
from mixpo.export.jsonl import export_llama_factory, export_swift, export_trl
from mixpo.images import reference
from mixpo.pairs.provenance import make_pair
from mixpo.sources.build import make_question
from mixpo.types import Pair, Question, Response

Rows = list[tuple[Question, Pair]]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Questions with one, two and no images; also text that would break a careless writer."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green")):
        Image.new("RGB", (4, 5), colour).save(folder / f"{number}.png")
    images = [reference(folder / f"{number}.png") for number in range(2)]
    made = []
    for text, used, answer in (("1 + 6?", [], "7"), ("<image>\nHow many?", images[:1], "7"), ("<image> or <image>? «图»", images, None)):
        question = make_question(text=text, images=used, answer=answer, source="s", domain="d")
        chosen, rejected = (Response(question=question.id, index=i, text=side) for i, side in enumerate(("so\n7 <b>", 'no "8"')))
        made.append((question, make_pair(question.id, chosen, rejected, "correctness", answer, "8")))
    return made


def render(question: Question, pair: object = None) -> str:
    return f"Think. {question.text}"


def by_images(rows: Rows) -> Rows:
    """In the order of the files: text-only questions last."""
    return sorted(rows, key=lambda row: not row[0].images)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def colours(paths: list[str]) -> list[object]:
    return [Image.open(path).convert("RGB").getpixel((0, 0)) for path in paths]


RED, GREEN = (255, 0, 0), (0, 128, 0)


def test_ms_swift(rows: Rows, tmp_path: Path) -> None:
    assert export_swift(iter(rows), tmp_path / "out", render) == (3, 0)
    for row, (question, pair) in zip(lines(tmp_path / "out" / "pairs.jsonl"), by_images(rows), strict=True):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"] == render(question)
        assert user["content"].count("<image>") == len(row["images"])
        assert (assistant["content"], row["rejected_response"]) == (pair.chosen, pair.rejected)
        assert colours(row["images"]) == [RED, GREEN][: len(question.images)]


def test_llama_factory(rows: Rows, tmp_path: Path) -> None:
    assert export_llama_factory(iter(rows), tmp_path / "out", render) == (3, 0)
    [(name, entry)] = json.loads((tmp_path / "out" / "dataset_info.json").read_text()).items()
    assert (name, entry["formatting"], entry["ranking"]) == ("mixpo", "sharegpt", True)
    columns = entry["columns"]
    for row, (question, pair) in zip(lines(tmp_path / "out" / entry["file_name"]), by_images(rows), strict=True):
        assert row[columns["messages"]] == [{"from": "human", "value": render(question)}]
        assert row[columns["chosen"]] == {"from": "gpt", "value": pair.chosen}
        assert row[columns["rejected"]] == {"from": "gpt", "value": pair.rejected}
        # Its `media_dir` is the `dataset_dir` where none is set.
        assert colours([tmp_path / "out" / path for path in row[columns["images"]]]) == [RED, GREEN][: len(question.images)]


@pytest.mark.parametrize(
    ("export", "placeholder", "kept"),
    [
        (export_swift, "<image>", False),
        (export_swift, "<bbox>", False),
        (export_llama_factory, "<image>", False),
        (export_llama_factory, "<video>", False),
        (export_llama_factory, "<bbox>", True),
        (export_llama_factory, "<images>", True),
    ],
)
def test_answers_that_spell_out_a_placeholder_are_left_out(
    rows: Rows, tmp_path: Path, export: Callable[..., ExportCount], placeholder: str, kept: bool
) -> None:
    """What both tools hold a row to: as many `<image>` as images over all messages, and no other placeholder at all."""
    question, pair = rows[1]
    odd = replace(pair, id="odd", rejected=f"as {placeholder} shows")
    word = "it" if placeholder == "<image>" else placeholder  # marks of a question always equal its images
    asked = make_question(text=f"<image>\nWhat does {word} mean?", images=question.images)
    strange = asked, replace(pair, id="strange")
    wrong = 0 if kept else 1 if placeholder == "<image>" else 2
    assert export([rows[1], (question, odd), strange], tmp_path / "out") == (3 - wrong, wrong)
    for line in (tmp_path / "out" / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert line.count("<image>") == len(row["images"])


@pytest.mark.parametrize("export", [export_swift, export_llama_factory, export_trl])
def test_many_text_only_pairs_first_load_all_the_same(rows: Rows, tmp_path: Path, export: Callable[..., ExportCount]) -> None:
    """`datasets` fixes the types of the columns by its first block: 10 MB, or as many bytes as it is told."""
    with_images = [row for row in rows if row[0].images]
    ((question, pair),) = (row for row in rows if not row[0].images)
    many = [(question, replace(pair, id=f"{number:032}")) for number in range(200)]
    path = tmp_path / "out" / "pairs.jsonl"
    assert export([*many, *with_images], path.parent) == (202, 0)
    settings: dict[str, Any] = {"data_files": str(path), "cache_dir": str(tmp_path / "cache"), "split": "train", "chunksize": 1 << 12}
    data = datasets.load_dataset("json", **settings)
    assert path.stat().st_size > 8 * settings["chunksize"]
    assert sorted(len(images) for images in data["images"]) == [0] * 200 + sorted(len(row[0].images) for row in with_images)


def test_datasets_in_one_call(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "ROWS", 2)
    assert export_datasets(iter(rows), tmp_path / "out", render) == (3, 0)
    data = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert data.features["images"].feature == datasets.Image()
    for row, (question, pair) in zip(data, rows, strict=True):
        assert [image.getpixel((0, 0)) for image in row["images"]] == [RED, GREEN][: len(question.images)]
        assert (row["prompt"], row["chosen"], row["rejected"]) == (render(question), pair.chosen, pair.rejected)
        assert (row["answer"], row["id"], row["question_id"]) == (question.answer, pair.id, question.id)
    streamed = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train", streaming=True)
    assert [row["id"] for row in streamed] == [pair.id for _, pair in rows]
    # A second, smaller export leaves nothing of the first behind.
    assert export_datasets(iter(rows[:1]), tmp_path / "out") == (1, 0)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1


def test_the_card_shows_images_and_nothing_of_it_is_markup(rows: Rows, tmp_path: Path) -> None:
    export_datasets(iter(rows), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nconfigs:\n")
    assert "3 pairs (3 correctness)" in card
    shown = [line.split("(")[1].rstrip(")") for line in card.splitlines() if line.startswith("![")]
    assert len(shown) == 2
    for name in shown:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (4, 5)
    assert "    7 <b>" in card.splitlines()
    assert not any(line.startswith("7 <b>") for line in card.splitlines())


def test_no_pairs(tmp_path: Path) -> None:
    for export in (export_swift, export_llama_factory, export_datasets):
        with fails("no-pairs", RunError):
            export(iter(()), tmp_path / "out")


def test_the_upload(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **how: Any) -> None:
            calls.append((name, how))

        def upload_folder(self, **how: Any) -> None:
            if how["repo_id"] == "no/no":
                raise OSError("token is missing\nlong story")
            calls.append((how["repo_id"], how))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(tmp_path, "me/pairs") == "https://huggingface.co/datasets/me/pairs"
    assert calls[0] == ("me/pairs", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == str(tmp_path)
    with fails("hub-refused", RunError, key="no/no"):
        push(tmp_path, "no/no")
