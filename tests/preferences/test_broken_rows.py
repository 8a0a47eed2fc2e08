"""One broken row of each kind in every format: counted and listed by file and line, and the others are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_run
from failures import fails
from preference_files import parts, picture, turn
from table_files import jsonl, parquet

from mixpo.cli import main
from mixpo.errors import SourceError
from mixpo.stages.imported import PairImport

Row = dict[str, Any]


def mmpr(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"question": prompt, "chosen": chosen, "rejected": rejected, "image": images[0]}


def rlaif_v(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"question": prompt, "chosen": chosen, "rejected": rejected, "image": [{"path": name, "bytes": None} for name in images]}


def rlhf_v(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"text": json.dumps({"question": prompt, "chosen": chosen, "rejected": rejected}), "image": images[0]}


def trl(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "images": images}


def trl_conversation(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    sides = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return {"prompt": [turn("user", parts(prompt) if "<image>" in prompt else prompt)], **sides, "images": images}


def swift(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"messages": [turn("user", prompt), turn("assistant", chosen)], "rejected_response": rejected, "images": images}


def sharegpt(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    sides = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
    return {"conversations": [{"from": "human", "value": prompt}], **sides, "images": images}


def alpaca(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"instruction": prompt, "chosen": chosen, "rejected": rejected, "images": images}


def vlfeedback(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"prompt": prompt, "completions": [{"response": chosen, "rating": 5}, {"response": rejected, "rating": 1}], "images": images}


def own(prompt: str, chosen: object, rejected: object, images: list[str]) -> Row:
    return {"q": prompt, "good": chosen, "bad": rejected, "pics": images}


FORMATS: list[Callable[[str, Any, Any, list[str]], Row]] = [
    mmpr, rlaif_v, rlhf_v, trl, trl_conversation, swift, sharegpt, alpaca, vlfeedback, own,
]  # fmt: skip
OWN = 'kind = "jsonl"\ncolumns = { prompt = "q", chosen = "good", rejected = "bad", images = "pics" }\n'

IMAGES = ["0.png"]
BROKEN: list[tuple[tuple[str, Any, Any, list[str]], str]] = [
    (("What?", "a", "b", ["gone.png"]), "image 'gone.png' not found"),
    (("What?", "a", "b", ["text.png"]), "not an image"),
    (("What?", 5, "b", IMAGES), "not a number"),
    (("What?", "a", None, IMAGES), "null|is empty"),
    (("What?", " ", "b", IMAGES), "is empty"),
    (("What?", "same", "same ", IMAGES), "the same text"),
    (("<image>\n<image>\nWhat?", "a", "b", IMAGES), "2 <image> tokens but 1 image"),
    ((" ", "a", "b", IMAGES), "is empty|no prompt|no user turn"),
]
"""What is given, and words of the reason, one of which must stand there."""

RAW = [
    (b'{"question": "\xff"}', "not UTF-8 text"),
    (b'{"question": ', "not valid JSON"),
    (b"[1]", "holds a list"),
    (b'{"x": "' + b"y" * (10 << 20) + b'"}', "longer than 4 MB"),
]


def recipe_of(folder: Path, model: Path, name: str, table: str = "") -> Path:
    path = folder / "recipe.toml"
    path.write_text(f'[[preferences]]\npath = "{name}"\n{table}[model]\npath = "{model}"\ndevice = "cpu"\n')
    return path


def import_all(recipe: Path) -> tuple[Mapping[str, int], dict[str, str]]:
    """Counts, and the reasons for skips by file and line."""
    context = small_run.open_small(recipe, recipe.parent / "run")
    reader = PairImport(context)
    list(reader.blocks())
    listed = (recipe.parent / "run" / "preferences" / "skipped.jsonl").read_text().splitlines()
    return reader.counts, {row["where"].rpartition("/")[2]: row["reason"] for row in map(json.loads, listed)}


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_each_broken_row_is_listed(folder: Path, make: Callable[..., Row]) -> None:
    (folder / "text.png").write_text("this is no image")
    rows = [make("What color?", "Red.", "Blue.", IMAGES), *(make(*given) for given, _ in BROKEN)]
    lines = [json.dumps(row).encode() for row in rows] + [raw for raw, _ in RAW] + [json.dumps(make("Which?", "a", "b", IMAGES)).encode()]
    (folder / "pairs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    counts, skipped = import_all(recipe_of(folder, Path("model"), "pairs.jsonl", OWN if make is own else ""))
    assert counts == {"questions": 2, "pairs": 2, "skipped": len(BROKEN) + len(RAW)}
    reasons = [reason for _, reason in BROKEN] + [reason for _, reason in RAW]
    assert list(skipped) == [f"pairs.jsonl:{line}" for line in range(2, len(reasons) + 2)]
    for (where, reason), wanted in zip(skipped.items(), reasons, strict=True):
        assert any(words in reason for words in wanted.split("|")), f"{where}: {reason}"


user, model = partial(turn, "user"), partial(turn, "assistant")
CONVERSATIONS = [
    ({"prompt": [user("?")], "chosen": [model("a"), user("b")], "rejected": [model("c")]}, "differ"),
    ({"prompt": [user("?")], "chosen": [user("a")], "rejected": [model("c")]}, "must end with the assistant's"),
    ({"prompt": [user("?"), model("!")], "chosen": [model("a")], "rejected": [model("c")]}, "user turn"),
    ({"prompt": [user("?"), user("!")], "chosen": [model("a")], "rejected": [model("c")]}, "alternate"),
    ({"messages": [user("?"), model("!"), user("a")], "rejected_response": "b"}, "must end with the assistant's"),
    ({"messages": [user("?"), turn("tool", "a")], "rejected_response": "b"}, "role 'tool' is not supported"),
    ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}], "chosen": "a", "rejected": "b"}, "user turn"),
    ({"conversations": [{"from": "human", "value": "?"}], "chosen": {"from": "human", "value": "a"}, "rejected": "b"}, "must end with"),
    ({"instruction": "?", "history": [["a"]], "chosen": "a", "rejected": "b"}, "history must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), CONVERSATIONS)
def test_turns_that_are_none(folder: Path, row: Row, reason: str) -> None:
    good = {key: value for key, value in row.items() if key != "history"}
    good = {**good, **{key: [turn("assistant", key)] for key in ("chosen", "rejected") if isinstance(row.get(key), list)}}
    good = {**good, "prompt": [turn("user", "Good?")]} if "prompt" in row else good
    good = {**good, "messages": [turn("user", "Good?"), turn("assistant", "a")]} if "messages" in row else good
    good = {**good, "conversations": [{"from": "human", "value": "?"}], "chosen": "a"} if "conversations" in row else good
    jsonl(folder / "pairs.jsonl", [good, row])
    _, skipped = import_all(recipe_of(folder, Path("model"), "pairs.jsonl"))
    assert list(skipped) == ["pairs.jsonl:2"]
    assert reason in skipped["pairs.jsonl:2"]


def test_bytes_that_are_no_image(folder: Path) -> None:
    row = {"question": "What color?", "chosen": "a", "rejected": "b", "image": picture(folder, 0)}
    parquet(
        folder / "pairs.parquet", [row, {**row, "image": {"bytes": b"no image", "path": "x.png"}}, {**row, "question": "y" * (10 << 20)}]
    )
    _, skipped = import_all(recipe_of(folder, Path("model"), "pairs.parquet"))
    assert list(skipped) == ["pairs.parquet[1]", "pairs.parquet[2]"]
    talk = {"messages": [turn("user", "?"), turn("assistant", "a")], "rejected_response": "b"}
    parquet(folder / "talk.parquet", [talk, {**talk, "messages": [turn("user", "y" * (10 << 20)), turn("assistant", "a")]}])
    _, of_talk = import_all(recipe_of(folder, Path("model"), "talk.parquet"))
    assert ["10 MB of text" in reason for reason in of_talk.values()] == [True]
    assert "not an image" in skipped["pairs.parquet[1]"]
    assert "10 MB of text" in skipped["pairs.parquet[2]"]


@pytest.mark.parametrize("make", [make for make in FORMATS if make is not trl_conversation], ids=lambda make: make.__name__)
def test_broken_rows_of_parquet(folder: Path, make: Callable[..., Row]) -> None:
    """With bytes of images, as on the Hub."""
    good, gone, text = picture(folder, 0), {"bytes": None, "path": "gone.png"}, {"bytes": b"no image", "path": "x.png"}

    def row(prompt: str, chosen: str, rejected: str, image: object) -> Row:
        made = make(prompt, chosen, rejected, IMAGES)
        return made | {name: [image] for name in ("image", "images", "pics") if name in made}

    broken = [
        (row("What?", "a", "b", gone), "not found"),
        (row("What?", "a", "b", text), "not an image"),
        (row("What?", "", "b", good), "is empty"),
        (row("What?", "same", "same", good), "same text" if make is not vlfeedback else "differ in both text and rating"),
        (row("<image>\n<image>\n?", "a", "b", good), "2 <image> tokens but 1 image"),
        (row("y" * (5 << 20), "a", "b", good), "5 MB of text"),
    ]
    parquet(folder / "pairs.parquet", [row("What?", "a", "b", good), *(one for one, _ in broken)])
    counts, skipped = import_all(recipe_of(folder, Path("model"), "pairs.parquet", OWN if make is own else ""))
    assert counts["pairs"] == 1
    assert list(skipped) == [f"pairs.parquet[{number}]" for number in range(1, len(broken) + 1)]
    assert all(words in reason for reason, (_, words) in zip(skipped.values(), broken, strict=True)), skipped


@pytest.mark.parametrize(
    "array",
    ['[{0}, {1}, 5, {0}, {{"a": }}, {1}]', "[{0},\n{1}, 5, {0}"],
)
def test_a_broken_array(folder: Path, array: str) -> None:
    first, second = (json.dumps(trl(f"{n}?", "a", "b", IMAGES)) for n in range(2))
    (folder / "pairs.json").write_text(array.format(first, second))
    counts, skipped = import_all(recipe_of(folder, Path("model"), "pairs.json"))
    assert counts["pairs"] == 2
    assert list(skipped) == ["pairs.json[2]", "pairs.json[3]", "pairs.json[4]"]
    assert "holds a number" in skipped["pairs.json[2]"]
    assert "nothing after this row can be read" in skipped["pairs.json[4]"]


def test_the_first_row_may_be_broken(folder: Path) -> None:
    jsonl(folder / "pairs.jsonl", [{"note": "made yesterday"}, trl("What?", "a", "b", IMAGES)])
    counts, skipped = import_all(recipe_of(folder, Path("model"), "pairs.jsonl"))
    assert counts["pairs"] == 1
    assert "no preference pairs of a known format" in skipped["pairs.jsonl:1"]


def test_a_torn_file_is_an_error(folder: Path) -> None:
    path = parquet(folder / "pairs.parquet", [trl("What?", "a", "b", IMAGES)])
    path.write_bytes(path.read_bytes()[:-20])
    with fails("file-unreadable", SourceError, path=path):
        import_all(recipe_of(folder, Path("model"), "pairs.parquet"))


@pytest.mark.parametrize("rows", [[mmpr("What?", "same", "same", IMAGES)], [mmpr("What?", "", "b", ["gone.png"])] * 3])
def test_nothing_is_trained_when_nothing_is_usable(
    folder: Path, tiny_folder: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl(folder / "pairs.jsonl", rows)
    recipe = recipe_of(folder, tiny_folder, "pairs.jsonl")
    assert main(["run", str(recipe), "--dir", str(folder / "run")]) == 3
    assert f"none of the rows ({len(rows)}) is usable" in capsys.readouterr().err
    assert not (folder / "run" / "models").exists()
    assert main(["check", str(recipe)]) == 3
