"""`mixpo init`: the recipe it writes is valid and names the files of the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import small_run
from failures import shows
from preference_files import turn
from table_files import jsonl, parquet

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
    assert "log.jsonl: not used: rows with loss" in out
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


def pair(question: str) -> dict[str, object]:
    return {"question": question, "chosen": "a", "rejected": "b"}


def test_files_of_every_kind_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs are never taken for questions, an index stands for its files, and what no table reads as it lies there is said."""
    question = {"question": "How many?", "answer": "2"}
    held_out = [{"question": "Held out?", "answer": "yes"}]
    for name, rows in (
        ("a.jsonl", [question]), ("b/a.jsonl", [{**question, "question": "Which?"}]), ("test.jsonl", held_out), ("b/test.jsonl", held_out),
        ("mmpr/annotations/x.jsonl", [pair("MMPR?")]), ("lf/rows.jsonl", [pair("Factory?")]),
        ("answers.jsonl", [{"id": 1, "responses": ["a"]}]),
        ("sft.jsonl", [{"messages": [turn("user", "?"), turn("assistant", "a")]}]),
    ):  # fmt: skip
        jsonl(tmp_path / name, rows)
    (tmp_path / "mmpr" / "meta.json").write_text(json.dumps({"x": {"root": ".", "annotation": "annotations/x.jsonl"}}))
    columns = {"prompt": "question"}
    (tmp_path / "lf" / "dataset_info.json").write_text(json.dumps({"x": {"file_name": "rows.jsonl", "ranking": True, "columns": columns}}))
    (tmp_path / "array.json").write_text(json.dumps([pair("Array?")]))
    parquet(tmp_path / "data" / "train-0.parquet", [pair("Parquet?")])
    parquet(tmp_path / "one.parquet", [question])
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    out = capsys.readouterr().out
    recipe = load(tmp_path / "recipe.toml")
    assert [(part.name, part.source.path) for part in recipe.source.parts] == [("a", "a.jsonl"), ("a-2", "b/a.jsonl")]  # type: ignore[union-attr]
    pairs = [("mmpr", "data"), ("auto", "array.json"), ("auto", "lf/dataset_info.json"), ("auto", "mmpr/meta.json")]
    assert sorted((table.kind, table.path) for table in recipe.preferences) == sorted(pairs)
    assert [(s.name, s.source.path) for s in recipe.evaluate.sets] == [("test", "b/test.jsonl"), ("test-2", "test.jsonl")]  # type: ignore[union-attr]
    for line in (
        'answers.jsonl: saved responses, read with [sample] engine = "file"',
        "sft.jsonl: conversations",
        "one.parquet: rows with",
    ):
        assert line in out
    assert main(["check", str(tmp_path / "recipe.toml")]) == 0


def test_names_that_are_hard_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In file names and columns: quotes, line breaks, escapes of the terminal. Nothing of it becomes a line of the recipe."""
    hostile = 'x\n[model]\npath = "evil"\n#\x1b[31m'
    for name in ("qu\"o'te ü.jsonl", "new\nline.jsonl", "back\\slash.jsonl", "test \x1b[31m.jsonl"):
        small_run.write_jsonl(tmp_path / name, [{"question": "What?", "answer": "a", hostile: 1}])
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    recipe = load(tmp_path / "recipe.toml")
    assert recipe.model.path == "mixpo:tiny"
    assert len(recipe.source.parts) == 3  # type: ignore[union-attr]
    assert all((tmp_path / part.source.path).is_file() for part in recipe.source.parts)  # type: ignore[union-attr]


def test_links_pipes_and_many_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(100):
        small_run.write_jsonl(tmp_path / f"q{number}.jsonl", [{"question": "What?", "answer": "a"}])
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "self.jsonl").symlink_to("self.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "config.json").write_text("{}")
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    out = capsys.readouterr().out
    assert "... and 60 more" in out
    assert len(out.splitlines()) == 42
    recipe = load(tmp_path / "recipe.toml")
    assert len(recipe.source.parts) == 100  # type: ignore[union-attr]
    assert recipe.model.path == "mixpo:tiny"


def test_files_that_are_not_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small_run.write_jsonl(tmp_path / "alpaca.jsonl", [{"instruction": "Say x.", "output": "x"}])
    (tmp_path / "broken.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    assert main(["init", str(tmp_path / "recipe.toml")]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "alpaca.jsonl: not used: rows with instruction, output, and none is called question",
        "broken.jsonl: not used: no row can be read",
        "broken.parquet: not used: no row can be read",
        "closed: cannot be read; check its permissions",
    ]
