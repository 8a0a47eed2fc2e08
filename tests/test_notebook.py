"""examples/pairs.ipynb: its cells are those of tools/write_notebook.py, and they run."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mixpo.cli.boundary import open_progress

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_notebook", ROOT / "tools" / "write_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_notebook_is_executed_and_up_to_date(tool: ModuleType) -> None:
    notebook = json.loads((ROOT / "examples" / "pairs.ipynb").read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == tool.CELLS
    assert all(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "/tmp" not in json.dumps(notebook)


def test_bars_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = open_progress()
    progress.start("sample", 4, "questions", done=1)
    progress.advance(3, "loss 0.5")
    progress.say("stale\x1b[31m")
    progress.finish()
    progress.close()
    shown = stream.getvalue()
    assert "sample: 100%" in shown
    assert "4/4" in shown
    assert "stale\N{REPLACEMENT CHARACTER}[31m" in shown


@pytest.mark.slow
def test_the_notebook_runs(tool: ModuleType) -> None:
    notebook = tool.build()
    outputs = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert int(outputs[0][0]["data"]["text/plain"]) > 10
    assert any("image/png" in output.get("data", {}) for of_cell in outputs for output in of_cell)
