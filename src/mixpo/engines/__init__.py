"""Engines by name. Importing this package loads neither torch nor transformers; `create` loads what the engine needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mixpo.engines.base import Engine, Request, SamplingParams, SharedResource
from mixpo.errors import MissingExtra, RecipeError
from mixpo.recipe import Endpoint, ImageTable, ServerTable, VllmTable, did_you_mean

if TYPE_CHECKING:
    from mixpo.engines.openai.probe import ProbeCache
    from mixpo.engines.saved import SavedResponses
    from mixpo.vlm.load import Vlm

__all__ = ["ENGINES", "Engine", "Request", "SamplingParams", "Serving", "SharedResource", "api_key", "create", "require_served_extra"]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How engines reach or load a model by themselves.

    table: the server of "openai"; where: its place in the recipe. eval_only: another model, whose answers are only graded.
    folder, dtype, device: of the model. logs: a folder for the output of server processes. shared: holds servers and models that outlive
    an engine; its owner closes it. probed: capabilities of servers, shared by engines for the same work. notify: receives messages.
    """

    table: ServerTable = field(default_factory=ServerTable)
    vllm: VllmTable = field(default_factory=VllmTable)
    where: str = "sample.server"
    eval_only: bool = False
    folder: Path | None = None
    dtype: str = "float32"
    device: str = "auto"
    logs: Path = Path("servers")
    shared: SharedResource = field(default_factory=SharedResource)
    probed: ProbeCache | None = None
    notify: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """The arguments of `create`; each engine takes what it needs."""

    vlm: Vlm | None
    image: ImageTable
    batch_size: int
    script: Path | None
    saved: SavedResponses | None
    serving: Serving


def create(
    name: str,
    *,
    vlm: Vlm | None = None,
    image: ImageTable | None = None,
    batch_size: int = 32,
    script: Path | None = None,
    saved: SavedResponses | None = None,
    serving: Serving | None = None,
) -> Engine:
    """The engine called `name`.

    script: answers for "scripted". saved: those for "file". vlm: the model of "transformers"; other engines only tokenise with it, so it
    needs no weights (see `mixpo.vlm.tokenizer_only`). serving: for "openai" and "vllm". Raises RecipeError for an unknown name or a
    missing setting.
    """
    if name not in ENGINES:
        raise RecipeError(
            f"sample.engine: unknown engine {name!r}{did_you_mean(name, ENGINES)}; known: {', '.join(ENGINES)}",
            code="engine-unknown",
            key="sample.engine",
        )
    setup = EngineSetup(
        vlm=vlm, image=image or ImageTable(), batch_size=batch_size, script=script, saved=saved, serving=serving or Serving()
    )
    return ENGINES[name](setup)


def _transformers(setup: EngineSetup) -> Engine:
    from mixpo.engines.transformers import TransformersEngine

    if setup.vlm is None:
        raise RecipeError('sample.engine = "transformers" needs a model; set model.path', code="engine-needs-model", key="model.path")
    return TransformersEngine(setup.vlm, setup.image, setup.batch_size)


def _scripted(setup: EngineSetup) -> Engine:
    from mixpo.engines.scripted import ScriptedEngine
    from mixpo.engines.tokens import TokenCodec

    if setup.script is None:
        raise RecipeError(
            'sample.engine = "scripted" needs answers; set sample.script to a JSONL file', code="engine-needs-script", key="sample.script"
        )
    return ScriptedEngine(setup.script, None if setup.vlm is None else TokenCodec(setup.vlm))


def _file(setup: EngineSetup) -> Engine:
    from mixpo.engines.saved import FileEngine
    from mixpo.engines.tokens import TokenCodec

    if setup.saved is None:
        raise RecipeError(
            'sample.engine = "file" needs saved responses; set sample.responses', code="engine-needs-responses", key="sample.responses"
        )
    return FileEngine(setup.saved, None if setup.vlm is None else TokenCodec(setup.vlm))


def _openai(setup: EngineSetup) -> Engine:
    from mixpo.engines.openai.client import Limits
    from mixpo.engines.openai.engine import OpenAIEngine
    from mixpo.engines.openai.server import start
    from mixpo.engines.tokens import TokenCodec

    table, serving = setup.serving.table, setup.serving
    if not table.urls and not table.starts:
        raise RecipeError(
            'sample.engine = "openai" needs a server; set sample.server.urls, .serve or .start',
            code="engine-needs-server",
            key="sample.server",
        )
    key = api_key(table, serving.where)
    folder = serving.folder
    if table.starts and folder is None:
        raise RecipeError(
            "sample.server: a server that mixpo starts needs a model; set model.path", code="engine-needs-model", key="model.path"
        )
    process = None
    if table.starts and folder is not None:
        log = serving.logs / "server.log"
        identity = ("server", folder, table.serve, *table.start)
        process = serving.shared.get(
            identity, lambda: start(table, folder, serving.device, log, serving.notify, key), lambda server: server.close()
        )  # fmt: skip
    return OpenAIEngine(
        [process.url] if process is not None else table.urls,
        model=table.model or (str(folder) if process is not None else ""),
        key=key,
        limits=Limits.of(table),
        image=setup.image,
        codec=TokenCodec(setup.vlm) if setup.vlm is not None else None,
        same_model=table.same_model,
        eval_only=serving.eval_only,
        process=process,
        probed=serving.probed,
        where=serving.where,
        notify=serving.notify,
    )


def require_served_extra(feature: str) -> None:
    """Raise MissingExtra where the libraries of the HTTP client are missing. feature: the setting that needs them."""
    if importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("orjson") is None:
        raise MissingExtra(feature, "served")


def api_key(table: Endpoint, where: str, required: bool = True) -> str:
    """The key of an endpoint, from the environment; "" where the table names no variable.

    Raises RecipeError when the variable is not set although the key is `required`.
    """
    key = os.environ.get(table.api_key_env, "") if table.api_key_env else ""
    if table.api_key_env and not key and required:
        raise RecipeError(
            f"{where}.api_key_env: the environment variable {table.api_key_env} is not set; set it to the key",
            code="api-key-missing",
            key=f"{where}.api_key_env",
        )
    return key


def _vllm(setup: EngineSetup) -> Engine:
    from mixpo.engines.tokens import TokenCodec
    from mixpo.engines.vllm import VllmEngine, load_llm

    folder, dtype = setup.serving.folder, setup.serving.dtype
    if setup.vlm is None or folder is None:
        raise RecipeError('sample.engine = "vllm" needs a model; set model.path', code="engine-needs-model", key="model.path")
    table = setup.serving.vllm
    key = ("vllm", folder, dtype, *table.model_dump().values())
    llm = setup.serving.shared.get(key, lambda: load_llm(folder, dtype, table), lambda llm: llm.llm_engine.engine_core.shutdown())
    return VllmEngine(llm, TokenCodec(setup.vlm), setup.image)


ENGINES: dict[str, Callable[[EngineSetup], Engine]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
    "scripted": _scripted,
    "file": _file,
}
