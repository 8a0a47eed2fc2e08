"""The engine for OpenAI-compatible servers: waits for them, probes them, and hands each question to `sampler`.

Requests run in a thread of their own (`ClientThread`), so servers stay busy while the caller writes shards.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.openai.client import HEALTH_SECONDS, BusyError, Client, Limits, Replica, RequestError, ServerLostError
from mixpo.engines.openai.client_thread import ClientThread
from mixpo.engines.openai.probe import Capabilities, Probe, ProbeCache, common_capabilities
from mixpo.engines.openai.protocol import image_url
from mixpo.engines.openai.sampler import Sampler
from mixpo.engines.openai.server import ServerProcess
from mixpo.engines.openai.vision_probe import Example
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError, SourceError
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.types import IMAGE_TOKEN

Value = TypeVar("Value")

CANDIDATES, EXAMPLES = 16, 4
"""Questions considered for the probe, and examples taken from them."""
PROBE_TRIES = 5
"""Probes of a server whose connection is lost meanwhile."""
SAY_SECONDS = 20.0
"""How often the user is told what a probe waits for."""
NAMED = 5
"""Models that an error message names."""


class OpenAIEngine:
    """Samples from the servers at `urls`. Their capabilities are probed before the first question; `facts` holds them for the manifest."""

    name = "openai"

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str = "",
        key: str = "",
        limits: Limits | None = None,
        image: ImageTable | None = None,
        codec: TokenCodec | None = None,
        same_model: bool = True,
        eval_only: bool = False,
        process: ServerProcess | None = None,
        probed: ProbeCache | None = None,
        where: str = "sample.server",
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """model: the name in requests; "" asks the server. key: sent as bearer token. codec: tokens of the trained model.

        same_model: the servers hold that model. eval_only: see `Sampler`. process: the server behind `urls`, if mixpo started it.
        probed: shared by engines for the same work. where: the recipe table that names the servers. notify: receives messages.
        """
        self._urls, self._model, self._codec, self._notify, self._process = list(urls), model, codec, notify, process
        self._served = codec if same_model and not eval_only else None
        self._eval_only, self._where = eval_only, where
        self._key, self._limits, self._image = key, limits or Limits(), image or ImageTable()
        self._client: Client | None = None
        self._thread: ClientThread | None = None
        self._probed = probed or ProbeCache()
        self._questions: asyncio.Semaphore | None = None
        self.counts: Counter[str] = Counter()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Capabilities, and counts of retries, top-ups and dropped responses."""
        client = self._client.counts if self._client is not None else {}
        known = self._probed.capabilities
        return {"server": known.facts() if known else {}, "counts": {**client, **self.counts}}

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. Raises EngineError when no server can be used."""
        if not requests:
            return
        thread = self._open()
        known = self._capabilities(thread, requests, params)
        sampler = Sampler(
            client=thread.client, known=known, params=params, image=self._image, codec=self._codec, served=self._served,
            eval_only=self._eval_only, name=self.name, counts=self.counts,
        )  # fmt: skip
        futures = [thread.submit(self._question(sampler, request)) for request in requests]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Close connections and end the thread. A server process keeps running; whoever started it ends it."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def _open(self) -> ClientThread:
        if self._thread is None:
            self._client = Client(
                urls=self._urls, key=self._key, limits=self._limits, notify=self._notify, check=self._check_process, where=self._where
            )  # fmt: skip
            self._thread = ClientThread(self._client)
            self._questions = asyncio.Semaphore(self._limits.in_flight)
        return self._thread

    async def _question(self, sampler: Sampler, request: Request) -> Sampled:
        assert self._questions is not None
        async with self._questions:  # bounds the images in memory
            return await sampler.answers(request)

    # --- probing ---------------------------------------------------------------------------------------------------------

    def _capabilities(self, thread: ClientThread, requests: Sequence[Request], params: SamplingParams) -> Capabilities:
        """Probed now unless an earlier call did. Raises EngineError where the servers cannot do what the requests need."""
        images = any(request.images for request in requests)
        known = self._probed.capabilities
        if known is None or (images and known.images == "not asked"):
            wanted = max(len(request.seeds) for request in requests)
            known = self._probed.capabilities = thread.run(self._probe(thread.client, params, wanted, self._examples(requests)))
            self._notify(f"server: {known.summary()}")
        if images and known.images.startswith("no:"):
            raise EngineError(
                f"the questions have images, and the server takes none ({known.images}); use a vision-language server",
                code="server-takes-no-images",
                key=self._where,
            )
        if any(request.prefixes and not request.images for request in requests) and not known.continuation:
            raise EngineError(
                "the server cannot continue a given prefix exactly (tried: token ids, an open assistant turn, rendered text), "
                "which DropoutNTP needs; use a server that takes prompt ids such as vLLM, or set pairs.dropout_ntp = false",
                code="server-cannot-continue",
                key=self._where,
            )
        if any(request.prefixes and request.images for request in requests):
            if known.image_continuation is None:
                continues = thread.run(self._continues_turns(thread.client, known, params))
                known = self._probed.capabilities = replace(known, image_continuation=continues)
            if not known.image_continuation:
                raise EngineError(
                    "the server cannot continue an open assistant turn exactly, which pairs.branches needs for prompts with images; use a "
                    "server with continue_final_message such as vLLM or SGLang, sample in process, or remove [pairs.branches]",
                    code="server-cannot-continue",
                    key=self._where,
                )
        return known

    async def _continues_turns(self, client: Client, known: Capabilities, params: SamplingParams) -> bool:
        """Whether all servers continue an open assistant turn."""
        if known.continuation == "prefix":
            return True
        make = partial(Probe, client=client, model=known.model, params=params, wanted=1, codec=self._served, dialect=known.dialect)
        probes = [make(replica=replica) for replica in client.replicas]
        return all([await probe.route(("prefix",), known.bias) for probe in probes])

    async def _probe(self, client: Client, params: SamplingParams, wanted: int, examples: Sequence[Example]) -> Capabilities:
        make = partial(Probe, client=client, params=params, wanted=wanted, codec=self._served, eval_only=self._eval_only)
        probed = await asyncio.gather(*(self._probe_replica(client, replica, make, examples) for replica in client.replicas))
        return common_capabilities(probed, self._where)

    async def _probe_replica(
        self, client: Client, replica: Replica, make: Callable[..., Probe], examples: Sequence[Example]
    ) -> Capabilities:
        deadline = 0.0
        for trial in range(1, PROBE_TRIES + 1):
            await self._wait_until_ready(client, replica)
            deadline = deadline or time.monotonic() + self._limits.patience_s
            try:
                model = self._model or await self._patiently(self._only_model(client, replica), replica, deadline, lambda: "its models")
                probe = make(replica=replica, model=model)
                return await self._patiently(probe.run(examples), replica, deadline, lambda: probe.step)  # noqa: B023
            except BusyError as error:
                raise EngineError(f"{replica.url}: {error}", code="server-busy", key=self._where) from None
            except ServerLostError as error:
                if trial == PROBE_TRIES:
                    message = f"{replica.url}: the server went away {trial} times while it was probed: {error}"
                    raise EngineError(message, code="server-lost", key=self._where) from None
                self._notify(f"{replica.url}: {error} while it was probed; probing again")
            except RequestError as error:
                message = f"{replica.url}: the server fails while it is probed: {error}"
                raise EngineError(message, code="server-probe-failed", key=self._where) from None
        raise AssertionError("the last trial returns or raises")

    async def _patiently(self, work: Coroutine[Any, Any, Value], replica: Replica, deadline: float, step: Callable[[], str]) -> Value:
        """The result of a part of the probe. Says what it waits for; raises EngineError at the deadline."""
        begun, task = time.monotonic(), asyncio.ensure_future(work)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EngineError(
                        f"{replica.url}: the server stalls: the test requests were not answered within patience_s = "
                        f"{self._limits.patience_s:g} (waiting for {step()}); restart the server, or raise {self._where}.patience_s",
                        code="server-stalls",
                        key=f"{self._where}.patience_s",
                    )
                if (await asyncio.wait({task}, timeout=min(SAY_SECONDS, left)))[0]:
                    return task.result()
                waited = f"{time.monotonic() - begun:.0f} s, patience_s = {self._limits.patience_s:g}"
                self._notify(f"{replica.url}: waiting for {step()} ({waited})")
        finally:
            task.cancel()

    def _examples(self, requests: Sequence[Request]) -> list[Example]:
        """The first few questions with readable images, the same number of images in each."""
        examples: dict[tuple[str, ...], Example] = {}
        with_images = [request for request in requests if request.images]
        for request in with_images[:CANDIDATES]:
            if len(request.images) != len(with_images[0].images) or request.prompt.count(IMAGE_TOKEN) != len(request.images):
                continue  # images in earlier turns say nothing about those of one message
            try:
                images = tuple(image_url(image, self._image.of(request)) for image in request.images)
            except SourceError:
                continue
            examples.setdefault(images, Example(prompt=request.prompt, images=images))
        return list(examples.values())[:EXAMPLES]

    def _check_process(self) -> None:
        """Raise EngineError when the server that mixpo started has ended."""
        if self._process is not None:
            self._process.check()

    async def _wait_until_ready(self, client: Client, replica: Replica) -> None:
        """Raises EngineError when a server is not ready within `patience_s`."""
        begun, patience, reported = time.monotonic(), self._limits.patience_s, ""
        while why := await client.unavailable(replica):
            self._check_process()
            if time.monotonic() - begun > patience:
                remedy = self._process.output() if self._process else f"start the server, or correct {self._where}.urls"
                message = f"{replica.url} {why}, after patience_s = {patience:g}; {remedy}"
                raise EngineError(message, code="server-not-ready", key=f"{self._where}.urls")
            if why != reported and self._process is None:
                self._notify(f"{replica.url} {why}; waiting for it up to patience_s = {patience:g}")
                reported = why
            await asyncio.sleep(HEALTH_SECONDS)

    async def _only_model(self, client: Client, replica: Replica) -> str:
        names = await client.models(replica)
        if len(names) != 1:
            listed = f"{len(names)} models ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})" if names else "no model"
            raise EngineError(
                f"{replica.url}: the server lists {listed}; set {self._where}.model",
                code="server-model-unclear",
                key=f"{self._where}.model",
            )
        return names[0]


def unavailable_servers(urls: Sequence[str], where: str, key: str = "") -> list[str]:
    """One sentence for each server that is not ready now. where: the recipe table that names them. key: sent as bearer token."""

    async def reason(client: Client, replica: Replica) -> str:
        try:
            why = await client.unavailable(replica)
        except EngineError as error:
            return str(error)
        return f"{replica.url} {why}; start the server or correct {where}.urls" if why else ""

    async def check_all() -> list[str]:
        client = Client(urls=urls, key=key, limits=Limits(), where=where)
        await client.open()
        try:
            return await asyncio.gather(*(reason(client, replica) for replica in client.replicas))
        finally:
            await client.close()

    return [text for text in asyncio.run(check_all()) if text] if urls else []
