"""Answers from the model to every question, and for open questions the continuations without the image (DropoutNTP).

The two are separate jobs, so that another cut of the continuations samples nothing anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

from mixpo.engines.base import Request, SamplingParams
from mixpo.errors import EngineError
from mixpo.pairs.dropout_ntp import continuation_request
from mixpo.plural import amount
from mixpo.recipe import SampleTable
from mixpo.records import ANSWERED_BY, Sampled
from mixpo.run import Manifest
from mixpo.stages import prompting
from mixpo.stages.attempts import attempts_of
from mixpo.stages.engine import Answering, engine_of, engine_settings, open_saved
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.models import ModelRef
from mixpo.stages.source import QuestionIndex
from mixpo.types import Question, content_id


def seed_of(seed: int, *what: object) -> int:
    """A 63-bit seed that depends on the run's seed and on what it decides, and on nothing else."""
    return int(content_id(seed, *what), 16) >> 1


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

    answering = Answering(context, model, params(table), table.batch_size, "sample", lambda: open_saved(context, name, questions()))
    settings = {
        **engine_settings(context, model, "sample"),
        # Which question a saved row belongs to depends on all of them.
        **({"questions": content_id(list(index.shards))} if table.engine == "file" else {}),
        "prompt": prompting.settings(recipe.prompt),
        **({"open_responses": recipe.pairs.max_dropout_per_question} if recipe.pairs.dropout_from == "all" else {}),
        "round": number,
        "sample": {key: value for key, value in table.deciding("sample").items() if key not in ("engine", "server")},
    }
    shards = prompting.chosen_by(recipe.prompt, index.shards, index.domains, index.sources)
    attempts = attempts_of(context.run.stage(name), settings, shards)

    def requests_of(shard: int) -> list[Request]:
        kept = attempts.kept(shard)
        questions = (question for question in plan.rows("source", shard) if question.id not in kept)
        return [request for question in questions for request in requests(context, question, number)]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with answering.session(requests_of, numbers) as answers:

            def make(shard: int) -> Iterator[Sampled]:
                questions, kept, parts = plan.rows("source", shard), attempts.kept(shard), answers.take(shard)
                counts = [len(requests(context, question, number)) for question in questions if question.id not in kept]
                return attempts.merged(shard, questions, (joined([*islice(parts, count)]) for count in counts), kept)

            yield make

    return Job(
        kind="sample",
        name=name,
        title=title(context, number, "sample"),
        row=Sampled,
        settings=settings,
        inputs=attempts.inputs,
        sizes=index.sizes,
        needs=("source", *filter(None, [model.job])),
        session=session,
        count=count_sampled,
        check=partial(check_sampled, context),
        facts=answering.facts,
        attempts=attempts,
    )


def requests(context: Context, question: Question, number: int) -> list[Request]:
    """What is asked of the engine for one question in one round: one request for each of its prompts that has responses."""
    recipe = context.recipe
    indices: dict[int, list[int]] = {}
    for index in range(recipe.sample.n + prompting.open_responses(recipe, question)):
        indices.setdefault(prompting.number_of(recipe, question, index), []).append(index)
    return [
        Request(
            key=question.id,
            prompt=prompting.prompts_of(recipe, question)[prompt].render(question.text),
            images=question.images,
            seeds=tuple(seed_of(recipe.seed, "sample", number, question.id, sample) for sample in of_prompt),
            indices=tuple(of_prompt),
        )
        for prompt, of_prompt in sorted(indices.items())
    ]


def joined(parts: Sequence[Sampled]) -> Sampled:
    """The responses to one question from all its requests, by index; failed if one of them failed."""
    error = next((part.error for part in parts if part.error), "")
    responses = sorted((response for part in parts for response in part.responses), key=lambda response: response.index)
    return Sampled(question=parts[0].question, responses=() if error else tuple(responses), error=error)


def continue_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: open questions' answers cut short and finished without the image."""
    recipe = context.recipe
    answering = Answering(context, model, params(recipe.sample), recipe.sample.batch_size, "continue")
    name, upstream = f"round-{number}/continue", f"round-{number}/sample"
    settings = recipe.deciding("continue")
    if recipe.sample.engine == "file":
        settings["engine"] = engine_of(recipe, model, "continue")
    attempts = attempts_of(context.run.stage(name), settings, plan.shards(upstream))

    def requests_of(shard: int) -> list[Request]:
        kept = attempts.kept(shard)
        rows = zip(plan.rows("source", shard), plan.rows(upstream, shard), strict=True)
        wanted = (_continuation(context, question, sampled, number, model) for question, sampled in rows if question.id not in kept)
        return [request for request in wanted if request is not None]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with answering.session(requests_of, numbers) as answers:

            def make(shard: int) -> Iterator[Sampled]:
                questions, kept = plan.rows("source", shard), attempts.kept(shard)
                written = {answer.question: answer for answer in answers.take(shard)}
                every = (written.get(question.id, Sampled(question=question.id)) for question in questions if question.id not in kept)
                return attempts.merged(shard, questions, every, kept)

            yield make

    return Job(
        kind="continue",
        name=name,
        title=title(context, number, "continue"),
        row=Sampled,
        settings=settings,
        inputs=attempts.inputs,
        sizes=index.sizes,
        needs=("source", upstream, *filter(None, [model.job])),
        session=session,
        count=count_sampled,
        check=partial(check_sampled, context),
        facts=answering.facts,
        attempts=attempts,
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
    return continuation_request(question, responses, prompt, recipe.pairs, seed, lambda ids, ratio: cut(vlm, ids, ratio))


def count_sampled(rows: Sequence[Sampled]) -> Mapping[str, int]:
    """Answers, tokens, how answers ended, and failed questions."""
    counts: Counter[str] = Counter(questions=len(rows), failed=sum(bool(row.error) for row in rows))
    for row in rows:
        for response in row.responses:
            counts.update(answers=1, tokens=len(response.token_ids) - response.prefix_len)
            counts[f"ended: {response.finish}"] += 1
            if response.retokenised:
                counts["tokenised again"] += 1
            if (named := response.engine.partition(": ")[2]) and response.text:
                counts[f"{ANSWERED_BY}{named}"] += 1
    return counts


def check_sampled(context: Context, manifest: Manifest) -> None:
    """Raise EngineError when more questions failed than the recipe allows."""
    rows = context.run.stage(manifest.stage).read_all(Sampled)
    check_errors(context, manifest, (f"{row.question}: {row.error}" for row in rows if row.error))


def check_errors(context: Context, manifest: Manifest, reasons: Iterator[str]) -> None:
    """Raise EngineError when a larger share failed than `max_error_rate`, naming the first of `reasons`."""
    failed, total = manifest.counts.get("failed", 0), manifest.counts["questions"]
    allowed = context.recipe.max_error_rate
    if failed > allowed * total:
        raise EngineError(
            f"{manifest.stage}: {failed} of {amount(total, 'question')} failed, more than max_error_rate = {allowed:g} allows "
            f"({'; '.join(islice(reasons, 3))}); the others are kept; correct the cause and ask only them again with "
            f"`mixpo retry {context.run.root}`, or go on without them with --set max_error_rate=1",
            code="too-many-failures",
            key="max_error_rate",
        )
