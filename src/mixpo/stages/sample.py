"""Answers from the model to every question, and for open questions the continuations without the image (DropoutNTP).

The two are separate jobs, so that another cut of the continuations samples nothing anew.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mixpo.engines import Serving, create
from mixpo.engines.base import Engine, Request, SamplingParams
from mixpo.errors import EngineError, RecipeError
from mixpo.pairs.dropout_ntp import continuation_request
from mixpo.recipe import Recipe, SampleTable, ServedModel
from mixpo.records import ANSWERED_BY, Sampled
from mixpo.run import Manifest
from mixpo.stages import prompting
from mixpo.stages.again import attempts_of
from mixpo.stages.base import Context, Job, Make, Plan, title
from mixpo.stages.models import ModelRef
from mixpo.stages.source import Index
from mixpo.types import Question, content_id


def where_of(served: ServedModel) -> str:
    """The table of a served model in messages."""
    return f'evaluate.served "{served.name}"'


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


def sampling_settings(context: Context, model: ModelRef, evaluating: bool = False) -> dict[str, Any]:
    """What decides an answer besides the prompt: engine, model, precision and pixels. Batch size and addresses change nothing."""
    recipe, engine = context.recipe, engine_of(context.recipe, model, evaluating)
    server = recipe.sample.server
    if model.served is not None:
        asked = {"server": {"model": model.served.model}, "model": model.identity, "image": recipe.image.model_dump()}
        return {"engine": engine, **asked, "seed": recipe.seed}
    return {
        "engine": engine,
        **({"server": server.model_dump(include={"model", "same_model", "serve", "start"})} if engine == "openai" else {}),
        "script": script_digest(recipe, context.base),
        "model": model.identity,
        "dtype": recipe.model.dtype,
        "image": recipe.image.model_dump(),
        "seed": recipe.seed,
    }


def engine_of(recipe: Recipe, model: ModelRef, evaluating: bool) -> str:
    """The engine for a model. Servers at fixed addresses hold the start model and no trained one.

    So that models are compared under one engine, such servers evaluate nothing.
    """
    table = recipe.sample
    if model.served is not None:
        return "openai"
    fixed = table.engine == "openai" and not table.server.starts
    return "transformers" if fixed and (evaluating or model.folder is not None) else table.engine


def window_of(recipe: Recipe, engine: str, model: ModelRef, batch_size: int) -> int:
    """Questions that are handed to an engine at a time. At the end of each window servers run out of work, so it is long for them."""
    return max(batch_size, 16 * (model.served or recipe.sample.server).in_flight) if engine == "openai" else batch_size


def script_digest(recipe: Recipe, base: Path) -> str:
    """A digest of the scripted engine's file; "" for other engines. Raises RecipeError when it is not there."""
    table = recipe.sample
    if table.engine != "scripted" or table.script is None:
        return ""
    path = base / table.script
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise RecipeError(f"sample.script: {path} cannot be read ({error.strerror}); the path is relative to the recipe") from None


class Asked:
    """Answers to the requests of many shards, taken shard by shard; batches are filled across shards.

    The engine (and with it the model) is loaded when the first request comes: a stage with nothing to ask loads nothing.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        how: SamplingParams,
        requests_of: Callable[[int], Sequence[Request]],
        numbers: Sequence[int],
        batch_size: int,
    ) -> None:
        self._open_engine, self._how, self._requests_of, self._batch_size = open_engine, how, requests_of, batch_size
        self._waiting = deque(numbers)
        self.facts: dict[str, Any] = {}
        self._counts: dict[int, int] = {}
        self._stream: Iterator[Sampled] = iter(())
        self._engine: Engine | None = None

    def take(self, number: int) -> Iterator[Sampled]:
        """The answers of one shard; shards are taken in the order of `numbers`, each to its end."""
        if number not in self._counts:
            self._ask()
        return islice(self._stream, self._counts[number])

    def close(self) -> None:
        """Close the engine if there is one, and keep what it has to say of itself."""
        if self._engine is not None:
            self.facts.update(getattr(self._engine, "facts", {}))
            self._engine.close()

    def _ask(self) -> None:
        requests: list[Request] = []
        while self._waiting and len(requests) < self._batch_size:
            number = self._waiting.popleft()
            of_shard = self._requests_of(number)
            self._counts[number] = len(of_shard)
            requests += of_shard
        if requests and self._engine is None:
            self._engine = self._open_engine()
        self._stream = self._engine.sample(requests, self._how) if requests and self._engine is not None else iter(())


def open_engine(context: Context, model: ModelRef, batch_size: int, evaluating: bool = False) -> Engine:
    """The recipe's engine on a model."""
    recipe, models, table = context.recipe, context.models, context.recipe.sample
    name = engine_of(recipe, model, evaluating)
    if name != table.engine and model.served is None:
        context.progress.say(f"{model.name}: answered in this process, because sample.server.urls hold the start model only")
    loads_itself = name == "vllm" or (name == "openai" and table.server.starts and model.served is None)
    return create(
        name,
        # Another model's answers are counted in tokens of the start model.
        vlm=models.load(model) if name == "transformers" else models.words(models.start() if model.served else model),
        image=recipe.image,
        batch_size=batch_size,
        script=context.base / table.script if table.script is not None else None,
        serving=Serving(
            table=model.served.server if model.served else table.server,
            where=where_of(model.served) if model.served else "sample.server",
            foreign=model.served is not None,
            folder=models.folder(model) if loads_itself else None,
            dtype=recipe.model.dtype,
            device=recipe.model.device,
            logs=context.run.root / "servers",
            keep=context.keep,
            say=context.progress.say,
        ),
    )


def asked(
    context: Context, model: ModelRef, how: SamplingParams, requests_of: Callable[[int], Sequence[Request]], numbers: Sequence[int]
) -> Asked:
    """The answers of the recipe's engine to the requests of sampling and continuing."""
    size = window_of(context.recipe, engine_of(context.recipe, model, evaluating=False), model, context.recipe.sample.batch_size)
    return Asked(partial(open_engine, context, model, context.recipe.sample.batch_size), how, requests_of, numbers, size)


def sample_job(context: Context, plan: Plan, index: Index, number: int, model: ModelRef) -> Job:
    """Round `number`: n answers to each question."""
    recipe, table = context.recipe, context.recipe.sample
    facts: dict[str, Any] = {}

    name = f"round-{number}/sample"
    settings = {
        **sampling_settings(context, model),
        "round": number,
        "prompt": prompting.settings(recipe.prompt),
        "sample": table.model_dump(include={"n", "temperature", "top_k", "top_p", "stop", "max_new_tokens"}),
    }
    shards = prompting.chosen_by(recipe.prompt, plan.shards("source"), index.domains, index.sources)
    attempts = attempts_of(context.run.stage(name), settings, shards)

    def requests_of(shard: int) -> list[Request]:
        kept = attempts.kept(shard)
        return [request(context, question, number) for question in plan.rows("source", shard) if question.id not in kept]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with closing(asked(context, model, params(table), requests_of, numbers)) as answers:

            def make(shard: int) -> Iterator[Sampled]:
                return attempts.merged(shard, plan.rows("source", shard), answers.take(shard), attempts.kept(shard))

            yield make
        facts.update(answers.facts)

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
        facts=facts,
        attempts=attempts,
    )


def request(context: Context, question: Question, number: int) -> Request:
    """What is asked of the engine for one question in one round."""
    recipe = context.recipe
    return Request(
        key=question.id,
        prompt=prompting.prompt_for(recipe.prompt, question).render(question.text),
        images=question.images,
        seeds=tuple(seed_of(recipe.seed, "sample", number, question.id, sample) for sample in range(recipe.sample.n)),
        indices=tuple(range(recipe.sample.n)),
    )


def continue_job(context: Context, plan: Plan, index: Index, number: int, model: ModelRef) -> Job:
    """Round `number`: open questions' answers cut short and finished without the image."""
    recipe, table = context.recipe, context.recipe.pairs
    facts: dict[str, Any] = {}
    name, upstream = f"round-{number}/continue", f"round-{number}/sample"
    settings = table.model_dump(include={"dropout_ntp", "dropout_ratio", "max_dropout_per_question"})
    attempts = attempts_of(context.run.stage(name), settings, plan.shards(upstream))

    def requests_of(shard: int) -> list[Request]:
        kept = attempts.kept(shard)
        rows = zip(plan.rows("source", shard), plan.rows(upstream, shard), strict=True)
        wanted = (_continuation(context, question, sampled, number, model) for question, sampled in rows if question.id not in kept)
        return [request for request in wanted if request is not None]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with closing(asked(context, model, params(recipe.sample), requests_of, numbers)) as answers:

            def make(shard: int) -> Iterator[Sampled]:
                questions, kept = plan.rows("source", shard), attempts.kept(shard)
                written = {answer.question: answer for answer in answers.take(shard)}
                every = (written.get(question.id, Sampled(question=question.id)) for question in questions if question.id not in kept)
                return attempts.merged(shard, questions, every, kept)

            yield make
        facts.update(answers.facts)

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
        facts=facts,
        attempts=attempts,
    )


def _continuation(context: Context, question: Question, answers: Sampled, number: int, model: ModelRef) -> Request | None:
    if question.answer is not None or not answers.responses or not context.recipe.pairs.dropout_ntp:
        return None
    from mixpo.vlm.cut import cut
    from mixpo.vlm.prompt import without_images

    recipe, vlm = context.recipe, context.models.words(model)
    prompt = without_images(prompting.prompt_for(recipe.prompt, question).render(question.text))
    seed = seed_of(recipe.seed, "continue", number)
    return continuation_request(question, answers.responses, prompt, recipe.pairs, seed, lambda ids, ratio: cut(vlm, ids, ratio))


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
    check_errors(context, manifest, "questions", (f"{row.question}: {row.error}" for row in rows if row.error))


def check_errors(context: Context, manifest: Manifest, unit: str, reasons: Iterator[str]) -> None:
    """Raise EngineError when a larger share failed than `max_error_rate`, naming the first of `reasons`."""
    failed, total = manifest.counts.get("failed", 0), manifest.counts[unit]
    allowed = context.recipe.max_error_rate
    if failed > allowed * total:
        raise EngineError(
            f"{manifest.stage}: {failed} of {total} {unit} failed, more than max_error_rate = {allowed:g} allows "
            f"({'; '.join(islice(reasons, 3))}); the others are kept; correct the cause and ask only them again with "
            f"`mixpo retry {context.run.root}`, or go on without them with --set max_error_rate=1"
        )
