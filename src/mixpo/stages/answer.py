"""Answers of a model to held-out questions, kept as they come. One job for each set, model and mode; `evaluate` marks them later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from mixpo.engines import api_key, require_served_extra
from mixpo.engines.base import Request, SamplingParams
from mixpo.recipe import EvaluationSource, Recipe
from mixpo.stages import prompting
from mixpo.stages.engine import EngineOpener, engine_settings, where_of
from mixpo.stages.job import Context, Job, Plan
from mixpo.stages.models import ModelRef
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.responses import request_of, response_job
from mixpo.stages.sample import params as sampling_params
from mixpo.types import Question


def ready(recipe: Recipe, plan: Plan) -> None:
    """Raise MissingExtra or RecipeError where a served model has yet to answer and cannot be asked; nothing is sent."""
    unanswered = {p.job.name.split("/")[2] for p in plan.planned.values() if p.job.kind == "answer" and not p.finished()}
    for served in recipe.evaluate.served:
        if served.name in unanswered:
            require_served_extra("evaluate.served")
            api_key(served.server, where_of(served))


def source_name(name: str) -> str:
    """The folder with the questions of an evaluation set."""
    return f"evaluate/{name}/source"


def answer_name(name: str, model: ModelRef, mode: str) -> str:
    """The folder with a model's answers."""
    return f"answer/{name}/{model.name}/{mode}"


def modes(context: Context, model: ModelRef, name: str) -> tuple[str, ...]:
    """What the recipe evaluates of a model on set `name`: greedy modes, then sampled ones if any; predictions have one mode."""
    table = context.recipe.evaluate
    if model.predictions is not None:
        return (model.predictions.mode,) if table.set_of(model.predictions) == name else ()
    return (*table.modes, *(("sampled",) if table.samples else ()))


def wording_of(mode: str) -> str:
    """Sampled answers are chains of thought."""
    return "direct" if mode == "direct" else "cot"


def answer_job(context: Context, plan: Plan, index: QuestionIndex, name: str, table: EvaluationSource, model: ModelRef, mode: str) -> Job:
    """Answers of `model` to the questions of set `name` in a mode: "cot" and "direct" are greedy."""
    recipe, source = context.recipe, source_name(name)
    count = recipe.evaluate.samples if mode == "sampled" else 1
    how = params(recipe, mode)
    engine = EngineOpener(context, model, how, max(1, recipe.evaluate.batch_size // count), "answer")
    settings = {
        **engine_settings(context, model, "answer"),
        "prompt": prompt_settings(recipe, table, wording_of(mode)),
        "decode": asdict(how),
        "answers": count,
    }

    def requests(shard: int) -> Iterator[Request]:
        for question in plan.rows(source, shard):
            text = prompt_for(recipe, question, wording_of(mode))
            yield request_of(prompting.with_system(recipe.prompt, question), text, range(count), recipe.seed, "evaluate", mode)

    return response_job(
        context,
        plan,
        engine,
        requests,
        kind="answer",
        name=answer_name(name, model, mode),
        title=f"answer {name}: {model.name}, {mode}",
        settings=settings,
        inputs=prompting.chosen_by(recipe, plan.shards(source), index),
        index=index,
        needs=(source, *filter(None, [model.job])),
    )


def prompt_settings(recipe: Recipe, table: EvaluationSource, wording: str) -> dict[str, Any]:
    """The texts around a question: the recipe's, or those of a benchmark."""
    if table.kind != "benchmark":
        return prompting.settings(recipe.prompt, wording)
    from mixpo.evaluate.benchmarks import BENCHMARKS

    benchmark = BENCHMARKS[table.name]
    own = benchmark.direct if wording == "direct" else benchmark.cot
    if not own:
        return prompting.settings(recipe.prompt, wording)
    return {"benchmark": table.name, "template": own, **({"system": recipe.prompt.system} if recipe.prompt.system else {})}


def prompt_for(recipe: Recipe, question: Question, wording: str) -> str:
    """The user's message for one question."""
    from mixpo.evaluate.benchmarks import prompt_of

    return prompt_of(question, wording) or prompting.prompt_for(recipe.prompt, question, wording).render(question.text)


def params(recipe: Recipe, mode: str) -> SamplingParams:
    """How answers are decoded in a mode. Texts that end an answer in sampling end it here too."""
    longest = recipe.evaluate.max_new_tokens
    if mode == "sampled":
        return replace(sampling_params(recipe.sample), max_new_tokens=longest)
    return SamplingParams(temperature=0.0, max_new_tokens=longest, stop=tuple(recipe.sample.stop))
