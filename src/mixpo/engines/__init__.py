"""Engines by name. Importing this package loads neither torch nor transformers; `create` loads what the engine needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mixpo.engines.base import Engine, Keep, Request, SamplingParams
from mixpo.errors import MissingExtra, RecipeError
from mixpo.recipe import ImageTable, ServerTable, did_you_mean

if TYPE_CHECKING:
    from mixpo.engines.openai.probe import Probed
    from mixpo.vlm.load import Vlm

__all__ = ["ENGINES", "Engine", "Keep", "Request", "SamplingParams", "Serving", "create", "key_of", "needs_extra"]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What engines that load the model themselves need to know.

    table: the server of "openai", and `where` it stands in the recipe. foreign: its answers are only marked, and it holds another model.
    folder, dtype, device: of the model. logs: a folder for the output of servers. keep: holds servers and models that outlive an engine;
    whoever made it closes it. probed: what servers were seen to do for the same work. say: receives what the user should know.
    """

    table: ServerTable = field(default_factory=ServerTable)
    where: str = "sample.server"
    foreign: bool = False
    folder: Path | None = None
    dtype: str = "float32"
    device: str = "auto"
    logs: Path = Path("servers")
    keep: Keep = field(default_factory=Keep)
    probed: Probed | None = None
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What engines are made from; each takes what it needs."""

    vlm: Vlm | None
    image: ImageTable
    batch_size: int
    script: Path | None
    serving: Serving


def create(
    name: str,
    *,
    vlm: Vlm | None = None,
    image: ImageTable | None = None,
    batch_size: int = 32,
    script: Path | None = None,
    serving: Serving | None = None,
) -> Engine:
    """The engine called `name`.

    script: answers for "scripted". vlm: the model of "transformers"; the others only tokenise with it, so it needs no weights (see
    `mixpo.vlm.tokenizer_only`). serving: for "openai" and "vllm". Raises RecipeError when the name is unknown or what the engine needs
    is not given.
    """
    if name not in ENGINES:
        raise RecipeError(f"sample.engine: unknown engine {name!r}{did_you_mean(name, ENGINES)}; known: {', '.join(ENGINES)}")
    setup = Setup(vlm=vlm, image=image or ImageTable(), batch_size=batch_size, script=script, serving=serving or Serving())
    return ENGINES[name](setup)


def _transformers(setup: Setup) -> Engine:
    from mixpo.engines.transformers import TransformersEngine

    if setup.vlm is None:
        raise RecipeError('sample.engine = "transformers" needs a model; set model.path')
    return TransformersEngine(setup.vlm, setup.image, setup.batch_size)


def _scripted(setup: Setup) -> Engine:
    from mixpo.engines.scripted import ScriptedEngine
    from mixpo.engines.tokens import Words

    if setup.script is None:
        raise RecipeError('sample.engine = "scripted" needs answers; set sample.script to a JSONL file')
    return ScriptedEngine(setup.script, None if setup.vlm is None else Words(setup.vlm))


def _openai(setup: Setup) -> Engine:
    from mixpo.engines.openai.client import Limits
    from mixpo.engines.openai.engine import OpenAIEngine
    from mixpo.engines.openai.server import Started, start
    from mixpo.engines.tokens import Words

    table, serving = setup.serving.table, setup.serving
    if not table.urls and not table.starts:
        raise RecipeError('sample.engine = "openai" needs a server; set sample.server.urls, .serve or .start')
    key = key_of(table, serving.where)
    folder = serving.folder
    if table.starts and folder is None:
        raise RecipeError("sample.server: a server that mixpo starts needs a model; set model.path")
    started = None
    if table.starts and folder is not None:
        log = serving.logs / "server.log"
        same = ("server", folder, table.serve, *table.start)
        started = serving.keep.take(same, lambda: start(table, folder, serving.device, log, serving.say), Started.close)
    return OpenAIEngine(
        [started.url] if started is not None else table.urls,
        model=table.model or (str(folder) if started is not None else ""),
        key=key,
        limits=Limits(in_flight=table.in_flight, timeout_s=table.timeout_s, retries=table.retries, patience_s=table.patience_s),
        image=setup.image,
        words=Words(setup.vlm) if setup.vlm is not None else None,
        same_model=table.same_model,
        foreign=serving.foreign,
        started=started,
        probed=serving.probed,
        where=serving.where,
        say=serving.say,
    )


def needs_extra(what: str) -> None:
    """Raise MissingExtra where the libraries that talk to servers are missing. what: the setting that needs them."""
    if importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("orjson") is None:
        raise MissingExtra(what, "served")


def key_of(table: ServerTable, where: str) -> str:
    """The key of an endpoint, from the environment; "" where the table names none. Raises RecipeError when the variable is not set."""
    key = os.environ.get(table.api_key_env, "") if table.api_key_env else ""
    if table.api_key_env and not key:
        raise RecipeError(f"{where}.api_key_env: the environment variable {table.api_key_env} is not set; set it to the key")
    return key


def _vllm(setup: Setup) -> Engine:
    from mixpo.engines.tokens import Words
    from mixpo.engines.vllm import VllmEngine, load_llm

    folder, dtype = setup.serving.folder, setup.serving.dtype
    if setup.vlm is None or folder is None:
        raise RecipeError('sample.engine = "vllm" needs a model; set model.path')
    llm = setup.serving.keep.take(
        ("vllm", folder, dtype), lambda: load_llm(folder, dtype), lambda held: held.llm_engine.engine_core.shutdown()
    )
    return VllmEngine(llm, Words(setup.vlm), setup.image)


ENGINES: dict[str, Callable[[Setup], Engine]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
    "scripted": _scripted,
}
