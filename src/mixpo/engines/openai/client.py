"""Posts JSON to one of several equal servers: bounded concurrency, retries, quotas, replicas. Knows nothing about what is asked.

Serves the engine (`engine.py`) and the judge (`mixpo.evaluate.judge`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mixpo.engines.openai import health
from mixpo.engines.openai.protocol import InvalidReplyError, error_reason
from mixpo.errors import EngineError, MissingExtra
from mixpo.masking import masked, masked_body, masked_reply
from mixpo.plural import amount
from mixpo.recipe import Endpoint

if TYPE_CHECKING:
    import aiohttp

Value = TypeVar("Value")

FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds before the first retry, and at most before any."""
HEALTH_SECONDS = 1.0
"""Interval of the health checks of a server that is down."""
REFUSALS = {
    401: "check api_key_env",
    402: "pay for the account, or check api_key_env",
    403: "check api_key_env",
    404: "check urls (most end in /v1) and model",
    405: "check urls (most end in /v1)",
}
"""HTTP statuses that every further request would get too, and the remedy."""
NO_QUOTA = b"insufficient_quota"
"""In the body of a 429 from a commercial endpoint whose account has no credit left; waiting does not help."""
LOST = ("unreachable", "connection lost", "timed out")
"""Kinds of failures that say nothing about the request itself."""
LONG_WAIT = 10.0
"""Seconds of one request at a server that is busy or fails after which the user is told."""


class RequestError(Exception):
    """This request failed for good; others may succeed. status: of HTTP, or 0. kind: of the last failed attempt."""

    def __init__(self, message: str, *, status: int = 0, kind: str = "") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class ServerLostError(Exception):
    """The server was down or went down; nothing is known about the request itself."""


class BusyError(ServerLostError):
    """The server stayed busy for longer than `patience_s`."""


@dataclass(kw_only=True)
class Replica:
    """One server. alive: whether it gets requests. busy: its open requests. failures: in a row. reported: what the user was told."""

    url: str
    alive: bool = True
    busy: int = 0
    failures: int = 0
    reported: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class Limits:
    """Concurrency, timeout and retries; see `Endpoint`."""

    in_flight: int = 32
    timeout_s: float = 600.0
    retries: int = 4
    patience_s: float = 600.0

    @classmethod
    def of(cls, table: Endpoint) -> Limits:
        """The limits of a recipe table."""
        return cls(**table.model_dump(include={"in_flight", "timeout_s", "retries", "patience_s"}))


@dataclass(kw_only=True)
class Client:
    """Asynchronous HTTP client for the replicas of one endpoint; lives in one event loop.

    key: sent as bearer token. where: the recipe table that names the servers. notify: receives messages for the user. check: raises
    EngineError when waiting is pointless. loads: JSON decoder, by default orjson's. counts: retries by cause.
    """

    urls: Sequence[str]
    key: str = ""
    limits: Limits
    where: str = "sample.server"
    notify: Callable[[str], None] = lambda text: None
    check: Callable[[], None] = lambda: None
    loads: Callable[[bytes], Any] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.replicas = [Replica(url=url.rstrip("/")) for url in self.urls]
        self._session: aiohttp.ClientSession | None = None
        self._health_checks: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(self.limits.in_flight)

    async def open(self) -> None:
        """Create the session and start the health checks; nothing is sent."""
        try:
            import aiohttp
            import orjson
        except ImportError:
            raise MissingExtra(self.where, "served") from None
        self.loads = self.loads or orjson.loads
        self._session = aiohttp.ClientSession(
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})},
            timeout=aiohttp.ClientTimeout(total=self.limits.timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            # Images and keys go to the addresses of the recipe and nowhere else: no proxies or passwords from the environment.
            trust_env=False,
            read_bufsize=2**18,
        )
        self._health_checks = asyncio.create_task(self._check_health())

    async def close(self) -> None:
        """Stop the health checks and close the connections."""
        if self._health_checks is not None:
            self._health_checks.cancel()
            await asyncio.gather(self._health_checks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def post(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], Value], replica: Replica | None = None, retries: int | None = None
    ) -> Value:
        """The reply as `read` returns it; an InvalidReplyError from `read` counts as a failed attempt. replica: send only there.

        Raises RequestError when this request fails for good, ServerLostError when the server is down, EngineError when every request
        would fail.
        """
        import orjson

        data = orjson.dumps(body)
        waited, waits, tries, retries = 0.0, 0, 0, self.limits.retries if retries is None else retries
        elapsed = 0.0
        last: Attempt[Value] = Attempt()
        while tries <= retries:
            async with self._slots:
                begun = time.monotonic()
                chosen = replica or await self._choose()
                last = await self._attempt(chosen, path, data, read)
            if last.reply is not None:
                chosen.failures = 0
                return last.reply
            self.counts[f"retried: {last.kind}"] += 1
            if last.kind in LOST:
                self.check()
            waiting = last.kind in ("busy", "unreachable")
            waits, tries = waits + waiting, tries + (not waiting)
            pause = last.wait or backoff(waits if waiting else tries)
            spent = time.monotonic() - begun + pause
            waited, elapsed = waited + spent * waiting, elapsed + spent
            if waited > self.limits.patience_s:
                break
            if last.kind != "unreachable" and tries <= retries and elapsed > LONG_WAIT:
                limit = f"waits for it up to patience_s = {self.limits.patience_s:g}" if waiting else f"is sent up to {retries + 1} times"
                self._report(chosen, "is busy" if waiting else "fails", f"({last.reason}); each request {limit}")
            if tries <= retries:
                await asyncio.sleep(pause)
        if last.kind == "busy":
            raise BusyError(f"{last.reason} (busy for longer than patience_s = {self.limits.patience_s:g})")
        message = f"{last.reason} (given up after {amount(max(tries, 1), 'try', 'tries')})"
        raise ServerLostError(message) if last.kind in LOST else RequestError(message, status=last.status, kind=last.kind)

    async def unavailable(self, replica: Replica) -> str:
        """See `health.unavailable`."""
        assert self._session is not None
        return await health.unavailable(self._session, replica.url, self.where, self.key)

    async def models(self, replica: Replica) -> list[str]:
        """See `health.models`. Raises ServerLostError when the connection is lost."""
        import aiohttp

        assert self._session is not None
        try:
            return await health.models(self._session, replica.url, self.where, self.key)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerLostError(f"the connection was lost ({type(error).__name__})") from None

    # --- one attempt -----------------------------------------------------------------------------------------------------

    async def _attempt(self, replica: Replica, path: str, data: bytes, read: Callable[[Any], Value]) -> Attempt[Value]:
        import aiohttp

        assert self._session is not None
        assert self.loads is not None
        replica.busy += 1
        try:
            async with self._session.post(replica.url + path, data=data, allow_redirects=False) as reply:
                if reply.status != 200:
                    health.refuse_redirect(replica.url, reply, self.where, self.key)
                    return self._refused(replica, reply.status, await reply.content.read(4096), reply.headers.get("Retry-After", ""))
                content = await health.read_body(reply)
            return Attempt(reply=read(masked_reply(content, self.loads(content), self.key)))
        except aiohttp.ClientConnectorError as error:
            self._take_down(replica, health.connection_problem(replica.url, error, self.where))
            return Attempt(kind="unreachable", reason=f"{replica.url} cannot be reached")
        except TimeoutError:
            self._count_failure(replica, "does not answer in time")
            return Attempt(kind="timed out", reason=f"no answer within timeout_s = {self.limits.timeout_s:g}")
        except (aiohttp.ClientError, OSError) as error:
            self._count_failure(replica, "closes connections")
            return Attempt(kind="connection lost", reason=f"the connection was lost ({type(error).__name__})")
        except InvalidReplyError as error:
            return Attempt(kind="invalid reply", reason=masked(str(error), self.key))
        except (ValueError, RecursionError):
            other = "" if reply.content_type == "application/json" else f" but {masked(reply.content_type, self.key)}"
            return Attempt(kind="invalid reply", reason=f"the reply is not valid JSON{other}")
        finally:
            replica.busy -= 1

    def _refused(self, replica: Replica, status: int, content: bytes, retry_after: str) -> Attempt[Any]:
        reason = error_reason(status, masked_body(content, self.key))
        if status in REFUSALS or (status == 429 and NO_QUOTA in content):
            remedy = REFUSALS.get(status, REFUSALS[402])
            raise EngineError(f"{replica.url}: {reason}; {remedy} in {self.where}", code="server-refused", key=self.where)
        if status in (429, 503):
            if status == 503 and not retry_after:
                self._take_down(replica, "is not ready (HTTP 503)")
            return Attempt(kind="busy", reason=reason, wait=min(retry_after_seconds(retry_after), self.limits.patience_s))
        if status >= 500 or status in (408, 409):
            self._count_failure(replica, f"answers with HTTP {status}")
            return Attempt(kind=f"HTTP {status}", reason=reason, status=status)
        raise RequestError(reason, status=status, kind=f"HTTP {status}")

    # --- replicas --------------------------------------------------------------------------------------------------------

    async def _choose(self) -> Replica:
        """The live server with the fewest open requests. Raises EngineError when none has been alive for `patience_s`."""
        begun = time.monotonic()
        while not (alive := [replica for replica in self.replicas if replica.alive]):
            self.check()
            if time.monotonic() - begun > self.limits.patience_s:
                raise EngineError(
                    f"no server answers ({', '.join(replica.url for replica in self.replicas)}) for {self.limits.patience_s:g} s; start "
                    "it and run the same command again, answers so far are kept",
                    code="server-down",
                    key=f"{self.where}.urls",
                )
            await asyncio.sleep(min(HEALTH_SECONDS, self.limits.patience_s) / 4)
        return min(alive, key=lambda replica: replica.busy)

    def _count_failure(self, replica: Replica, what: str) -> None:
        """Take a server down after two failures in a row if there are others."""
        replica.failures += 1
        if replica.failures >= 2 and len(self.replicas) > 1:
            self._take_down(replica, what)

    def _report(self, replica: Replica, what: str, details: str) -> None:
        """Tell the user once what is the matter with a server."""
        if what not in replica.reported:
            replica.reported.add(what)
            self.notify(f"{replica.url} {what} {details}")

    def _take_down(self, replica: Replica, why: str) -> None:
        if replica.alive:
            replica.alive = False
            self.counts["servers taken out"] += 1
            self.notify(f"{replica.url} {why}; it gets no requests until it is back")

    async def _check_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            for replica in self.replicas:
                if not replica.alive and await self._healthy(replica):
                    replica.alive, replica.failures = True, 0
                    self.counts["servers back"] += 1
                    self.notify(f"{replica.url} is back")

    async def _healthy(self, replica: Replica) -> bool:
        try:
            return not await self.unavailable(replica)
        except EngineError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Generic[Value]):
    """Result of one attempt: a reply, or why there is none and how many seconds to wait (0: by exponential backoff)."""

    reply: Value | None = None
    kind: str = ""
    reason: str = ""
    wait: float = 0.0
    status: int = 0


def backoff(tries: int) -> float:
    """Seconds before attempt number `tries` + 1: exponential, with jitter of one half so that clients do not return together."""
    longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
    # Not seeded by the run: it decides when a request is sent, never what it gets.
    return longest * (0.5 + random.random() / 2)


def retry_after_seconds(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 for anything else."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
