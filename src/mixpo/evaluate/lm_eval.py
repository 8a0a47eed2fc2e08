"""Text-only tasks on the language model of a vision-language model, by lm-evaluation-harness (imported here only).

Shots and prompt style decide such numbers, so compare them before and after training only with the same settings. Tasks that run the
model's output as code are refused by the harness, and this never allows them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpo.errors import EvaluateError, MissingExtra, RecipeError, first_line
from mixpo.recipe import EvaluateTable, did_you_mean
from mixpo.run import version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """One metric of one task.

    task: its name in the harness. metric: its name in the harness, with the answer filter in brackets. value: of the metric.
    error: its standard error, or None. n: questions, of all parts of a group.
    """

    task: str
    metric: str
    value: float
    error: float | None
    n: int


def ready(table: EvaluateTable, base: Path) -> None:
    """Raise MissingExtra or RecipeError where a text task cannot be run; no model is needed."""
    if not table.text_tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("evaluate.text_tasks", "text")
    known = _manager(table, base).all_tasks
    for task in table.text_tasks:
        if task not in known:
            raise RecipeError(
                f"evaluate.text_tasks: lm-evaluation-harness has no task {task!r}{did_you_mean(task, known)}",
                code="unknown-task",
                key="evaluate.text_tasks",
            )


def settings(table: EvaluateTable, base: Path) -> dict[str, Any]:
    """What decides the scores other than the model and the table: its own task files, and the harness."""
    files = sorted(path for path in (base / table.text_include).rglob("*") if path.is_file()) if table.text_include else []
    return {
        "files": hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16] if files else "",
        "harness": version_of("lm_eval"),
    }


def _manager(table: EvaluateTable, base: Path) -> Any:
    from lm_eval.tasks import TaskManager

    folder = base / table.text_include
    if table.text_include and not folder.is_dir():
        raise RecipeError(
            f"evaluate.text_include: {folder} is not a folder; the path is relative to the recipe",
            code="folder-missing",
            path=folder,
            key="evaluate.text_include",
        )
    if table.text_include:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        # Reading the thousands of the harness's own tasks takes seconds; it is spared where none of them is wanted.
        if set(table.text_tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=str(folder) if table.text_include else None)


def run_tasks(model: Any, tokenizer: Any, max_length: int, table: EvaluateTable, base: Path) -> list[TextScore]:
    """Run all tasks on a model of transformers; images are never given. Raises EvaluateError when the harness fails."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model.eval()
    wrapped = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=8, max_length=max_length)
    try:
        results = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(table.text_tasks),
            num_fewshot=table.text_shots,
            limit=table.text_limit,
            task_manager=_manager(table, base),
            log_samples=False,
        )
    # The harness raises whatever its tasks raise: a data set that cannot be fetched, an extra that is missing, a task that runs code.
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AssertionError) as error:
        message = f"lm-evaluation-harness stopped: {type(error).__name__}: {first_line(error)}; correct it or leave the task out"
        raise EvaluateError(message, code="harness-failed") from error
    return [score for task in table.text_tasks for score in _scores(results, task)]


def _scores(results: Mapping[str, Any], task: str) -> Iterator[TextScore]:
    values = results["results"].get(task) or {}
    n = sum(results["n-samples"][part]["effective"] for part in _parts(results, task) if part in results["n-samples"])
    for key, value in values.items():
        metric, _, form = key.partition(",")
        if not form or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{form}")
        name = metric if form == "none" else f"{metric} ({form})"
        yield TextScore(task=task, metric=name, value=float(value), error=float(error) if isinstance(error, (int, float)) else None, n=n)


def _parts(results: Mapping[str, Any], task: str) -> Sequence[str]:
    """The tasks below a group, or the task itself."""
    below = results.get("group_subtasks", {}).get(task) or []
    return [part for name in below for part in _parts(results, name)] or [task]
