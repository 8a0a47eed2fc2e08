"""Engines by name. Importing this package loads neither torch nor transformers; `create` loads what the engine needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixpo.engines.base import Engine, Request, SamplingParams
from mixpo.errors import RecipeError
from mixpo.recipe import ImageTable, did_you_mean

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm

__all__ = ["ENGINES", "Engine", "Request", "SamplingParams", "create"]


def create(
    name: str,
    *,
    vlm: Vlm | None = None,
    image: ImageTable | None = None,
    batch_size: int = 32,
    script: Path | None = None,
) -> Engine:
    """The engine called `name`. script: answers for "scripted". vlm: the model of "transformers"; "scripted" tokenises with it.

    Raises RecipeError when the name is unknown or what the engine needs is not given.
    """
    if name not in ENGINES:
        raise RecipeError(f"sample.engine: unknown engine {name!r}{did_you_mean(name, ENGINES)}; known: {', '.join(ENGINES)}")
    return ENGINES[name](vlm, image or ImageTable(), batch_size, script)


def _transformers(vlm: Vlm | None, image: ImageTable, batch_size: int, script: Path | None) -> Engine:
    from mixpo.engines.transformers import TransformersEngine

    if vlm is None:
        raise RecipeError('sample.engine = "transformers" needs a model; set model.path')
    return TransformersEngine(vlm, image, batch_size)


def _scripted(vlm: Vlm | None, image: ImageTable, batch_size: int, script: Path | None) -> Engine:
    from mixpo.engines.scripted import ScriptedEngine

    if script is None:
        raise RecipeError('sample.engine = "scripted" needs answers; set sample.script to a JSONL file')
    return ScriptedEngine(script, None if vlm is None else _VlmCodec(vlm))


class _VlmCodec:
    """The model's own tokens."""

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm

    def encode(self, text: str) -> tuple[int, ...]:
        from mixpo.vlm.prompt import tokenize_response

        return tokenize_response(self._vlm, text)

    def decode(self, ids: Sequence[int]) -> str:
        from mixpo.vlm.prompt import decode

        return decode(self._vlm, ids)


ENGINES: dict[str, Callable[[Vlm | None, ImageTable, int, Path | None], Engine]] = {
    "transformers": _transformers,
    "scripted": _scripted,
}
