"""Models that were deleted after a run: said before any work, and what needs no model works without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixpo import sealed
from mixpo.cli import main
from mixpo.errors import RunError
from mixpo.export.push import prepare
from mixpo.vlm.folder import is_complete

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def without_start(own_run: Path, tiny_folder: Path) -> Path:
    """A finished run whose base model is gone since."""
    for file in ("recipe.toml", "run/recipe.json"):
        text = (own_run / file).read_text()
        assert str(tiny_folder) in text
        text = text.replace(str(tiny_folder), str(own_run / "gone"))
        (own_run / file).write_text(sealed.dumps(json.loads(text)) if file.endswith(".json") else text)
    return own_run


@pytest.mark.slow
def test_a_run_is_looked_at_without_the_model_that_it_started_from(without_start: Path, tmp_path: Path, capsys: Capture) -> None:
    run = str(without_start / "run")
    assert main(["status", run]) == 0
    shown = capsys.readouterr().out
    assert f"! the base model of this run is missing: {without_start / 'gone'}: no such model folder" in shown
    assert main(["status", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problem"].startswith(str(without_start / "gone"))
    # The report tells of the recipe, in which this test has put another path.
    assert {row["state"] for row in found["stages"] if row["stage"] != "report"} == {"done"}
    assert set(found["models"]) == {"mpo", "sft"}
    for command in (["export", run, "--to", str(tmp_path / "pairs")], ["audit", run], ["score", run], ["compare", run, run]):
        assert main(command) == 0
    assert main(["status", run]) == 0  # scoring did not forget what the model was
    capsys.readouterr()


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["run", "--force", "train"], ["train"], ["report"]])
def test_work_is_refused_at_once_and_nothing_is_lost(without_start: Path, command: list[str], capsys: Capture) -> None:
    before = sorted(path for path in without_start.rglob("*") if path.name != ".lock")
    arguments = [command[0], str(without_start / "recipe.toml"), "--dir", str(without_start / "run"), *command[1:]]
    assert main(arguments) == 1
    assert f"{without_start / 'gone'}: no such model folder" in capsys.readouterr().err
    assert sorted(path for path in without_start.rglob("*") if path.name != ".lock") == before


def test_nothing_is_asked_again_of_a_model_that_is_gone(without_start: Path, capsys: Capture) -> None:
    assert main(["retry", str(without_start / "run")]) == 1
    assert "no such model folder" in capsys.readouterr().err


def test_another_model_is_not_taken_for_the_one_that_is_gone(own_run: Path, capsys: Capture) -> None:
    assert main(["score", str(own_run / "run"), "--set", "model.path=./nowhere"]) == 1
    assert "no such model folder" in capsys.readouterr().err


def weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def configuration(model: Path) -> None:
    (model / "config.json").unlink()


def one_of_several(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def broken_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize("lose", [weights, configuration, one_of_several, broken_index])
def test_a_trained_model_with_files_gone_is_not_done(own_run: Path, lose: Callable[[Path], None], capsys: Capture) -> None:
    model = own_run / "run" / "models" / "mpo"
    assert is_complete(model)
    lose(model)
    assert not is_complete(model)
    assert main(["status", str(own_run / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (training,) = [row for row in found["stages"] if row["stage"] == "round-1/train/mpo"]
    assert training["state"] != "done"
    assert training["why"] == ["its files are gone or have another size, or some of them"]
    assert set(found["models"]) == {"sft"}
    with pytest.raises(RunError, match=r"trained model|the model folder is incomplete"):
        prepare(model, "someone/model")


def test_a_file_is_no_run(own_run: Path, capsys: Capture) -> None:
    assert main(["status", str(own_run / "recipe.toml")]) == 1
    assert "is a file; give the folder" in capsys.readouterr().err
