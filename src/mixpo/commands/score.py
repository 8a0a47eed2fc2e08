"""The recipe behind `mixpo score --predictions`: grade the responses of another tool to a benchmark, without a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mixpo.recipe import Recipe, apply_override, parse


def predictions_recipe(
    predictions: Path,
    benchmark: str,
    data: Path | None = None,
    *,
    extractor: str = "robust",
    mode: str = "cot",
    split: str = "",
    partial: bool = False,
    overrides: tuple[str, ...] = (),
) -> Recipe:
    """A recipe that grades one file. data: the benchmark's file or folder; None where the predictions file holds the questions too.

    Raises RecipeError for unknown names and values.
    """
    source = {
        "kind": "benchmark",
        "name": benchmark,
        "path": str((data or predictions).absolute()),
        "split": split,
        "images": "optional",
    }
    evaluate: dict[str, Any] = {
        "own_models": False,
        "extractor": extractor,
        "sets": [{"name": benchmark, "source": source}],
        "predictions": [
            {"name": model_name(predictions), "set": benchmark, "path": str(predictions.absolute()), "mode": mode, "partial": partial}
        ],
    }
    recipe: dict[str, Any] = {"evaluate": evaluate, "report": {"title": f"{predictions.stem} on {benchmark}"}, "shard_size": 512}
    for override in overrides:
        apply_override(recipe, override)
    return parse(recipe, "mixpo score --predictions", overrides=overrides)


def model_name(predictions: Path) -> str:
    """The file's name without what is no letter, digit, dot, dash or underscore."""
    name = re.sub(r"[^a-z0-9._-]+", "-", predictions.stem.casefold()).strip("._-")
    return name or "predictions"
