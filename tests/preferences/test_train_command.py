"""`mixpo train` on a recipe of ready-made pairs alone: one command from the file to the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixpo.cli import main


def test_train_needs_no_other_command(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Which colour?", "chosen": f"It is {n}.", "rejected": "I do not know.", "images": [f"{n}.png"]} for n in range(3)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.toml"
    recipe.write_text(f'[[preferences]]\npath = "pairs.jsonl"\n\n[model]\npath = "{tiny_folder}"\n\n[train]\nbatch_size = 3\n')
    assert main(["train", str(recipe), "--dir", str(folder / "run")]) == 0
    shown = capsys.readouterr().out
    assert (folder / "run/models/mpo/model.safetensors").exists()
    assert "3 imported" in shown
    assert "reference answer" not in shown
    assert main(["train", str(recipe), "--dir", str(folder / "run")]) == 0  # all of it is reused
