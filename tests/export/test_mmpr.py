from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from failures import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imported_pairs import content, imported, read_pairs
from PIL import Image

from mixpo.errors import ImageError, RunError, SourceError
from mixpo.export.jsonl import export_trl
from mixpo.export.mmpr import MAX_SOURCES, export_mmpr
from mixpo.images import reference
from mixpo.pairs.provenance import make_pair
from mixpo.sources.build import make_question
from mixpo.types import ImageRef, Origin, Pair, Question, Response

Rows = list[tuple[Question, Pair]]


@pytest.fixture
def pictures(tmp_path: Path) -> list[ImageRef]:
    """Three pictures in one folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (4, 4), colour).save(folder / f"{number}.png")
    return [reference(folder / f"{number}.png") for number in range(3)]


def asked(text: str, images: Sequence[ImageRef] = (), answer: str | None = "7", source: str = "digits/preference") -> Question:
    return make_question(text=text, images=images, answer=answer, source=source, domain="sum")


def paired(
    question: Question,
    chosen: str = "so 7",
    rejected: str = "so 8",
    origin: Origin = "correctness",
    answers: tuple[str | None, str | None] = ("7", "8"),
    cut: int = 0,
) -> tuple[Question, Pair]:
    right, wrong = (
        Response(question=question.id, index=i, text=text, token_ids=(*map(ord, text), 0), prefix_len=cut * i)
        for i, text in enumerate((chosen, rejected))
    )
    return question, make_pair(question.id, right, wrong, origin, *answers)


@pytest.fixture
def rows(pictures: list[ImageRef]) -> Rows:
    """One row of every kind."""
    one, two, none = asked("<image>\nHow many?", pictures[:1]), asked("<image> or <image>?", pictures[:2]), asked("1 + 6?")
    choice = asked("Which?\nA. red\nB. blue", pictures[2:], answer="B", source="easy_vqa/train")
    unanswered = asked("Beschreibe «das» 图片.", pictures[1:2], answer=None)
    return [
        paired(one),
        paired(one, rejected="well", origin="format", answers=("7", None)),
        paired(two),
        paired(none),
        paired(choice, "It is blue: B", "It is red: A", answers=("B", "A")),
        paired(unanswered, "一个红色的球。", "一个红色的猫。", "dropout_ntp", (None, None), cut=3),
    ]


NAMES = [
    "digits_preference_correctness", "digits_preference_correctness_multi", "digits_preference_correctness_text",
    "digits_preference_dropout_ntp", "digits_preference_format", "easy_vqa_train_correctness",
]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- MMPR ----------------------------------------------------------------------------------------------------------------------


def test_files_are_as_the_trainer_reads_them(rows: Rows, tmp_path: Path) -> None:
    """Read the way MMPR training code does: json.load, readlines, os.path.join(root, image), started in the export's folder."""
    folder = tmp_path / "export"
    assert export_mmpr(iter(rows), folder) == (len(NAMES), 0)
    assert sum(path.is_file() for path in (folder / "images").rglob("*")) == 3
    meta = json.loads((folder / "meta.json").read_text())
    assert list(meta) == NAMES
    for name, entry in meta.items():
        fixed = {"data_augment": False, "max_dynamic_patch": 6, "repeat_time": 1, "length": 1, "annotation": f"annotations/{name}.jsonl"}
        assert entry == {"root": "." if name.endswith("_text") else "images", **fixed}
        raw = (folder / entry["annotation"]).read_bytes()
        assert raw.isascii()
        (row,) = (json.loads(line) for line in raw.decode("ascii").splitlines())
        images = row.get("image", [])
        assert isinstance(images, list) == (name.endswith(("_multi", "_text")))
        images = images if isinstance(images, list) else [images]
        assert row["question"].count("<image>") == len(images)
        for image in images:
            with Image.open(os.path.join(folder, entry["root"], image)) as picture:
                assert picture.size == (4, 4)
        assert row["chosen"]
        assert row["rejected"]
        assert ("answer_gt" in row) == ("dropout" not in name)


def test_a_row_holds_everything(rows: Rows, tmp_path: Path) -> None:
    export_mmpr(rows, tmp_path / "export")
    (row,) = lines(tmp_path / "export/annotations/digits_preference_format.jsonl")
    digest = rows[0][0].images[0].digest
    assert row == {
        "id": rows[1][1].id,
        "image": f"{digest[:2]}/{digest}.png",
        "question": "<image>\nHow many?",
        "chosen": "so 7",
        "rejected": "well",
        "answer_gt": "7",
        "chosen_meta": {"index": 0, "answer": "7", "token_ids": [*map(ord, "so 7"), 0]},
        "rejected_meta": {"index": 1, "answer": None, "token_ids": [*map(ord, "well"), 0], "cut": 0},
        "origin": "format",
        "domain": "sum",
        "question_id": rows[1][0].id,
    }


def test_round_trip(rows: Rows, tmp_path: Path) -> None:
    export_mmpr(rows, tmp_path / "export")
    back = read_pairs(tmp_path / "export/meta.json")
    assert sorted(content(*row) for row in back) == sorted(content(*row) for row in rows)
    assert {pair.origin for _, pair in back} == {"imported"}


def test_text_that_is_hard_to_carry_comes_back(pictures: list[ImageRef], tmp_path: Path) -> None:
    odd = "\x00 \u2028 \x85 😀 <image> 中文\r\n"
    questions = [asked("<image>\nWhat is it?", pictures[:1]), asked(f"{'long ' * 40_000}\x00😀", pictures[:1], answer="😀")]
    rows = [paired(question, f"right {odd}", f"wrong {odd}") for question in questions]
    export_mmpr(rows, tmp_path / "export")
    back = read_pairs(tmp_path / "export/meta.json")
    assert [content(*row) for row in back] == [content(*row) for row in rows]
    assert [question.answer for question, _ in back] == ["7", "😀"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4))
def test_any_text_survives(tmp_path: Path, pictures: list[ImageRef], texts: list[tuple[str, str]]) -> None:
    question = asked("How many?", pictures[:1])
    wanted = [(f"a{chosen}", f"b{rejected}") for chosen, rejected in texts]
    wanted = [pair for pair in wanted if all(c < "\ud800" or c > "\udfff" for c in "".join(pair))]
    if not wanted:
        return
    export_mmpr([paired(question, *sides) for sides in wanted], tmp_path / "export")
    back = [(pair.chosen, pair.rejected) for _, pair in imported(tmp_path / "export/meta.json")[0]]
    assert back == list(dict.fromkeys(wanted))


def test_the_prompt_can_be_rendered(rows: Rows, tmp_path: Path) -> None:
    export_mmpr(rows[:1], tmp_path / "export", render=lambda question, pair: f"{question.text}\nThink first.")
    assert lines(tmp_path / "export/annotations/digits_preference_correctness.jsonl")[0]["question"] == "<image>\nHow many?\nThink first."
    with fails("image-token-count", SourceError, key=rows[0][0].id):
        export_mmpr(rows[:1], tmp_path / "export", render=lambda question, pair: f"<image>{question.text}")


def test_a_failed_export_leaves_no_trace_of_itself(rows: Rows, tmp_path: Path) -> None:
    def torn() -> Iterator[tuple[Question, Pair]]:
        yield from rows
        raise SourceError("row 7 is broken", code="row-broken")

    folder = tmp_path / "export"
    export_mmpr(rows[:1], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SourceError, match="row 7"):
        export_mmpr(torn(), folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert after == {path: content for path, content in before.items() if path.suffix != ".png"}


def test_nothing_to_export(tmp_path: Path) -> None:
    with fails("no-pairs", RunError):
        export_mmpr([], tmp_path / "export")
    with fails("no-pairs", RunError):
        export_trl([], tmp_path / "trl")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_image(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "pictures/0.png").unlink()
    with fails("image-missing", ImageError, path=tmp_path / "pictures/0.png"):
        export_mmpr(rows, tmp_path / "export")
    with fails("image-missing", ImageError, path=tmp_path / "pictures/0.png"):
        export_trl(rows, tmp_path / "trl")


def test_a_changed_image_is_not_exported_as_if_nothing_had_happened(rows: Rows, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "black").save(tmp_path / "pictures/0.png")
    with fails("image-changed", ImageError, path=tmp_path / "pictures/0.png"):
        export_mmpr(rows, tmp_path / "export")


def test_names_are_safe_and_bounded(tmp_path: Path) -> None:
    sources = ["../../etc/passwd", "", "数据", "a" * 300] + [f"row {i}" for i in range(MAX_SOURCES)]
    rows = [paired(Question(id=f"q{i}", text="?", answer="7", kind="number", source=source)) for i, source in enumerate(sources)]
    assert export_mmpr(rows, tmp_path / "export") == (len(rows), 0)
    lengths = {name: entry["length"] for name, entry in json.loads((tmp_path / "export/meta.json").read_text()).items()}
    assert {"etc_passwd_correctness_text", "pairs_correctness_text", "other_correctness_text"} <= lengths.keys()
    assert lengths["pairs_correctness_text"] == 2
    assert lengths["other_correctness_text"] == 4
    assert sum(lengths.values()) == len(rows)
    assert all(path.parent == tmp_path / "export/annotations" for path in tmp_path.rglob("*.jsonl"))


# --- TRL -----------------------------------------------------------------------------------------------------------------------


def load(path: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))


def test_trl_comes_with_copies_of_its_images(rows: Rows, tmp_path: Path) -> None:
    """The folder is complete: what becomes of the originals does not matter."""
    export_trl(rows, tmp_path / "trl")
    lines = [json.loads(line) for line in (tmp_path / "trl" / "pairs.jsonl").read_text().splitlines()]
    images = [Path(image) for line in lines for image in line["images"]]
    assert images
    assert all(image.is_absolute() and image.is_relative_to((tmp_path / "trl" / "images").resolve()) for image in images)
    shutil.rmtree(tmp_path / "pictures")
    for path in images:
        with Image.open(path) as image:
            image.verify()


def test_trl_loads_in_one_call(rows: Rows, tmp_path: Path) -> None:
    odd = paired(rows[0][0], rejected="<image> shows 8")
    assert export_trl([*rows, odd], tmp_path / "trl") == (len(rows), 1)
    data = load(tmp_path / "trl/pairs.jsonl", tmp_path / "cache")
    assert data.num_rows == len(rows)
    assert data.column_names == ["images", "prompt", "chosen", "rejected", "id", "question_id", "origin"]
    assert [row["id"] for row in data][:2] == [rows[0][1].id, rows[1][1].id]
    assert data[-1]["images"] == []  # text-only questions come last
    assert data[0]["prompt"][0]["content"] == [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]
    two = next(row for row in data if len(row["images"]) == 2)
    (message,) = two["prompt"]
    assert message["role"] == "user"
    assert [(part["type"], part["text"]) for part in message["content"]] == [
        ("image", None),
        ("text", " or "),
        ("image", None),
        ("text", "?"),
    ]
    assert two["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "so 7"}]}]
    assert two["rejected"] == [{"role": "assistant", "content": [{"type": "text", "text": "so 8"}]}]
    cast = data.cast_column("images", datasets.List(datasets.Image()))
    assert cast[0]["images"][0].size == (4, 4)


def test_trl_loads_when_the_first_block_has_no_images(rows: Rows, tmp_path: Path) -> None:
    """`datasets` infers types from the first block; more text-only rows than fit into one must not break that."""
    none, one = rows[3], rows[0]
    long = paired(none[0], rejected="x" * 20_000)
    export_trl([long] * 1200 + [one], tmp_path / "trl")
    assert (tmp_path / "trl/pairs.jsonl").stat().st_size > 20e6
    data = load(tmp_path / "trl/pairs.jsonl", tmp_path / "cache")
    assert data.num_rows == 1201
    assert [len(row) for row in data["images"]] == [1] + [0] * 1200


@pytest.mark.parametrize("name", NAMES)
def test_each_mmpr_file_loads_in_one_call(rows: Rows, tmp_path: Path, name: str) -> None:
    export_mmpr(rows, tmp_path / "export")
    data = load(tmp_path / f"export/annotations/{name}.jsonl", tmp_path / "cache")
    assert data.num_rows == 1
