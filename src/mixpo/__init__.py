"""mixpo: preference data without human labels, and Mixed Preference Optimization, for vision-language models.

    result = mixpo.run("recipe.toml", set={"train.learning_rate": 1e-6})
    result.report, result.pairs(), result.models["mpo"]

The names in `dir(mixpo)` are loaded when first used; importing mixpo itself loads nothing heavy. docs/python.md has an example of each.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpo import verify
    from mixpo.api import RunResult, pairs, run, score, train
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
    "RunResult": "api",
    "Verdict": "types",
    "load": "recipe",
    "open_context": "pipeline",
    "run_recipe": "pipeline",
    "run_stage": "pipeline",
    "score": "api",
}
"""The module of each public name."""

_MODULES = ("pairs", "run", "train", "verify")
"""Public names that are modules; those with a function of the same name in `mixpo.api` can be called."""

__all__ = [
    "Group",
    "ImageRef",
    "MixpoError",
    "Pair",
    "Question",
    "Recipe",
    "Response",
    "RunResult",
    "Verdict",
    "__version__",
    "load",
    "open_context",
    "pairs",
    "run",
    "run_recipe",
    "run_stage",
    "score",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mixpo")
    if name in _HOMES:
        return getattr(import_module(f"mixpo.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"mixpo.{name}")
    raise AttributeError(f"module 'mixpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]


class _Callable(ModuleType):
    """A module that is called as the function of its name in `mixpo.api`, and shows its signature and docstring."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        return getattr(import_module("mixpo.api"), self.__name__.rpartition(".")[2])

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return str(self.__wrapped__.__doc__)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self.__wrapped__)


class _Package(ModuleType):
    """Makes `mixpo.run(...)` and `import mixpo.run` agree: the import system binds a submodule here, whoever imports it first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and name != "verify" and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
