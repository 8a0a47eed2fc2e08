"""lm-evaluation-harness on a task of our own, against log-probs computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mixpo.errors import EvaluateError, MissingExtra, RecipeError
from mixpo.evaluate.lm_eval import ready, run_tasks, settings
from mixpo.recipe import EvaluateTable

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: " "
metric_list: [{{metric: acc}}]
"""
ROWS = [
    {"question": f"How many digits are {word}?", "choices": ["2", "12", "nine of them"], "gold": n % 3}
    for n, word in enumerate(("even", "odd", "equal", "larger", "step", "sum"))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=data))
    return tmp_path


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ready(EvaluateTable(), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"mixpo\[text\]"):
        ready(EvaluateTable(text_tasks=("mmlu",)), tmp_path)


def best(vlm: Vlm, row: dict[str, object]) -> int:
    """The choice with the highest summed log-prob behind the question, one forward pass for each."""
    sums = []
    for choice in row["choices"]:  # type: ignore[attr-defined]
        tokenizer = vlm.processor.tokenizer
        context, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (row["question"], f"{row['question']} {choice}")
        )
        with torch.no_grad():
            logps = vlm.model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
        sums.append(sum(float(logps[at - 1, whole[at]]) for at in range(len(context), len(whole))))
    return max(range(len(sums)), key=sums.__getitem__)


def test_a_task_of_our_own(folder: Path, tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    table = EvaluateTable(text_tasks=("tiny_choice",), text_include="tasks")
    ready(table, folder)
    small = tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    with monkeypatch.context() as patch:
        # All the tasks of the harness take seconds to read.
        patch.setattr("lm_eval.tasks.TaskManager", lambda **_: small)
        with pytest.raises(RecipeError, match="no task 'tiny_choise', did you mean 'tiny_choice'"):
            ready(EvaluateTable(text_tasks=("tiny_choise",), text_include="tasks"), folder)
    with pytest.raises(RecipeError, match="text_include"):
        ready(EvaluateTable(text_tasks=("tiny_choice",), text_include="nowhere"), folder)
    (score,) = run_tasks(tiny_vlm.model, tiny_vlm.processor.tokenizer, 400, table, folder)
    expected = sum(best(tiny_vlm, row) == row["gold"] for row in ROWS) / len(ROWS)
    assert (score.task, score.metric, score.n) == ("tiny_choice", "acc", 6)
    assert score.value == pytest.approx(expected)
    # Another gold changes the score, so that it is not a constant.
    (folder / "data.jsonl").write_text("".join(json.dumps({**row, "gold": best(tiny_vlm, row)}) + "\n" for row in ROWS))
    (score,) = run_tasks(tiny_vlm.model, tiny_vlm.processor.tokenizer, 400, table, folder)
    assert score.value == 1.0
    before = settings(table, folder)
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(data=folder / "none.jsonl"))
    assert settings(table, folder)["files"] != before["files"]
    with pytest.raises(EvaluateError, match="lm-evaluation-harness stopped"):
        run_tasks(tiny_vlm.model, tiny_vlm.processor.tokenizer, 400, table, folder)
