"""mixpo from Python: a run, pairs from rows, grading again, and the public names."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
from failures import fails
from PIL import Image

import mixpo
from mixpo.errors import RecipeError, RunError, SourceError
from mixpo.export.jsonl import _parts
from mixpo.recipe.load import literal, put

DOCS = Path(__file__).parent.parent / "docs" / "python.md"


def test_every_public_name_has_a_docstring_and_an_example() -> None:
    assert dir(mixpo) == mixpo.__all__
    shown = "\n".join(re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    for name in mixpo.__all__:
        assert re.search(rf"\bmixpo\.{name}\b", shown), f"no example of mixpo.{name} in docs/python.md"
        assert name == "__version__" or inspect.getdoc(getattr(mixpo, name)), name


def test_importing_loads_nothing_heavy() -> None:
    program = "import sys, mixpo; dir(mixpo); print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_modules_that_are_called_stay_modules() -> None:
    """Whether the module or the function is used first."""
    for first in ("from mixpo.run import Run", "mixpo.run", "import mixpo.pairs.build"):
        program = (
            f"import mixpo\n{first}\nimport mixpo.run, mixpo.pairs.build\nprint(mixpo.run.Run, callable(mixpo.run), callable(mixpo.pairs))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "<class 'mixpo.run.Run'> True True\n"
    assert list(inspect.signature(mixpo.run).parameters)[:3] == ["recipe", "directory", "set"]
    assert (inspect.getdoc(mixpo.pairs) or "").startswith("Sample responses")


def test_a_run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    monkeypatch.chdir(tmp_path)
    result = mixpo.run(str(recipe), set={"report.title": "From Python", "train.baselines": []})
    assert result.directory == Path("runs/recipe")
    assert result.report["title"] == "From Python"
    assert [*result.models] == ["mpo"]
    assert (result.models["mpo"] / "config.json").exists()
    assert result.recipe.train.baselines == ()
    rows = result.pairs()
    assert {row["origin"] for row in rows} >= {"correctness"}
    row = next(row for row in rows if row["origin"] == "correctness")
    assert row["answer"] in row["chosen"]
    assert row["answer"] not in row["rejected"]
    assert row["question"] in row["prompt"]
    assert Path(row["images"][0]).exists()
    assert "train" in capsys.readouterr().err
    # Nothing is left to do, and nothing is printed.
    again = mixpo.run(recipe, set={"report.title": "From Python", "train.baselines": []}, quiet=True)
    assert again.pairs() == rows
    assert capsys.readouterr().err == ""
    assert mixpo.score(Path("runs/recipe"), set={"report.title": "Again"}, quiet=True).report["title"] == "Again"
    with fails("unknown-round", RunError):
        again.pairs(2)


def test_a_run_until_a_stage(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    result = mixpo.run(recipe, directory=tmp_path / "run", until="verify", quiet=True)
    assert (tmp_path / "run/round-1/verify/manifest.json").exists()
    assert not (tmp_path / "run/round-1/pair").exists()
    assert result.models == {}
    with fails("round-unfinished", RunError):
        result.pairs()
    with fails("report-missing", RunError, path=tmp_path / "run"):
        _ = result.report
    with fails("unknown-stage", RecipeError, key="--until"):
        mixpo.run(recipe, directory=tmp_path / "run", until="pairs", quiet=True)
    assert mixpo.run(recipe, directory=tmp_path / "run", until="pair", quiet=True).pairs()


def _rows() -> list[dict[str, Any]]:
    """One question in each way of giving an image: Pillow image, bytes, as a dataset stores it, and none; one open."""
    made = BytesIO()
    Image.new("RGB", (28, 28), "blue").save(made, "PNG")
    return [
        {"image": Image.new("RGB", (28, 28), "red"), "question": "What is number 11?", "answer": "11"},
        {"image": made.getvalue(), "question": "What is number 12?", "answer": 12, "domain": None},
        {"images": [{"bytes": made.getvalue(), "path": None}], "question": "What is number 13?", "answer": "13"},
        {"question": "What is number 14?", "answer": "14"},
        {"image": Image.new("RGB", (28, 28), "green"), "question": "What is number 15?"},
    ]


def _pairs(data: Any, folder: Path, model: Path) -> mixpo.RunResult:
    small_run.write_jsonl(folder / "script.jsonl", small_run.script(range(11, 16)))
    sample = {"engine": "scripted", "script": str(folder / "script.jsonl"), "n": 4, "max_new_tokens": 64}
    return mixpo.pairs(data, model=model, directory=folder / "run", sample=sample, **{"verify.workers": 1}, quiet=True)


def test_pairs_from_rows(tmp_path: Path, tiny_folder: Path) -> None:
    made = _pairs(_rows(), tmp_path, tiny_folder)
    rows = made.pairs()
    assert {row["answer"] for row in rows} >= {"11", "12", "13", "14"}
    blue = [row["images"] for row in rows if row["answer"] in ("12", "13")]
    assert len({tuple(images) for images in blue}) == 1, "the same bytes are one image"
    assert all(Path(images[0]).is_relative_to(tmp_path / "run") for images in blue)
    assert made.models == {}
    # The run is an ordinary one: the same rows again make nothing new.
    shards = sorted((tmp_path / "run").rglob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert _pairs(_rows(), tmp_path, tiny_folder).pairs() == rows
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_pairs_from_a_dataset(tmp_path: Path, tiny_folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"image": row["image"], "question": row["question"], "answer": str(row["answer"])} for row in _rows()[:2]]
    columns = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")})
    dataset = datasets.Dataset.from_list(rows, features=columns)
    assert {row["answer"] for row in _pairs(dataset, tmp_path, tiny_folder).pairs()} == {"11", "12"}


def test_training_on_pairs_from_rows(tmp_path: Path, tiny_folder: Path) -> None:
    """From the pairs of a run, and from conversations as TRL has them: the same pairs give the same weights."""
    rows = [row for row in _pairs(_rows(), tmp_path, tiny_folder).pairs() if row["images"]][:4]
    table = {"learning_rate": 1e-3, "batch_size": 4, "max_length": 400}

    def talk(role: str, text: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": _parts(text)}]

    trl = [
        {
            "image": Image.open(row["images"][0]),
            "prompt": talk("user", row["prompt"]),
            **{side: talk("assistant", row[side]) for side in ("chosen", "rejected")},
        }
        for row in rows
    ]
    weights = []
    for name, data in (("plain", rows), ("trl", trl)):
        trained = mixpo.train(data, model=tiny_folder, directory=tmp_path / name, train=table, quiet=True)
        assert len(trained.pairs()) == len(rows)
        weights.append((trained.models["mpo"] / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_rows_that_cannot_be_used(tmp_path: Path, tiny_folder: Path) -> None:
    with fails("row-not-a-dictionary", SourceError, line=1):
        _pairs([_rows()[0], "What?"], tmp_path, tiny_folder)
    with fails("row-unusable", SourceError, line=0):
        _pairs([{"image": b"no image", "question": "What?"}], tmp_path, tiny_folder)
    with fails("row-unusable", SourceError, line=0):
        _pairs([{"question": object()}], tmp_path, tiny_folder)
    with fails("row-unusable", SourceError, line=0):
        _pairs([{"image": np.zeros((4, 4, 3), np.uint8), "question": "What?"}], tmp_path, tiny_folder)
    for data in ("pairs.jsonl", Path("pairs.jsonl"), {"question": ["What?"]}, None, 3, b"rows"):
        with fails("rows-of-another-type", SourceError):
            _pairs(data, tmp_path, tiny_folder)
    # A file that is missing is the source's to list, as of any recipe.
    made = _pairs([*_rows(), {"image": tmp_path / "gone.png", "question": "What?", "answer": "1"}], tmp_path, tiny_folder)
    assert "gone.png" in (made.directory / "source/skipped.jsonl").read_text()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        mixpo.RunResult(tmp_path)


def test_settings_as_toml() -> None:
    for value in (True, 3, 1e-6, 'a "b"\n', ["x", 1.5], {"a b": [False]}, Path("x/y")):
        import tomllib

        read = tomllib.loads(f"value = {literal(value)}")["value"]
        assert read == (str(value) if isinstance(value, Path) else value)
    with fails("no-recipe-value", RecipeError):
        literal(None)
    data: dict[str, Any] = {"sample": {"n": 2}}
    put(data, "sample", {"server.model": "m"})
    put(data, "seed", 3)
    assert data == {"sample": {"n": 2, "server": {"model": "m"}}, "seed": 3}
    with fails("key-not-a-table", RecipeError, key="seed.x"):
        put(data, "seed.x", 1)
