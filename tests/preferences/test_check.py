"""`mixpo check` and dry runs of ready-made pairs: what stands in the files, what is wrong with which row, what a run would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from table_files import jsonl

from mixpo.cli import main

LONG = "Nothing to see here. " * 60


@pytest.fixture
def recipe(folder: Path, tiny_folder: Path) -> Path:
    """Seven rows, of which two are usable; a question of an evaluation set; a column without a use."""
    pair = {"image": "0.png", "question": "What color?", "chosen": "Red.", "rejected": "Blue."}
    jsonl(folder / "pairs.jsonl", [
        pair,
        {**pair, "rejected": "Green.", "mood": "x"},
        {**pair, "rejected": " Red."},
        {**pair, "image": "gone.png"},
        {**pair, "rejected": LONG},
        pair,
        {**pair, "image": "1.png", "question": "Which?"},
    ])  # fmt: skip
    jsonl(folder / "held_out.jsonl", [{"image": "1.png", "question": "Which color?", "answer": "green"}])
    path = folder / "recipe.toml"
    path.write_text(f"""
[[preferences]]
path = "pairs.jsonl"
[model]
path = "{tiny_folder}"
device = "cpu"
[train]
max_length = 200
[evaluate]
max_new_tokens = 32
[[evaluate.sets]]
name = "held-out"
source = {{ kind = "jsonl", path = "held_out.jsonl" }}
""")
    return path


def test_every_row_is_accounted_for(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--json"]) == 3
    shown = json.loads(capsys.readouterr().out)
    file = recipe.parent / "pairs.jsonl"
    problems = {row["where"]: row["problem"] for row in shown["findings"]}
    assert problems.keys() == {f"{file}:{line}" for line in (3, 4, 5)}
    assert "same text" in problems[f"{file}:3"]
    assert "'gone.png' not found" in problems[f"{file}:4"]
    assert problems[f"{file}:5"].startswith("over-long: prompt and rejected have")
    assert [row["where"] for row in shown["duplicates"]] == [f"{file}:6"]
    assert [row["where"] for row in shown["left_out"]] == [f"{file}:7"]
    assert [row["problem"] for row in shown["notices"]] == ["read as mmpr", "columns that are not used: mood (1 row)"]
    of_pairs = {name.rpartition(": ")[2]: count for name, count in shown["counts"].items() if name.startswith("preferences")}
    assert of_pairs == {"rows": 7, "pairs": 4, "usable pairs": 2, "skipped rows": 3}


def test_the_list_for_people(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "What?", "chosen": "", "rejected": "b"}
    jsonl(recipe.parent / "pairs.jsonl", [*({**row, "question": f"What is {n}?"} for n in range(9)), {**row, "chosen": "a"}])
    assert main(["check", str(recipe)]) == 3
    shown = capsys.readouterr().out
    assert "pairs.jsonl: read as mmpr" in shown
    assert "pairs.jsonl:3: chosen is empty\n... and 6 further rows with the same problem; --json lists all\n" in shown
    assert "preferences pairs.jsonl: 10 rows, 1 pair, 1 usable pair, 9 skipped rows" in shown


def test_a_template_that_drops_the_response(recipe: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    model = Path(shutil.copytree(tiny_folder, recipe.parent / "model"))
    template = model / "chat_template.jinja"
    template.write_text("{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}")
    assert main(["check", str(recipe), "--set", "model.path=model"]) == 3
    assert "would supervise no token" in capsys.readouterr().out


def test_files_that_are_none(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "pairs.jsonl").unlink()
    assert main(["check", str(recipe)]) == 3
    assert "pairs.jsonl: no such file or folder" in capsys.readouterr().out


def test_a_dry_run_counts_the_pairs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(recipe), "--dir", str(recipe.parent / "run"), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "pairs.jsonl: read as mmpr" in shown.err
    lines = {words[0]: words[1:] for line in shown.out.splitlines() if (words := line.split())}
    assert lines["preferences"][:4] == ["3", "of", "3", "pairs"]
    assert lines["round-1/pair"][:4] == ["1", "of", "1", "question"]
    assert not (recipe.parent / "run" / "source").exists()
    assert main(["plan", str(recipe), "--json"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["preferences"]["total"] == 3
    assert "4 rows skipped" in stages["preferences"]["why"]
    assert stages["round-1/train/mpo"]["tokens"] > 0
