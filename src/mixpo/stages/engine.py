"""Which engine answers for which model, and how it is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixpo.engines import Serving, create
from mixpo.engines.base import Engine, SamplingParams
from mixpo.errors import RecipeError
from mixpo.recipe import Recipe, ServedModel
from mixpo.records import write_text
from mixpo.stages.job import Context, ResponseKind
from mixpo.stages.models import ModelRef, settings_of
from mixpo.types import Question, content_id
from mixpo.vlm.hashes import sha256

if TYPE_CHECKING:
    from mixpo.engines.openai.probe import ProbeCache
    from mixpo.engines.saved import SavedResponses


def where_of(served: ServedModel) -> str:
    """The table of a served model in messages."""
    return f'evaluate.served "{served.name}"'


def engine_settings(context: Context, model: ModelRef, stage: Literal["sample", "answer"]) -> dict[str, Any]:
    """What decides an answer apart from the prompt and how tokens are drawn: engine, model, precision, pixels and seed."""
    recipe, engine = context.recipe, engine_of(context.recipe, model, stage)
    settings = {key: value for key, value in settings_of(recipe, stage, model).items() if key not in ("sample", "evaluate")}
    if model.served is not None:
        del settings["dtype"]
        return {**settings, "engine": engine, "server": model.served.deciding(stage)}
    server = {"server": recipe.sample.server.deciding(stage)} if engine == "openai" else {}
    return {**settings, "engine": engine, **server, "script": script_digest(recipe, context.recipe_folder, engine)}


def engine_of(recipe: Recipe, model: ModelRef, stage: ResponseKind) -> str:
    """The engine for a model in a stage. Servers at fixed addresses hold the base model and no trained one.

    So that models are compared under one engine, such servers evaluate nothing. Saved responses are only sampled, never continued.
    """
    table = recipe.sample
    if model.served is not None:
        return "openai"
    if table.engine == "file" and stage != "sample":
        return recipe.evaluate.engine or "transformers"
    if recipe.evaluate.engine is not None and stage == "answer":
        return recipe.evaluate.engine
    fixed = table.engine == "openai" and not table.server.starts
    return "transformers" if fixed and (stage == "answer" or model.folder is not None) else table.engine


def window_of(recipe: Recipe, engine: str, model: ModelRef, batch_size: int) -> int:
    """Questions that are handed to an engine at a time. At the end of each window servers run out of work, so it is long for them."""
    return max(batch_size, 16 * (model.served or recipe.sample.server).in_flight) if engine == "openai" else batch_size


def script_digest(recipe: Recipe, recipe_folder: Path, engine: str) -> str:
    """A digest of the files that an engine reads responses from; "" for other engines. Raises RecipeError when they are not there."""
    table = recipe.sample
    name = {"scripted": table.script, "file": table.responses}.get(engine)
    if name is None:
        return ""
    path, key = recipe_folder / name, "script" if engine == "scripted" else "responses"
    try:
        digests = sha256(sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
        return digests[0][:16] if len(digests) == 1 else content_id(digests)
    except OSError as error:
        message = f"sample.{key}: {path} cannot be read ({error.strerror}); the path is relative to the recipe"
        raise RecipeError(message, code="responses-unreadable", path=path, key=f"sample.{key}") from None


UNMATCHED = "unmatched.jsonl"
"""Next to the sampled responses: the rows of a file with saved responses that were not used, and why."""


def open_saved(context: Context, stage: str, questions: Iterator[tuple[Question, str]]) -> SavedResponses:
    """Match the recipe's saved responses with all questions of the run (with their prompts); says and lists what is left over."""
    from mixpo.engines.saved import SavedResponses

    table = context.recipe.sample
    saved = SavedResponses(context.recipe_folder / (table.responses or ""), questions, table.n)
    path = context.run.stage(stage).folder / UNMATCHED
    write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in saved.unmatched))
    if saved.summary:
        context.progress.say(
            f"{stage}: {saved.summary} in {table.responses}" + (f" (rows are listed in {path})" if saved.unmatched else "")
        )
    return saved


class EngineOpener:
    """Opens the recipe's engine on a model, for one stage. params: how it samples. window: questions it is given at a time."""

    def __init__(
        self,
        context: Context,
        model: ModelRef,
        params: SamplingParams,
        batch_size: int,
        stage: ResponseKind,
        saved: Callable[[], SavedResponses] | None = None,
    ) -> None:
        """saved: opens the responses of the engine "file"."""
        self.params = params
        self._context, self._model, self._batch_size, self._saved = context, model, batch_size, saved
        self._stage, self._engine = stage, engine_of(context.recipe, model, stage)
        self.window = window_of(context.recipe, self._engine, model, batch_size)
        self._probed: ProbeCache | None = None

    @property
    def in_each_rank(self) -> bool:
        """Whether every rank can have an engine of its own: a copy of the model, where others have one server or all GPUs."""
        return self._engine == "transformers"

    def open(self) -> Engine:
        """Load the model where the engine needs it."""
        context, model, name = self._context, self._model, self._engine
        recipe, models, table = context.recipe, context.models, context.recipe.sample
        if name == "transformers" and table.engine == "openai" and recipe.evaluate.engine is None:
            context.progress.say(f"{model.name}: answered in this process, because sample.server.urls hold the base model only")
        if name == "openai" and self._probed is None:
            from mixpo.engines.openai.probe import ProbeCache

            self._probed = ProbeCache()
        # Another model's answers are counted in tokens of the base model.
        vlm = models.load(model) if name == "transformers" else models.words(models.base_model() if model.served else model)
        if name == "transformers" and self._stage == "sample":
            from mixpo.train.model import refuse_dropout

            refuse_dropout(vlm.model)  # training would refuse it too, after hours of sampling
        loads_itself = name == "vllm" or (name == "openai" and table.server.starts and model.served is None)
        return create(
            name,
            vlm=vlm,
            image=recipe.image,
            batch_size=self._batch_size,
            script=context.recipe_folder / table.script if table.script is not None else None,
            saved=self._saved() if name == "file" and self._saved is not None else None,
            serving=Serving(
                table=model.served.server if model.served else table.server,
                vllm=table.vllm,
                where=where_of(model.served) if model.served else "sample.server",
                eval_only=model.served is not None,
                folder=models.folder(model) if loads_itself else None,
                dtype=recipe.model.dtype,
                device=recipe.model.device,
                logs=context.run.root / "servers",
                shared=context.shared,
                probed=self._probed,
                notify=context.progress.say,
            ),
        )
