"""Each format of ready-made pairs: the same two pairs written in it come in as the same records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import fails
from imported_pairs import content, imported, read_pairs
from preference_files import EVERY, IMAGES, Q1, Q2, SIDES, meta, mmpr, turn
from table_files import jsonl, parquet

from mixpo.errors import SourceError


@pytest.mark.parametrize(("kind", "write"), EVERY, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_the_same_pairs_in_every_format(folder: Path, kind: str, write: Callable[[Path], Path]) -> None:
    expected = [row[1:] for row in (content(*pair) for pair in read_pairs(mmpr(folder)))]
    assert [row[0] for row in expected] == [Q1, Q2]
    (folder / "meta.json").unlink()
    path = write(folder)
    pairs, skipped, notices = imported(path)
    assert not skipped
    assert [content(*pair)[1:] for pair in pairs] == expected
    assert ("read as " + kind) in [notice.text for notice in notices]
    assert [content(*pair)[1:] for pair in read_pairs(path, kind=kind)] == expected
    assert len({question.id for question, _ in pairs}) == 2
    for question, pair in pairs:
        assert (pair.origin, question.verbatim, pair.question) == ("imported", True, question.id)
        assert pair.provenance
        assert str(folder) not in pair.provenance


@pytest.mark.parametrize(("kind", "write"), EVERY, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_file_of_another_format_is_named(folder: Path, kind: str, write: Callable[[Path], Path]) -> None:
    path = write(folder)
    wrong = "ms-swift" if kind != "ms-swift" else "mmpr"
    with fails("preferences-other-format", SourceError) as failure:
        imported(path, kind=wrong)
    assert failure.parts[1:3] == (kind, wrong)


def test_any_columns_with_a_map(folder: Path) -> None:
    rows = [
        {"q": q, "good": c, "bad": r, "pics": i, "kind_of": "colors", "note": "x"}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ]
    path = jsonl(folder / "mine.jsonl", rows)
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "images": "pics", "domain": "kind_of"}
    pairs, skipped, notices = imported(path, kind="jsonl", columns=columns)
    assert not skipped
    assert [content(*pair)[1:] for pair in pairs] == [content(*pair)[1:] for pair in read_pairs(mmpr(folder))]
    assert pairs[0][0].domain == "colors"
    assert [notice.text for notice in notices] == ["columns that are not used: note (2 rows)"]
    with fails("preferences-unknown-format", SourceError):
        imported(path)
    with fails("preferences-no-column", SourceError, key="preferences.columns.chosen"):
        imported(path, kind="jsonl", columns={"prompt": "q"})


def test_a_mapped_column_must_be_there(folder: Path) -> None:
    """Neither a prompt is guessed nor an image lost because a name is wrong."""
    rows = [{"q": "What color?", "good": "It is red.", "bad": "It is blue.", "pics": ["0.png"]}]
    path, sides = jsonl(folder / "mine.jsonl", rows), {"chosen": "good", "rejected": "bad"}
    for columns, key in (
        (sides, "prompt"),
        ({**sides, "prompt": "question"}, "prompt"),
        ({**sides, "prompt": "q", "images": "pictures"}, "images"),
    ):
        with fails("preferences-no-column", SourceError, key=f"preferences.columns.{key}"):
            imported(path, kind="jsonl", columns=columns)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"question": "?", "chosen": "a", "rejected": "b"}, "mmpr"),
        ({"question": "?", "chosen": "a", "rejected": "b", "image": ["0.png"]}, "mmpr"),
        ({"question": "?", "chosen": "a", "rejected": "b", "image": "0.png", "ds_name": "x"}, "rlaif-v"),
        ({"question": "?", "chosen": "a", "rejected": "b", "image": {"path": "0.png", "bytes": None}}, "rlaif-v"),
        ({"instruction": "?", "chosen": "It is a", "rejected": "It is b"}, "llama-factory"),
        ({"conversations": [{"from": "human", "value": "?"}], "chosen": "It is a", "rejected": "It is b"}, "llama-factory"),
    ],
)
def test_formats_that_are_alike(folder: Path, row: dict[str, object], kind: str) -> None:
    path = jsonl(folder / "pairs.jsonl", [row])
    assert f"read as {kind}" in [notice.text for notice in imported(path)[2]]
    with fails("preferences-other-format", SourceError) as failure:
        imported(path, kind="trl")
    assert failure.parts[1:3] == (kind, "trl")


@pytest.mark.parametrize(
    ("row", "reader"),
    [
        ({"id": 1, "responses": ["a"]}, 'engine = "file"'),
        ({"question": "?", "answer": "a"}, "[source]"),
        ({"messages": [turn("user", "?"), turn("assistant", "a")]}, "[train.replay]"),
    ],
)
def test_a_file_without_pairs_is_named_for_what_it_is(folder: Path, row: dict[str, object], reader: str) -> None:
    with fails("preferences-unknown-format", SourceError) as failure:
        imported(jsonl(folder / "rows.jsonl", [row]))
    assert reader in failure.message


def test_images_under_another_name(folder: Path) -> None:
    """Under either name they are read in every format; a row with one of another tool's names is no text-only pair."""
    sides = {"chosen": "a", "rejected": "b"}
    for row in ({"question": "1?", "images": ["0.png"], **sides}, {"instruction": "2?", "image": "0.png", **sides}):
        ((question, _),) = read_pairs(jsonl(folder / "pairs.jsonl", [row]))
        assert len(question.images) == 1
    rows = [{"question": "1?", "img": "0.png", **sides}, {"question": "2?", "image": "0.png", "images": ["1.png"], **sides}]
    pairs, skipped, _ = imported(jsonl(folder / "pairs.jsonl", rows))
    assert not pairs
    assert [row.reason.partition(";")[0] for row in skipped] == [
        "has no image, but a column 'img'",
        "has both image and images, which differ",
    ]


def test_saved_datasets_are_read(folder: Path) -> None:
    import datasets

    rows = [{"prompt": q, "chosen": c, "rejected": r, "images": i} for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)]
    data = datasets.Dataset.from_list([{**row, "images": [str(folder / name) for name in row["images"]]} for row in rows])
    data = data.cast_column("images", datasets.Sequence(datasets.Image()))
    datasets.DatasetDict({"train": data}).save_to_disk(folder / "saved")
    assert [content(*pair) for pair in read_pairs(folder / "saved", root=str(folder))] == [
        content(*pair) for pair in read_pairs(mmpr(folder))
    ]


def test_several_turns_and_a_system_message(folder: Path) -> None:
    turns = [turn("system", "Be brief."), turn("user", "<image>\nWhat?"), turn("assistant", "A cat."), turn("user", "Which color?")]
    swift_row = {"messages": [*turns, turn("assistant", "Red.")], "rejected_response": "Blue.", "images": ["0.png"]}
    trl_row = {"prompt": turns, "chosen": [turn("assistant", "Red.")], "rejected": [turn("assistant", "Blue.")], "images": ["0.png"]}
    alpaca_row = {
        "instruction": "Which color?", "history": [["<image>\nWhat?", "A cat."]], "system": "Be brief.",
        "chosen": "Red.", "rejected": "Blue.", "images": ["0.png"],
    }  # fmt: skip
    made = [read_pairs(jsonl(folder / f"{n}.jsonl", [row]))[0] for n, row in enumerate((swift_row, trl_row, alpaca_row))]
    assert len({content(*pair) for pair in made}) == 1
    question = made[0][0]
    assert [(m.role, m.text) for m in question.history] == [
        ("system", "Be brief."), ("user", "<image>\nWhat?"), ("assistant", "A cat."),
    ]  # fmt: skip
    assert question.text == "Which color?"


def test_three_rated_completions_make_three_pairs(folder: Path) -> None:
    completions = {
        "model": ["a", "b", "c"], "response": ["best", "worst", "middle"],
        "annotations": [{"Helpfulness": {"Rating": rating}} for rating in ("5", "1", "3")],
    }  # fmt: skip
    path = parquet(folder / "rated.parquet", [{"prompt": "Which?", "completions": completions}])
    pairs = read_pairs(path)
    assert [(pair.chosen, pair.rejected) for _, pair in pairs] == [("best", "worst"), ("best", "middle"), ("middle", "worst")]
    assert len({question.id for question, _ in pairs}) == 1
    unrated = [{"response": "a", "rating": "nan"}, {"response": "b", "rating": 1}, {"response": "c", "rating": 2}]
    pairs = read_pairs(jsonl(folder / "rated.jsonl", [{"prompt": "Which?", "completions": unrated}]))
    assert [(pair.chosen, pair.rejected) for _, pair in pairs] == [("c", "b")]


def test_the_layout_of_the_released_mmpr(folder: Path) -> None:
    """Paths of meta.json begin with the name of the folder that it lies in; training is started beside that folder."""
    release = folder / "MMPR-v1.2"
    row = {"image": "0.png", "question": "<image>\nWhat color?", "chosen": "Red.", "rejected": "Blue."}
    jsonl(release / "annotations" / "set.jsonl", [row])
    (release / "images").mkdir()
    (folder / "0.png").rename(release / "images" / "0.png")
    entry = {
        "root": "MMPR-v1.2/images",
        "annotation": "MMPR-v1.2/annotations/set.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": 1,
    }
    (release / "meta.json").write_text(json.dumps({"set": entry}))
    assert len(read_pairs(release / "meta.json")) == len(read_pairs(release)) == 1
    release.rename(folder / "elsewhere")
    assert len(read_pairs(folder / "elsewhere")) == 1


@pytest.mark.parametrize(("value", "reason"), [("../..", "outside"), ("gone", "not found"), (5, "must be a path")])
def test_paths_of_meta_stay_below_its_folder(folder: Path, value: object, reason: str) -> None:
    path = meta(folder, [{"question": "?", "chosen": "a", "rejected": "b"}], root=value)
    with fails("mmpr-path", SourceError, key="set") as failure:
        imported(path)
    assert reason in failure.message


def test_repeat_time(folder: Path) -> None:
    rows = [{"question": f"What is {n}?", "chosen": "a", "rejected": "b"} for n in range(400)]
    half, _, notices = imported(meta(folder, rows, repeat_time=0.25))
    assert 70 <= len(half) <= 130  # 100 expected, standard deviation 8.7
    assert f"repeat_time = 0.25 drops {400 - len(half)} pairs" in [notice.text for notice in notices]
    assert {q.id for q, _ in half} == {q.id for q, _ in imported(meta(folder, rows[::-1], repeat_time=0.25))[0]}
    assert {pair.repeat for _, pair in read_pairs(meta(folder, rows, repeat_time=3))} == {3}
    assert {pair.repeat for _, pair in read_pairs(meta(folder, rows, repeat_time=1.5))} == {1, 2}
    with fails("repeat-time", SourceError, key="set"):
        imported(meta(folder, rows, repeat_time=0))
