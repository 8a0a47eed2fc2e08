"""mixpo: preference data without human labels, and Mixed Preference Optimization, for vision-language models.

The names below are loaded when first used; importing mixpo itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpo import verify
    from mixpo.errors import MixpoError
    from mixpo.pipeline import open_context, run_recipe, run_stage
    from mixpo.recipe import Recipe, load
    from mixpo.types import Group, ImageRef, Pair, Question, Response, Verdict

_HOMES = {
    "Group": "types",
    "ImageRef": "types",
    "MixpoError": "errors",
    "Pair": "types",
    "Question": "types",
    "Recipe": "recipe",
    "Response": "types",
    "Verdict": "types",
    "load": "recipe",
    "open_context": "pipeline",
    "run_recipe": "pipeline",
    "run_stage": "pipeline",
}
"""The module of each public name."""

__all__ = [
    "Group",
    "ImageRef",
    "MixpoError",
    "Pair",
    "Question",
    "Recipe",
    "Response",
    "Verdict",
    "__version__",
    "load",
    "open_context",
    "run_recipe",
    "run_stage",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mixpo")
    if name in _HOMES:
        return getattr(import_module(f"mixpo.{_HOMES[name]}"), name)
    if name == "verify":
        return import_module("mixpo.verify")
    raise AttributeError(f"module 'mixpo' has no attribute {name!r}")
