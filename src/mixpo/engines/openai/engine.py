"""Sampling from OpenAI-compatible servers. Turns requests into bodies and replies into records; connections are the transport's.

The event loop lives in a thread of its own, so that servers keep working while whoever asks writes shards.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.openai.client import HEALTH_SECONDS, BusyError, Limits, LostError, Replica, RowError, Transport, bearer
from mixpo.engines.openai.probe import Capabilities, Probe, Probed, together
from mixpo.engines.openai.protocol import address_of
from mixpo.engines.openai.sampler import Asking
from mixpo.engines.openai.server import Started
from mixpo.engines.openai.vision_probe import Example
from mixpo.engines.tokens import Words
from mixpo.errors import EngineError, SourceError
from mixpo.recipe import ImageTable
from mixpo.records import Sampled

Value = TypeVar("Value")

LOOKED_AT, EXAMPLES = 16, 4
"""Questions that may serve to probe, and how many do."""
PROBES = 5
"""How often a server is probed that goes away meanwhile."""
NAMED = 5
"""Models that an error names."""


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
        foreign: bool = False,
        started: Started | None = None,
        probed: Probed | None = None,
        where: str = "sample.server",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """model: the name in requests; "" asks the server. key: sent as bearer token. words: tokens of the model that learns.

        same_model: the servers hold that model. foreign: see `Asking`. started: the server behind `urls`, where mixpo started it.
        probed: what an earlier engine for the same work has seen. where: the table of the recipe that names the servers.
        """
        self._urls, self._model, self._words, self._say, self._started = list(urls), model, words, say, started
        self._served = words if same_model and not foreign else None
        self._foreign, self._where = foreign, where
        self._key, self._limits, self._image = key, limits or Limits(), image or ImageTable()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._transport: Transport | None = None
        self._probed = probed or Probed()
        self._questions: asyncio.Semaphore | None = None
        self.counts: Counter[str] = Counter()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was probed and what was retried, topped up or left over."""
        transport = self._transport.counts if self._transport is not None else {}
        known = self._probed.found
        return {"server": known.facts() if known else {}, "counts": {**transport, **self.counts}}

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. Raises EngineError when no server can be used."""
        if not requests:
            return
        self._start()
        images = any(request.images for request in requests)
        wanted = max(len(request.seeds) for request in requests)
        known = self._probed.found
        if known is None or (images and known.images == "not asked"):
            known = self._probed.found = self._do(self._probe(params, wanted, self._examples(requests)))
            self._say(f"server: {known.said()}")
        if images and known.images.startswith("no:"):
            raise EngineError(f"the questions have images, and the server takes none ({known.images}); use a vision-language server")
        if any(request.prefixes for request in requests) and not known.continuation:
            raise EngineError(
                "the server cannot continue a given beginning exactly (token ids, an open assistant turn and rendered text were tried), "
                "which DropoutNTP needs; use a server that takes prompt ids such as vLLM, or set pairs.dropout_ntp = false"
            )
        assert self._transport is not None
        asking = Asking(
            transport=self._transport, known=known, params=params, image=self._image, words=self._words, served=self._served,
            foreign=self._foreign, name=self.name, counts=self.counts,
        )  # fmt: skip
        futures = [self._submit(self._question(asking, request)) for request in requests]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Close connections and end the thread. A server that was started goes on; it is whoever's who started it."""
        if self._loop is not None and self._thread is not None:
            if self._transport is not None:
                self._do(self._transport.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    # --- the thread ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mixpo-openai", daemon=True)
        self._thread.start()
        self._do(self._open())

    async def _open(self) -> None:
        transport = Transport(
            urls=self._urls, headers=bearer(self._key), limits=self._limits, say=self._say, check=self._check, where=self._where
        )  # fmt: skip
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
        return together(await asyncio.gather(*(self._probe_one(replica, params, wanted, examples) for replica in replicas)), self._where)

    async def _probe_one(self, replica: Replica, params: SamplingParams, wanted: int, examples: Sequence[Example]) -> Capabilities:
        assert self._transport is not None
        make = partial(Probe, transport=self._transport, params=params, wanted=wanted, words=self._served, foreign=self._foreign)
        for trial in range(1, PROBES + 1):
            await self._wait_for(replica)
            try:
                probe = make(replica=replica, model=self._model or await self._only_model(replica))
                return await probe.run(examples)
            except BusyError as error:
                raise EngineError(f"{replica.url}: {error}") from None
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
        """Raises EngineError when a server does not say within `patience_s` that it can work. Says what it waits for."""
        assert self._transport is not None
        begun, patience, told = time.monotonic(), self._limits.patience_s, ""
        while why := await self._transport.trouble(replica):
            self._check()
            if time.monotonic() - begun > patience:
                remedy = self._started.says() if self._started else f"start the server, or correct {self._where}.urls"
                raise EngineError(f"{replica.url} {why}, after patience_s = {patience:g}; {remedy}")
            if why != told and self._started is None:
                self._say(f"{replica.url} {why}; waiting for it up to patience_s = {patience:g}")
                told = why
            await asyncio.sleep(HEALTH_SECONDS)

    async def _only_model(self, replica: Replica) -> str:
        assert self._transport is not None
        names = await self._transport.models(replica)
        if len(names) != 1:
            listed = f"{len(names)} models ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})" if names else "no model"
            raise EngineError(f"{replica.url}: the server lists {listed}; say which in {self._where}.model")
        return names[0]

    async def _question(self, asking: Asking, request: Request) -> Sampled:
        assert self._questions is not None
        async with self._questions:  # so that no more images than this are in memory
            return await asking.answers(request)


def troubles(urls: Sequence[str], where: str, key: str = "") -> list[str]:
    """What is wrong, now, with each server that does not say that it can work. where: the table that names them. key: as bearer token."""

    async def ask() -> list[str]:
        transport = Transport(urls=urls, headers=bearer(key), limits=Limits(), say=lambda text: None, where=where)
        await transport.open()
        try:
            found = await asyncio.gather(*(_trouble(transport, replica) for replica in transport.replicas))
        finally:
            await transport.close()
        return [text for text in found if text]

    return asyncio.run(ask()) if urls else []


async def _trouble(transport: Transport, replica: Replica) -> str:
    try:
        why = await transport.trouble(replica)
    except EngineError as error:
        return str(error)
    return f"{replica.url} {why}; start the server or correct {transport.where}.urls" if why else ""
