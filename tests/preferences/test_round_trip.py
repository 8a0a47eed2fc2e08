"""Whatever mixpo exports comes back through [[preferences]] unchanged: conversation, bytes of the images, both responses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from imported_pairs import content, imported, read_pairs
from table_files import jsonl

from mixpo.export.base import ExportCount
from mixpo.export.run import FORMATS
from mixpo.images import reference
from mixpo.pairs.provenance import make_pair
from mixpo.sources.build import make_question
from mixpo.types import Message, Pair, Question, Response

Rows = list[tuple[Question, Pair]]
FILES = {"trl": "pairs.jsonl", "ms-swift": "pairs.jsonl", "llama-factory": "dataset_info.json", "mmpr": "meta.json", "datasets": ""}
RECOGNISED = {"datasets": "trl"}


@pytest.fixture
def rows(folder: Path) -> Rows:
    """One image, several, none; earlier turns with images of their own; a system message alone."""
    images = [reference(folder / f"{number}.png") for number in range(3)]
    turns = (Message(role="user", text="<image>\nWhat is <image>\n?"), Message(role="assistant", text='A "cat".\n图'))
    system = Message(role="system", text="Be {brief}.")
    questions = [
        make_question(text="<image>\nWhat color?", images=images[:1], answer="red", domain="colors"),
        make_question(text="1 + 6?", answer="7"),
        make_question(text="Is <image>\nlike <image>\n?", images=images[1:]),
        make_question(text="And <image>\nnow?", images=images, history=turns),
        make_question(text="<image>\nWhich?", images=images[:1], history=[system]),
        make_question(text="And this?", history=[system, Message(role="user", text="This?"), Message(role="assistant", text="Yes.")]),
    ]
    made = []
    for question in questions:
        chosen, rejected = (Response(question=question.id, index=i, text=text) for i, text in enumerate((" so\n«7» {x}", "no <b>8</b>\t")))
        made.append((question, make_pair(question.id, chosen, rejected, "correctness", "7", "8")))
    return made


def contents(rows: Rows) -> list[tuple[object, ...]]:
    return sorted(content(*row) for row in rows)


def exported(form: str, rows: Rows, folder: Path) -> tuple[ExportCount, Path]:
    count = FORMATS[form](iter(rows), folder, lambda question, pair: question.text)
    return count, folder / FILES[form]


@pytest.mark.parametrize("form", FORMATS)
def test_it_comes_back(form: str, rows: Rows, folder: Path) -> None:
    count, path = exported(form, rows, folder / "out")
    # MMPR has one question a row.
    wanted = [row for row in rows if not row[0].history] if form == "mmpr" else rows
    assert count == (len(wanted), len(rows) - len(wanted))
    for kind in ("auto", RECOGNISED.get(form, form)):
        back = read_pairs(path, kind=kind)
        assert contents(back) == contents(wanted)
        assert {(pair.origin, question.verbatim) for question, pair in back} == {("imported", True)}


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_round_trip_changes_nothing(form: str, rows: Rows, folder: Path) -> None:
    """Imported pairs are exported as they came; ids stay, so pairs of one question stay together."""
    wanted = [row for row in rows if not row[0].history] if form == "mmpr" else rows
    first = read_pairs(exported(form, wanted, folder / "one")[1])
    second = read_pairs(exported(form, first, folder / "two")[1])
    assert sorted((q.id, p.id) for q, p in second) == sorted((q.id, p.id) for q, p in first)
    assert len({question.id for question, _ in first}) == len(wanted)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_folder_may_move(form: str, rows: Rows, folder: Path, move: Callable[[Path, Path], object]) -> None:
    """Also where its rows name absolute paths, and whether or not these still lead somewhere."""
    wanted = [row for row in rows if not row[0].history]
    exported(form, wanted, folder / "out")
    move(folder / "out", folder / "moved")
    assert contents(read_pairs(folder / "moved")) == contents(wanted)


def test_a_changed_copy_is_not_taken_for_the_image(rows: Rows, folder: Path) -> None:
    exported("trl", rows[:1], folder / "out")
    shutil.move(folder / "out", folder / "moved")
    (copy,) = (folder / "moved" / "images").glob("*/*.png")
    copy.write_bytes((folder / "2.png").read_bytes())
    ((skipped,), _) = imported(folder / "moved")[1:]
    assert "lies outside the root" in skipped.reason


def test_pairs_of_the_python_interface(rows: Rows, folder: Path) -> None:
    """Its dictionaries, written as JSON lines."""
    simple = [row for row in rows if not row[0].history]
    lines = [
        {"prompt": q.text, "chosen": p.chosen, "rejected": p.rejected, "images": [image.path for image in q.images]} for q, p in simple
    ]
    assert contents(read_pairs(jsonl(folder / "pairs.jsonl", lines))) == contents(simple)
