"""Answers of a model to held-out questions, judged as they come. One job for each set, model and mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

from mixpo.engines.base import Request, SamplingParams
from mixpo.records import Prediction, Sampled
from mixpo.run import Manifest
from mixpo.stages import prompting
from mixpo.stages.base import Context, Job, Make, Plan
from mixpo.stages.models import ModelRef
from mixpo.stages.sample import Asked, check_errors, open_engine, sampling_settings, seed_of
from mixpo.stages.source import Index
from mixpo.types import Question, Response, Verdict
from mixpo.verify import Verifier


def source_name(name: str) -> str:
    """The folder with the questions of an evaluation set."""
    return f"evaluate/{name}/source"


def modes(context: Context) -> tuple[str, ...]:
    """What the recipe evaluates: greedy modes, then sampled answers if any are wanted."""
    table = context.recipe.evaluate
    return (*table.modes, *(("sampled",) if table.samples else ()))


def evaluate_job(context: Context, plan: Plan, index: Index, name: str, model: ModelRef, mode: str) -> Job:
    """Answers of `model` to the questions of set `name` in a mode: "cot" and "direct" are greedy."""
    recipe, source = context.recipe, source_name(name)
    count = recipe.evaluate.samples if mode == "sampled" else 1
    how = _params(context, mode)
    wording = "direct" if mode == "direct" else "cot"

    size = max(1, recipe.evaluate.batch_size // count)

    def requests_of(shard: int) -> list[Request]:
        return [_request(context, question, wording, mode, count) for question in plan.rows(source, shard)]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        asked = Asked(partial(open_engine, context, model, size, evaluating=True), how, requests_of, numbers, size)
        with closing(asked), Verifier(recipe.verify) as verifier:

            def make(shard: int) -> Iterator[Prediction]:
                for question, sampled in zip(plan.rows(source, shard), asked.take(shard), strict=True):
                    yield from _judge(context, verifier, question, sampled, wording, mode, count)

            yield make

    return Job(
        kind="evaluate",
        name=f"evaluate/{name}/{model.name}/{mode}",
        title=f"evaluate {name}: {model.name}, {mode}",
        row=Prediction,
        settings={
            **sampling_settings(context, model, evaluating=True),
            "prompt": prompting.settings(recipe.prompt, wording),
            "verify": recipe.verify.model_dump(exclude={"workers"}),
            "decode": {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p, "max_new_tokens": how.max_new_tokens},
            "answers": count,
        },
        inputs=tuple(
            f"{shard} {kinds} {domains}" for shard, kinds, domains in zip(plan.shards(source), index.kinds, index.domains, strict=True)
        ),
        sizes=tuple(size * count for size in index.sizes),
        unit="answers",
        needs=(source, *filter(None, [model.job])),
        session=session,
        count=count_predictions,
        check=partial(check_predictions, context),
    )


def _params(context: Context, mode: str) -> SamplingParams:
    sample, longest = context.recipe.sample, context.recipe.evaluate.max_new_tokens
    if mode == "sampled":
        return SamplingParams(temperature=sample.temperature, max_new_tokens=longest, top_k=sample.top_k, top_p=sample.top_p)
    return SamplingParams(temperature=0.0, max_new_tokens=longest)


def _request(context: Context, question: Question, wording: str, mode: str, count: int) -> Request:
    return Request(
        key=question.id,
        prompt=prompting.prompt_for(context.recipe.prompt, question, wording).render(question.text),
        images=question.images,
        seeds=tuple(seed_of(context.recipe.seed, "evaluate", mode, question.id, sample) for sample in range(count)),
        indices=tuple(range(count)),
    )


def _judge(
    context: Context, verifier: Verifier, question: Question, sampled: Sampled, wording: str, mode: str, count: int
) -> Iterator[Prediction]:
    style = prompting.prompt_for(context.recipe.prompt, question, wording).style
    if sampled.error:
        for index in range(count):
            failed = Verdict(outcome="undecided", reason=sampled.error)
            yield _prediction(question, mode, Response(question=question.id, index=index, text="", finish="error"), failed)
        return
    for response, verdict in zip(sampled.responses, verifier.verify_all(question, sampled.responses, style), strict=True):
        yield _prediction(question, mode, response, verdict)


def _prediction(question: Question, mode: str, response: Response, verdict: Verdict) -> Prediction:
    return Prediction(
        question=question.id,
        mode=mode,
        index=response.index,
        text=response.text,
        tokens=len(response.token_ids),
        finish=response.finish,
        outcome=verdict.outcome,
        extracted=verdict.extracted,
        reason=verdict.reason,
        domain=question.domain,
    )


def count_predictions(rows: Sequence[Prediction]) -> Mapping[str, int]:
    """Answers by outcome, tokens, and how many were cut or failed."""
    counts: Counter[str] = Counter(answers=len(rows), failed=sum(row.finish == "error" for row in rows), correct=0)
    for row in rows:
        counts.update({row.outcome: 1, "tokens": row.tokens})
        counts[f"ended: {row.finish}"] += 1
    return counts


def check_predictions(context: Context, manifest: Manifest) -> None:
    """Raise EngineError when more answers failed than the recipe allows."""
    rows = context.run.stage(manifest.stage).read_all(Prediction)
    check_errors(context, manifest, "answers", (f"{row.question}: {row.reason}" for row in rows if row.finish == "error"))
