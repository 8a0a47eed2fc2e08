"""`mixpo init`: the recipe it writes is valid and names the files of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_run
from failures import shows

from mixpo.cli import main
from mixpo.commands.init import copy_shipped
from mixpo.errors import RecipeError
from mixpo.recipe import load


def test_a_recipe_for_a_folder(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run.write_jsonl(tmp_path / "questions.jsonl", small_run.rows(tmp_path, 1, 2))
    small_run.write_jsonl(tmp_path / "held_out.jsonl", small_run.rows(tmp_path, 6, 2))
    small_run.write_jsonl(tmp_path / "log.jsonl", [{"loss": 1}])
    (tmp_path / "notes.jsonl").write_bytes(b"\xff\xfenothing")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small").symlink_to(tiny_folder)
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    out = capsys.readouterr().out
    assert "questions.jsonl: rows with image, question, answer" in out
    assert "models/small: a model" in out
    assert "log.jsonl" not in out
    recipe = load(tmp_path / "recipe.toml")
    assert (recipe.source.kind, recipe.source.path) == ("jsonl", "questions.jsonl")  # type: ignore[union-attr]
    assert recipe.model.path == "models/small"
    assert [(s.name, s.source.path) for s in recipe.evaluate.sets] == [("held_out", "held_out.jsonl")]  # type: ignore[union-attr]
    assert main(["check", str(tmp_path / "recipe.toml"), "--set", "sample.max_new_tokens=32", "--set", "evaluate.max_new_tokens=32"]) == 0
    capsys.readouterr()
    assert main(["init", str(tmp_path / "recipe.toml")]) == 2
    assert shows("recipe-exists", capsys.readouterr().err)


def test_an_empty_folder_gets_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    recipe = load(Path("recipe.toml"))
    assert recipe.model.path == "mixpo:tiny"
    text = Path("recipe.toml").read_text()
    assert "# No questions were recognised here" in text
    assert "[sample]" in text


def test_preference_files_become_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1] / "recipes" / "preferences"
    shutil.copytree(root, tmp_path / "preferences")
    small_run.write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "One?", "chosen": "Yes.", "rejected": "No."}])
    small_run.write_jsonl(tmp_path / "test.jsonl", small_run.rows(tmp_path, 6, 2))
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    assert "pairs.jsonl: preference pairs (trl)" in capsys.readouterr().out
    recipe = load(tmp_path / "recipe.toml")
    assert recipe.source is None
    assert [(table.kind, table.path) for table in recipe.preferences] == [("trl", "pairs.jsonl"), ("auto", "preferences/meta.json")]
    assert [s.name for s in recipe.evaluate.sets] == ["test"]
    assert "[sample]" not in (tmp_path / "recipe.toml").read_text(), "nothing is sampled"


def test_shipped_recipes_are_listed_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--list"]) == 0
    out = capsys.readouterr().out
    assert {path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.toml")} <= set(out.split())
    assert main(["init", "preferences"]) == 0
    assert load(Path("preferences.toml")).preferences
    assert Path("preferences/meta.json").is_file()
    assert main(["init", "preferences"]) == 2
    assert main(["init", "accelerate"]) == 0
    assert Path("accelerate/fsdp2.yaml").is_file()
    assert main(["init", "accelerate"]) == 2
    assert main(["init", "internvl"]) == 2
    assert "did you mean 'internvl3'" in capsys.readouterr().err
    with pytest.raises(RecipeError) as caught:
        copy_shipped("none", tmp_path)
    assert caught.value.code == "recipe-unknown"
