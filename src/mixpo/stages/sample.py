"""Answers from the model to every question, and for open questions the continuations without the image (DropoutNTP).

The two are separate jobs, so that another cut of the continuations samples nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mixpo.engines.base import Request, SamplingParams
from mixpo.pairs.dropout_ntp import continuation_request
from mixpo.recipe import Recipe, SampleTable
from mixpo.records import Sampled
from mixpo.stages import prompting
from mixpo.stages.engine import EngineOpener, engine_of, engine_settings, open_saved
from mixpo.stages.job import Context, Job, Plan, title
from mixpo.stages.models import ModelRef
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.responses import request_of, response_job, seed_of
from mixpo.types import Question, content_id


def params(table: SampleTable) -> SamplingParams:
    """How answers are sampled."""
    return SamplingParams(
        temperature=table.temperature,
        max_new_tokens=table.max_new_tokens,
        top_k=table.top_k,
        top_p=table.top_p,
        stop=tuple(table.stop),
    )


def sample_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: n answers to each question."""
    recipe, table = context.recipe, context.recipe.sample
    name = f"round-{number}/sample"

    def questions() -> Iterator[tuple[Question, str]]:
        for shard in range(len(index.shards)):
            for question in plan.rows("source", shard):
                yield question, prompting.prompt_for(recipe.prompt, question).render(question.text)

    engine = EngineOpener(context, model, params(table), table.batch_size, "sample", lambda: open_saved(context, name, questions()))
    settings = {
        **engine_settings(context, model, "sample"),
        # Which question a saved row belongs to depends on all of them.
        **({"questions": content_id(list(index.shards))} if table.engine == "file" else {}),
        "prompt": prompting.settings(recipe.prompt),
        **({"open_responses": recipe.pairs.max_dropout_per_question} if recipe.pairs.dropout_from == "all" else {}),
        "round": number,
        "sample": {key: value for key, value in table.deciding("sample").items() if key not in ("engine", "server")},
    }

    def requests(shard: int) -> Iterator[Request]:
        for question in plan.rows("source", shard):
            yield from requests_for(recipe, question, number)

    return response_job(
        context,
        plan,
        engine,
        requests,
        kind="sample",
        name=name,
        title=title(context, number, "sample"),
        settings=settings,
        inputs=prompting.chosen_by(recipe, index.shards, index),
        index=index,
        needs=("source", *filter(None, [model.job])),
    )


def requests_for(recipe: Recipe, question: Question, number: int) -> Iterator[Request]:
    """One request for each prompt of a question that has responses."""
    indices: dict[int, list[int]] = {}
    for index in range(recipe.sample.n + prompting.open_responses(recipe, question)):
        indices.setdefault(prompting.number_of(recipe, question, index), []).append(index)
    for prompt, of_prompt in sorted(indices.items()):
        text = prompting.prompts_of(recipe, question)[prompt].render(question.text)
        yield request_of(prompting.with_system(recipe.prompt, question), text, of_prompt, recipe.seed, "sample", number)


def continue_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: open questions' answers cut short and finished without the image."""
    recipe = context.recipe
    engine = EngineOpener(context, model, params(recipe.sample), recipe.sample.batch_size, "continue")
    upstream = f"round-{number}/sample"
    settings = recipe.deciding("continue")
    if recipe.sample.engine == "file":
        settings["engine"] = engine_of(recipe, model, "continue")

    def requests(shard: int) -> Iterator[Request]:
        rows = zip(plan.rows("source", shard), plan.rows(upstream, shard), strict=True)
        return filter(None, (_continuation(context, question, sampled, number, model) for question, sampled in rows))

    return response_job(
        context,
        plan,
        engine,
        requests,
        kind="continue",
        name=f"round-{number}/continue",
        title=title(context, number, "continue"),
        settings=settings,
        inputs=plan.shards(upstream),
        index=index,
        needs=("source", upstream, *filter(None, [model.job])),
    )


def _continuation(context: Context, question: Question, answers: Sampled, number: int, model: ModelRef) -> Request | None:
    recipe = context.recipe
    responses = [r for r in answers.responses if question.answer is None or r.index >= recipe.sample.n]
    if not responses or not recipe.pairs.dropout_ntp:
        return None
    from mixpo.pairs.dropout_ntp import cut
    from mixpo.vlm.prompt import without_images

    vlm = context.models.words(model)
    prompt = without_images(prompting.prompts_of(recipe, question)[-1].render(question.text))
    seed = seed_of(recipe.seed, "continue", number)
    request = continuation_request(question, responses, prompt, recipe.pairs, seed, lambda ids, ratio: cut(vlm, ids, ratio))
    history = prompting.with_system(recipe.prompt, question).history
    return request and replace(request, history=tuple(replace(turn, text=without_images(turn.text)) for turn in history))
