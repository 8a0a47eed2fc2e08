"""The job behind `sample`, `continue`, `branch` and `answer`: requests to an engine, shard by shard; failed ones are retried later."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby, islice
from typing import Any

from mixpo.engines.base import Engine, Request
from mixpo.errors import EngineError
from mixpo.plural import amount
from mixpo.records import ANSWERED_BY, Sampled
from mixpo.run import Manifest
from mixpo.stages.attempts import attempts_of
from mixpo.stages.engine import EngineOpener
from mixpo.stages.job import Context, Job, Make, Plan, ResponseKind, add_facts
from mixpo.stages.question_index import QuestionIndex
from mixpo.types import Question, content_id


def seed_of(seed: int, *what: object) -> int:
    """A 63-bit seed that depends on the run's seed and on what it decides, and on nothing else."""
    return int(content_id(seed, *what), 16) >> 1


def request_of(question: Question, prompt: str, indices: Sequence[int], seed: int, *what: object) -> Request:
    """The responses `indices` to a question; seed, what: each has a seed of its own (`seed_of`)."""
    return Request(
        key=question.id,
        prompt=prompt,
        images=question.images,
        seeds=tuple(seed_of(seed, *what, question.id, index) for index in indices),
        indices=tuple(indices),
        source=question.source,
        domain=question.domain,
        history=question.history,
    )


def response_job(
    context: Context,
    plan: Plan,
    engine: EngineOpener,
    requests: Callable[[int], Iterable[Request]],
    *,
    kind: ResponseKind,
    name: str,
    title: str,
    settings: Mapping[str, Any],
    inputs: Sequence[str],
    index: QuestionIndex,
    needs: tuple[str, ...],
) -> Job:
    """One record for each question of the stage `needs[0]`.

    requests: those of a shard, in the order of its questions; of several for one question the responses are joined, and a question without
    one gets an empty record. inputs: of the first attempt.
    """
    attempts = attempts_of(context.run.stage(name), settings, inputs)
    facts: dict[str, Any] = {}

    def missing(shard: int) -> list[Request]:
        kept = attempts.kept(shard)
        return [request for request in requests(shard) if request.key not in kept]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with closing(ShardResponses(engine, missing, numbers)) as responses:
            yield lambda shard: attempts.merged(shard, plan.rows(needs[0], shard), responses.take(shard))
        add_facts(facts, responses.facts)

    return Job(
        kind=kind,
        name=name,
        title=title,
        row=Sampled,
        settings=settings,
        inputs=attempts.inputs,
        sizes=index.sizes,
        needs=needs,
        session=session,
        count=count_sampled,
        check=partial(check_sampled, context, source=needs[0]),
        ranks="each" if engine.in_each_rank else "main",
        facts=facts,
        attempts=attempts,
    )


class ShardResponses:
    """Responses to the requests of many shards, taken shard by shard; batches are filled across shards.

    The engine (and with it the model) is loaded for the first request: a stage without requests loads nothing.
    """

    def __init__(self, engine: EngineOpener, requests: Callable[[int], Sequence[Request]], numbers: Sequence[int]) -> None:
        self._opener, self._requests = engine, requests
        self._waiting = deque(numbers)
        self.facts: dict[str, Any] = {}
        self._counts: dict[int, list[int]] = {}
        self._stream: Iterator[Sampled] = iter(())
        self._engine: Engine | None = None

    def take(self, number: int) -> Iterator[Sampled]:
        """The responses of one shard, one record for each question; shards are taken in the order of `numbers`, each to its end."""
        if number not in self._counts:
            self._ask()
        for count in self._counts[number]:
            yield joined([*islice(self._stream, count)])

    def close(self) -> None:
        """Close the engine if there is one, and keep its facts."""
        if self._engine is not None:
            self.facts.update(getattr(self._engine, "facts", {}))
            self._engine.close()

    def _ask(self) -> None:
        requests: list[Request] = []
        while self._waiting and len(requests) < self._opener.window:
            number = self._waiting.popleft()
            of_shard = self._requests(number)
            self._counts[number] = [len([*group]) for _, group in groupby(of_shard, key=lambda request: request.key)]
            requests += of_shard
        if requests and self._engine is None:
            self._engine = self._opener.open()
        self._stream = self._engine.sample(requests, self._opener.params) if requests and self._engine is not None else iter(())


def joined(parts: Sequence[Sampled]) -> Sampled:
    """The responses to one question from all its requests, by index; failed if one of them failed."""
    if len(parts) == 1:
        return parts[0]
    error = next((part.error for part in parts if part.error), "")
    responses = sorted((response for part in parts for response in part.responses), key=lambda response: response.index)
    return Sampled(question=parts[0].question, responses=() if error else tuple(responses), error=error)


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


def check_sampled(context: Context, manifest: Manifest, source: str, remedy: str = "") -> None:
    """Raise EngineError when a larger share of questions failed than `max_error_rate`, naming the first reasons.

    source: the stage with the questions. remedy: by default `mixpo retry`.
    """
    failed, total = manifest.counts.get("failed", 0), manifest.counts["questions"]
    allowed = context.recipe.max_error_rate
    if failed > allowed * total:
        rows = context.run.stage(manifest.stage).read_all(Sampled)
        first = {row.question: row.error for row in islice((row for row in rows if row.error), 3)}
        labels = {question.id: question.label for question in context.run.stage(source).read_all(Question) if question.id in first}
        reasons = (f"{labels.get(question, question)}: {error}" for question, error in first.items())
        remedy = remedy or f"correct the cause and retry only them with `mixpo retry {context.run.root}`"
        raise EngineError(
            f"{manifest.stage}: {failed} of {amount(total, 'question')} failed, more than max_error_rate = {allowed:g} allows "
            f"({'; '.join(reasons)}); the others are kept; {remedy}, or continue without them with --set max_error_rate=1",
            code="too-many-failures",
            key="max_error_rate",
        )
