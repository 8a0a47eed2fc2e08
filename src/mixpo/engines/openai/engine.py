"""Sampling from OpenAI-compatible servers. Turns requests into bodies and replies into records; connections are the transport's.

The event loop lives in a thread of its own, so that servers keep working while whoever asks writes shards.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.openai.answers import response_of, suspicious
from mixpo.engines.openai.launch import Started
from mixpo.engines.openai.pictures import address_of
from mixpo.engines.openai.probe import Capabilities, Example, Probe, continuation, together
from mixpo.engines.openai.transport import HEALTH_SECONDS, Limits, LostError, Replica, RowError, Transport
from mixpo.engines.openai.wire import Choice, Reply, parse, sampling, user_turn
from mixpo.engines.words import Words
from mixpo.errors import EngineError, SourceError
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.types import IMAGE_MARK

Value = TypeVar("Value")

TOP_UPS = 4
"""How often missing answers of a question are asked for again."""
LOOKED_AT, EXAMPLES = 16, 4
"""Questions that may serve to probe, and how many do."""
PROBES = 5
"""How often a server is probed that goes away meanwhile."""
ANOTHER = 7919
"""Added to a seed when the same slot is asked for again."""


class OpenAIEngine:
    """Asks servers at `urls`. What they can do is probed before the first question and kept in `facts`, for the manifest."""

    name = "openai"

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str = "",
        key: str = "",
        limits: Limits | None = None,
        image: ImageTable | None = None,
        words: Words | None = None,
        same_model: bool = True,
        started: Started | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """model: the name in requests; "" asks the server. key: sent as bearer token. words: tokens of the model that learns.

        same_model: the servers hold that model. started: a server of this engine's own, which ends with it.
        """
        self._urls, self._model, self._words, self._say, self._started = list(urls), model, words, say, started
        self._served = words if same_model else None
        self._ends = self._served.end_ids if self._served else ()
        self._key, self._limits, self._image = key, limits or Limits(), image or ImageTable()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._transport: Transport | None = None
        self._known: Capabilities | None = None
        self._questions: asyncio.Semaphore | None = None
        self.counts: Counter[str] = Counter()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was probed and what was retried, topped up or left over."""
        transport = self._transport.counts if self._transport is not None else {}
        return {"server": self._known.facts() if self._known else {}, "counts": {**transport, **self.counts}}

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. Raises EngineError when no server can be used."""
        if not requests:
            return
        self._start()
        images = any(request.images for request in requests)
        wanted = max(len(request.seeds) for request in requests)
        if self._known is None or (images and self._known.images == "not asked"):
            self._known = self._do(self._probe(params, wanted, self._examples(requests)))
            self._say(f"server: {self._known.said()}")
        known = self._known
        if images and known.images.startswith("no:"):
            raise EngineError(f"the questions have images, and the server takes none ({known.images}); use a vision-language server")
        if any(request.prefixes for request in requests) and not known.continuation:
            raise EngineError(
                "the server cannot continue a given beginning exactly (token ids, an open assistant turn and rendered text were tried), "
                "which DropoutNTP needs; use a server that takes prompt ids such as vLLM, or set pairs.dropout_ntp = false"
            )
        futures = [self._submit(self._question(request, params, known)) for request in requests]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Close connections, end the thread and the server that was started."""
        if self._loop is not None and self._thread is not None:
            if self._transport is not None:
                self._do(self._transport.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None
        if self._started is not None:
            self._started.close()
            self._started = None

    # --- the thread ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mixpo-openai", daemon=True)
        self._thread.start()
        self._do(self._open())

    async def _open(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        transport = Transport(urls=self._urls, headers=headers, limits=self._limits, say=self._say, check=self._check)
        await transport.open()
        self._transport = transport
        self._questions = asyncio.Semaphore(self._limits.in_flight)

    def _submit(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _do(self, work: Coroutine[Any, Any, Value]) -> Value:
        return self._submit(work).result()

    # --- probing ---------------------------------------------------------------------------------------------------------

    async def _probe(self, params: SamplingParams, wanted: int, examples: Sequence[Example]) -> Capabilities:
        assert self._transport is not None
        replicas = self._transport.replicas
        return together(await asyncio.gather(*(self._probe_one(replica, params, wanted, examples) for replica in replicas)))

    async def _probe_one(self, replica: Replica, params: SamplingParams, wanted: int, examples: Sequence[Example]) -> Capabilities:
        assert self._transport is not None
        for trial in range(1, PROBES + 1):
            await self._wait_for(replica)
            try:
                model = self._model or await self._only_model(replica)
                probe = Probe(transport=self._transport, replica=replica, model=model, params=params, wanted=wanted, words=self._served)
                return await probe.run(examples)
            except LostError as error:
                if trial == PROBES:
                    raise EngineError(f"{replica.url}: the server went away {trial} times while it was probed: {error}") from None
                self._say(f"{replica.url}: {error} while it was probed; it is probed anew")
            except RowError as error:
                raise EngineError(f"{replica.url}: the server fails where it was probed: {error}") from None
        raise AssertionError("the last trial returns or raises")

    def _examples(self, requests: Sequence[Request]) -> list[Example]:
        """The first few questions with readable images, as many in each."""
        found: dict[tuple[str, ...], Example] = {}
        shown = [request for request in requests if request.images]
        for request in shown[:LOOKED_AT]:
            if len(request.images) != len(shown[0].images):
                continue
            try:
                pictures = tuple(address_of(image, self._image) for image in request.images)
            except SourceError:
                continue
            found.setdefault(pictures, Example(prompt=request.prompt, pictures=pictures))
        return list(found.values())[:EXAMPLES]

    def _check(self) -> None:
        """Raise EngineError when the server that was started has ended."""
        if self._started is not None:
            self._started.check()

    async def _wait_for(self, replica: Replica) -> None:
        assert self._transport is not None
        for _ in range(max(1, int(self._limits.patience_s / HEALTH_SECONDS))):
            if await self._transport.healthy(replica):
                return
            self._check()
            await asyncio.sleep(HEALTH_SECONDS)
        raise EngineError(
            f"{replica.url}: no answer from /health or /v1/models within patience_s = {self._limits.patience_s:g}; start the server, "
            "or leave it out of sample.server.urls"
        )

    async def _only_model(self, replica: Replica) -> str:
        assert self._transport is not None
        names = await self._transport.models(replica)
        if len(names) != 1:
            raise EngineError(f"{replica.url}: the server lists {len(names)} models; say which in sample.server.model")
        return names[0]

    # --- one question ----------------------------------------------------------------------------------------------------

    async def _question(self, request: Request, params: SamplingParams, known: Capabilities) -> Sampled:
        assert self._questions is not None
        async with self._questions:  # so that no more images than this are in memory
            try:
                ask = self._continued if request.prefixes else self._fresh
                choices = await ask(request, params, known)
            except (RowError, SourceError) as error:
                self.counts["failed questions"] += 1
                return Sampled(question=request.key, error=str(error))
        if not known.ids_out:
            choices = [replace(choice, ids=()) for choice in choices]
        slots = range(len(request.seeds))
        return Sampled(
            question=request.key, responses=tuple(response_of(request, slot, choices[slot], self._words, self.name) for slot in slots)
        )

    async def _fresh(self, request: Request, params: SamplingParams, known: Capabilities) -> list[Choice]:
        marks = request.prompt.count(IMAGE_MARK)
        if marks != len(request.images):
            raise SourceError(f"the prompt has {marks} {IMAGE_MARK} marks for {len(request.images)} images; give one mark to each image")
        pictures = [await asyncio.to_thread(address_of, image, self._image) for image in request.images]
        turn = user_turn(request.prompt, pictures, IMAGE_MARK)
        choices = await self._collect(request, params, known, turn, shift=0)
        if suspicious(choices, params.temperature):
            self.counts["identical answers, asked again"] += 1
            again = await self._collect(request, params, known, turn, shift=ANOTHER)
            if len({choice.text for choice in (*choices, *again)}) == 1:
                raise RowError(
                    f"{len(choices)} identical answers at temperature {params.temperature:g}, twice; the server ignores the temperature"
                )
            choices = again
        return choices

    async def _collect(
        self, request: Request, params: SamplingParams, known: Capabilities, turn: Mapping[str, Any], shift: int
    ) -> list[Choice]:
        """One choice for each seed; what is missing is asked for again with other seeds."""
        got: dict[int, Choice] = {}
        for trial in range(TOP_UPS + 1):
            missing = [slot for slot in range(len(request.seeds)) if slot not in got]
            if not missing:
                break
            if trial:
                self.counts["answers topped up"] += len(missing)
            parts = [missing[start : start + known.n] for start in range(0, len(missing), known.n)]
            seeds = [request.seeds[part[0]] + shift + ANOTHER * trial for part in parts]
            replies = await _all([self._ask(known, params, turn, len(part), seed) for part, seed in zip(parts, seeds, strict=True)])
            for part, reply in zip(parts, replies, strict=True):
                got |= dict(zip(part, reply.choices, strict=False))
                self.counts["unusable answers"] += reply.unusable
                self.counts["answers too many"] += max(0, len(reply.choices) - len(part))
        if len(got) < len(request.seeds):
            raise RowError(f"only {len(got)} of {len(request.seeds)} answers came in {TOP_UPS + 1} rounds of asking")
        return [got[slot] for slot in range(len(request.seeds))]

    async def _ask(self, known: Capabilities, params: SamplingParams, turn: Mapping[str, Any], n: int, seed: int) -> Reply:
        assert self._transport is not None
        body = sampling(known.model, params, n, seed, known.dialect, self._ends)
        body["messages"] = [turn]
        if known.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self._transport.post("/chat/completions", body, parse)

    async def _continued(self, request: Request, params: SamplingParams, known: Capabilities) -> list[Choice]:
        return await _all([self._continue(request, slot, params, known) for slot in range(len(request.seeds))])

    async def _continue(self, request: Request, slot: int, params: SamplingParams, known: Capabilities) -> Choice:
        """Raises RowError when the server did not count the prompt and the beginning as they are."""
        assert self._transport is not None
        assert self._served is not None
        if not self._served.control.isdisjoint(request.prefixes[slot]):
            raise SourceError("the beginning to continue holds an image token or another control token of the model; cut it before that")
        path, body, expected = continuation(self._served, known.continuation, request.prompt, request.prefixes[slot])
        whole = sampling(known.model, params, 1, request.seeds[slot], known.dialect, self._ends) | body
        if known.logprobs:
            whole |= {"logprobs": 1} if path == "/completions" else {"logprobs": True, "top_logprobs": 1}
        reply: Reply = await self._transport.post(path, whole, parse)
        if reply.prompt_tokens != expected:
            raise RowError(
                f"the beginning did not arrive as it is: the server counts {reply.prompt_tokens} prompt tokens, {expected} were sent"
            )
        if not reply.choices:
            raise RowError("no usable continuation came")
        return reply.choices[0]


async def _all(works: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """The results in order; when one fails the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
