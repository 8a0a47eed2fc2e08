"""The hub source on local folders: parquet, save_to_disk, image folders, lists of images, and everything that is not there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from mixpo.errors import MissingExtra, SourceError
from mixpo.images import digest_file, open_image
from mixpo.recipe import ImageTable
from mixpo.types import Question, Skipped

if TYPE_CHECKING:
    import datasets
else:
    datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def encoded(folder: Path, number: int) -> bytes:
    return (folder / f"{number}.png").read_bytes()


@pytest.fixture
def data(folder: Path) -> datasets.Dataset:
    rows = {
        "query": ["What color?", "And this?", "Describe it.", ""],
        "label": ["red", "green", None, "x"],
        "picture": [{"bytes": encoded(folder, n % 3), "path": None} for n in range(4)],
    }
    features = datasets.Features({"query": datasets.Value("string"), "label": datasets.Value("string"), "picture": datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


MAPPING = {"kind": "hub", "path": "data", "question": "query", "answer": "label", "image": "picture"}


def check(folder: Path, questions: list[Question], skipped: list[Skipped]) -> None:
    assert [(q.text, q.answer, q.kind) for q in questions] == [
        ("<image>\nWhat color?", "red", "text"),
        ("<image>\nAnd this?", "green", "text"),
        ("<image>\nDescribe it.", None, "none"),
    ]
    assert [q.images[0].digest for q in questions] == [digest_file(folder / f"{n}.png") for n in range(3)]
    assert all(Path(q.images[0].path).is_relative_to(folder / "run" / "images") for q in questions)
    assert open_image(questions[2].images[0], ImageTable()).getpixel((0, 0)) == (0, 0, 255)
    assert [(s.where, s.reason) for s in skipped] == [("data/train[3]", "question is empty")]


def test_parquet_folder(folder: Path, data: datasets.Dataset, collect: Callable[..., Any]) -> None:
    (folder / "data").mkdir()
    data.to_parquet(folder / "data" / "train.parquet")
    check(folder, *collect(**MAPPING))
    assert len(collect(**MAPPING, count=2)[0]) == 2


def test_saved_to_disk(folder: Path, data: datasets.Dataset, collect: Callable[..., Any]) -> None:
    data.save_to_disk(folder / "data")
    check(folder, *collect(**MAPPING))


def test_saved_to_disk_with_splits(folder: Path, data: datasets.Dataset, collect: Callable[..., Any]) -> None:
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(folder / "data")
    check(folder, *collect(**MAPPING))
    with pytest.raises(SourceError, match=r"has no 'tst', did you mean 'test'.* it has train, test"):
        collect(**MAPPING, split="tst")


def test_image_folder_with_labels(folder: Path, collect: Callable[..., Any]) -> None:
    for number, name in enumerate(("circle", "square")):
        (folder / "data" / name).mkdir(parents=True)
        (folder / f"{number}.png").rename(folder / "data" / name / "x.png")
    (folder / "data" / "metadata.csv").write_text("file_name,question,answer\ncircle/x.png,What?,5\nsquare/x.png,Which?,no\n")
    questions, skipped = collect(kind="hub", path="data")
    assert skipped == []
    assert [(q.answer, q.kind, Path(q.images[0].path).resolve()) for q in questions] == [
        ("5", "number", folder / "data" / "circle" / "x.png"),
        ("no", "yes_no", folder / "data" / "square" / "x.png"),
    ]


def test_lists_of_images_choices_and_class_labels(folder: Path, collect: Callable[..., Any]) -> None:
    pictures = [{"bytes": encoded(folder, n), "path": None} for n in range(2)]
    rows = {"question": ["Same?", "Text only?"], "answer": [1, 0], "image": [pictures, []], "options": [["yes", "no"], ["yes", "no"]]}
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["yes", "no"]),
            "image": datasets.List(datasets.Image()),
            "options": datasets.List(datasets.Value("string")),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "data")
    questions, skipped = collect(kind="hub", path="data", choices="options", domain="d")
    assert skipped == []
    assert [(q.text, q.answer, q.choices, q.domain) for q in questions] == [
        ("<image>\n<image>\nSame?\nA. yes\nB. no", "B", ("yes", "no"), "d"),
        ("Text only?\nA. yes\nB. no", "A", ("yes", "no"), "d"),
    ]


def test_lists_of_class_labels_have_names(folder: Path, collect: Callable[..., Any]) -> None:
    """A label stores a number, which is no answer: in the column of answers and of choices, alone or in lists."""
    names = datasets.ClassLabel(names=["red", "blue", "green"])
    rows = {"question": ["Which?", "And now?"], "answer": [[1, 1, 2], [-1]], "options": [[2, 1], [0, 1]]}
    features = {"question": datasets.Value("string"), "answer": datasets.List(names), "options": datasets.List(names)}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder / "data")
    questions, skipped = collect(kind="hub", path="data", image="")
    assert skipped == []
    assert [(q.answer, q.answers) for q in questions] == [("blue", ("blue", "blue", "green")), (None, ())]
    questions, skipped = collect(kind="hub", path="data", image="", choices="options")
    assert skipped == []
    assert [(q.answer, q.answers, q.choices) for q in questions] == [
        ("B", ("B", "B", "A"), ("green", "blue")),
        (None, (), ("red", "blue")),
    ]


def test_paths_and_broken_images_are_listed(folder: Path, collect: Callable[..., Any]) -> None:
    (folder / "data").mkdir()
    (folder / "0.png").rename(folder / "data" / "0.png")
    rows = {"question": ["a", "b", "c"], "image": ["0.png", "../1.png", "/etc/passwd"]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "data" / "train.parquet")
    questions, skipped = collect(kind="hub", path="data", answer="")
    assert [q.text for q in questions] == ["<image>\na"]
    assert len(skipped) == 2
    assert all("lies outside the root" in s.reason for s in skipped)
    broken = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict({"question": ["a"], "image": [{"bytes": b"junk", "path": None}]}, features=broken).save_to_disk(
        folder / "broken"
    )
    questions, skipped = collect(kind="hub", path="broken", answer="")
    assert questions == []
    assert "not an image in a known format" in skipped[0].reason


def test_cmyk_bytes_are_kept_as_they_are(folder: Path, collect: Callable[..., Any]) -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(buffer, "JPEG")
    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    rows = {"question": ["a"], "image": [{"bytes": buffer.getvalue(), "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "data")
    (question,) = collect(kind="hub", path="data", answer="")[0]
    assert Path(question.images[0].path).read_bytes() == buffer.getvalue()
    assert question.images[0].path.endswith(".jpg")


def test_missing_columns_are_named(folder: Path, data: datasets.Dataset, collect: Callable[..., Any]) -> None:
    data.save_to_disk(folder / "data")
    with pytest.raises(
        SourceError, match=r"source\.question: data has no column 'qery', did you mean 'query'\?; it has query, label, picture"
    ):
        collect(**{**MAPPING, "question": "qery"})
    with pytest.raises(SourceError, match=r'no column \'image\'.*set source\.image = "" if there are none'):
        collect(kind="hub", path="data", question="query", answer="label")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("./nowhere", "is not a folder"), ("0.png", "is not a folder"), ("void", "cannot be loaded by datasets"), ("bad", "cannot be loaded")],
)
def test_data_sets_that_are_not_there(folder: Path, collect: Callable[..., Any], path: str, reason: str) -> None:
    (folder / "void").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "train.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(SourceError, match=reason) as caught:
        collect(kind="hub", path=path)
    assert "\n" not in str(caught.value)


def test_unknown_split_of_a_folder(folder: Path, data: datasets.Dataset, collect: Callable[..., Any]) -> None:
    (folder / "data").mkdir()
    data.to_parquet(folder / "data" / "train.parquet")
    with pytest.raises(SourceError, match="validation"):
        collect(**MAPPING, split="validation")


def test_missing_library(folder: Path, collect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"source\.kind = \"hub\" needs the hub extra: pip install 'mixpo\[hub\]'"):
        collect(kind="hub", path="data")


@pytest.mark.slow
def test_a_hub_that_is_away_is_said_without_half_a_minute_of_tries(tmp_path: Path) -> None:
    """In a process of its own, since addresses and offline mode are read on import."""
    program = (
        "import sys, time, datasets; from pathlib import Path; from mixpo.recipe import HubSource; from mixpo.sources.hub import read\n"
        "slept = []\ntime.sleep = slept.append\n"
        "try:\n    list(read(HubSource(kind='hub', path='some/where'), Path(sys.argv[1]), Path(sys.argv[1])))\n"
        "except Exception as error:\n    print(type(error).__name__, error, f'[{sum(slept):.0f}]')\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240)
    found = re.fullmatch(r"SourceError (.*) \[(\d+)\]\n", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert found[1].startswith("source.path = 'some/where': no folder")
    assert "the hub does not give it" in found[1]
    assert int(found[2]) < 25


def test_what_datasets_has_kept_needs_no_hub(tmp_path: Path, collect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(datasets.config.HF_DATASETS_CACHE) / "some___where").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: datasets.Dataset.from_dict({"question": ["a"]}, split="train"))
    questions, _ = collect(kind="hub", path="some/where", answer="", image="")
    assert [question.text for question in questions] == ["a"]
