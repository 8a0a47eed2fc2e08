"""Posts JSON to one of several equal servers, with bounded requests in flight, and tries again where that may help.

Knows connections, replicas and waiting; nothing about what is asked.
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
from typing import TYPE_CHECKING, Any

from mixpo.engines.openai import health
from mixpo.engines.openai.protocol import GarbledError, Reply, reason_of
from mixpo.errors import EngineError, MissingExtra
from mixpo.plural import amount

if TYPE_CHECKING:
    import aiohttp

FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds before the second try, and the most before any."""
HEALTH_SECONDS = 1.0
"""How often a server that is out is asked whether it is back."""
REFUSALS = {
    401: "check api_key_env",
    402: "pay for the account, or check api_key_env",
    403: "check api_key_env",
    404: "check urls (most end in /v1) and model",
    405: "check urls (most end in /v1)",
}
"""Statuses that no later request would get around, and the remedy."""
NO_QUOTA = b"insufficient_quota"
"""What commercial endpoints call a 429 that no waiting mends."""
LOST = ("unreachable", "connection lost", "too late")
"""Kinds of outcomes that say nothing about what the server can do."""
LONG_WAIT = 10.0
"""Seconds of waiting for a busy server that the user should know of."""


class RowError(Exception):
    """This request cannot be answered; others may. The message names reason and tries."""


class LostError(Exception):
    """The server was away or went away, so that nothing is known about the request itself."""


class BusyError(LostError):
    """The server said that it is busy for longer than `patience_s`."""


@dataclass(kw_only=True)
class Replica:
    """One server. alive: whether requests go there. told_busy: the user knows that it makes requests wait."""

    url: str
    alive: bool = True
    busy: int = 0
    failures: int = 0
    told_busy: bool = False


@dataclass(kw_only=True)
class Limits:
    """See ServerTable."""

    in_flight: int = 32
    timeout_s: float = 600.0
    retries: int = 4
    patience_s: float = 600.0


@dataclass(kw_only=True)
class Transport:
    """Lives inside one event loop. check: raises EngineError when waiting is no use. counts: what was retried and why.

    where: the table of the recipe that names the servers.
    """

    urls: Sequence[str]
    headers: Mapping[str, str]
    limits: Limits
    say: Callable[[str], None]
    check: Callable[[], None] = lambda: None
    where: str = "sample.server"
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.replicas = [Replica(url=url.rstrip("/")) for url in self.urls]
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(self.limits.in_flight)

    async def open(self) -> None:
        """Connect nothing yet; start looking after replicas."""
        try:
            import aiohttp
            import orjson  # noqa: F401
        except ImportError:
            raise MissingExtra('sample.engine = "openai"', "served") from None
        self._session = aiohttp.ClientSession(
            headers={"Content-Type": "application/json", **self.headers},
            timeout=aiohttp.ClientTimeout(total=self.limits.timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            # Replies go to addresses that the recipe names and nowhere else, and take nothing from the environment.
            trust_env=False,
            read_bufsize=2**18,
        )
        self._watch = asyncio.create_task(self._look_after())

    async def close(self) -> None:
        """End connections and the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def post(
        self, path: str, body: Mapping[str, Any], check: Callable[[Any], Reply], replica: Replica | None = None, retries: int | None = None
    ) -> Reply:
        """What `check` makes of the reply; a GarbledError from it counts as a failed try. replica: this one and no other.

        Raises RowError when this request fails for good, LostError when the server is away, EngineError when no other can succeed either.
        """
        import orjson

        data = orjson.dumps(body)
        waited, waits, tries, last, kind = 0.0, 0, 0, "", ""
        while tries <= (self.limits.retries if retries is None else retries):
            async with self._slots:
                begun = time.monotonic()
                chosen = replica or await self._choose()
                outcome = await self._once(chosen, path, data, check)
            if outcome.reply is not None:
                chosen.failures = 0
                return outcome.reply
            last, kind = outcome.reason, outcome.kind
            self.counts[f"retried: {kind}"] += 1
            if kind in LOST:
                self.check()
            if kind in ("busy", "unreachable"):
                waits += 1
                pause = outcome.wait or backoff(waits)
                waited += time.monotonic() - begun + pause
                if waited > self.limits.patience_s:
                    break
                if kind == "busy" and waited > LONG_WAIT:
                    self._tell_busy(chosen, last)
            else:
                tries += 1
                pause = outcome.wait or backoff(tries)
            await asyncio.sleep(pause)
        if kind == "busy":
            raise BusyError(f"{last} (busy for longer than patience_s = {self.limits.patience_s:g})")
        raise (LostError if kind in LOST else RowError)(f"{last} (given up after {amount(max(tries, 1), 'try', 'tries')})")

    async def trouble(self, replica: Replica) -> str:
        """See `contact.trouble`."""
        assert self._session is not None
        return await health.trouble(self._session, replica.url, self.where)

    async def healthy(self, replica: Replica) -> bool:
        """Whether the server says that it can work."""
        try:
            return not await self.trouble(replica)
        except EngineError:
            return False

    async def models(self, replica: Replica) -> list[str]:
        """See `contact.models`. Raises LostError when the server goes away."""
        import aiohttp

        assert self._session is not None
        try:
            return await health.models(self._session, replica.url, self.where)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LostError(f"the connection was lost ({type(error).__name__})") from None

    # --- one try ---------------------------------------------------------------------------------------------------------

    async def _once(self, replica: Replica, path: str, data: bytes, check: Callable[[Any], Reply]) -> Outcome:
        import aiohttp
        import orjson

        assert self._session is not None
        replica.busy += 1
        try:
            async with self._session.post(replica.url + path, data=data, allow_redirects=False) as reply:
                if reply.status != 200:
                    health.refuse_redirect(replica.url, reply, self.where)
                    content = await reply.content.read(4096)
                    return self._refused(replica, reply.status, content, reply.headers.get("Retry-After", ""))
                content = await health.whole(reply)
            return Outcome(reply=check(orjson.loads(content)))
        except aiohttp.ClientConnectorError as error:
            self._take_out(replica, health.unreached(replica.url, error, self.where))
            return Outcome(kind="unreachable", reason=f"{replica.url} cannot be reached")
        except TimeoutError:
            self._doubt(replica, "does not answer in time")
            return Outcome(kind="too late", reason=f"no answer within timeout_s = {self.limits.timeout_s:g}")
        except (aiohttp.ClientError, OSError) as error:
            self._doubt(replica, "closes connections")
            return Outcome(kind="connection lost", reason=f"the connection was lost ({type(error).__name__})")
        except (orjson.JSONDecodeError, GarbledError) as error:
            other = "" if reply.content_type == "application/json" else f" but {reply.content_type}"
            reason = f"the reply is not valid JSON{other}" if isinstance(error, orjson.JSONDecodeError) else str(error)
            return Outcome(kind="garbled", reason=reason)
        finally:
            replica.busy -= 1

    def _refused(self, replica: Replica, status: int, content: bytes, retry_after: str) -> Outcome:
        reason = reason_of(status, content)
        if status in REFUSALS or (status == 429 and NO_QUOTA in content):
            raise EngineError(f"{replica.url}: {reason}; {REFUSALS.get(status, REFUSALS[402])} in {self.where}")
        if status in (429, 503):
            if status == 503 and not retry_after:
                self._take_out(replica, "is not ready (HTTP 503)")
            return Outcome(kind="busy", reason=reason, wait=min(wait_of(retry_after), self.limits.patience_s))
        if status >= 500 or status == 408:
            self._doubt(replica, f"answers with HTTP {status}")
            return Outcome(kind=f"HTTP {status}", reason=reason)
        raise RowError(reason)

    # --- replicas --------------------------------------------------------------------------------------------------------

    async def _choose(self) -> Replica:
        """The live server with the least to do. Raises EngineError when none has been alive for `patience_s`."""
        begun = time.monotonic()
        while not (alive := [replica for replica in self.replicas if replica.alive]):
            self.check()
            if time.monotonic() - begun > self.limits.patience_s:
                raise EngineError(
                    f"no server answers ({', '.join(replica.url for replica in self.replicas)}) for {self.limits.patience_s:g} s; start "
                    "them and run the same command again, what was answered is kept"
                )
            await asyncio.sleep(min(HEALTH_SECONDS, self.limits.patience_s) / 4)
        return min(alive, key=lambda replica: replica.busy)

    def _doubt(self, replica: Replica, what: str) -> None:
        """Take a server out after two failures in a row, where others can do its work."""
        replica.failures += 1
        if replica.failures >= 2 and len(self.replicas) > 1:
            self._take_out(replica, what)

    def _tell_busy(self, replica: Replica, reason: str) -> None:
        if not replica.told_busy:
            replica.told_busy = True
            self.say(f"{replica.url} is busy ({reason}); each request waits for it up to patience_s = {self.limits.patience_s:g}")

    def _take_out(self, replica: Replica, why: str) -> None:
        if replica.alive:
            replica.alive = False
            self.counts["servers taken out"] += 1
            self.say(f"{replica.url} {why}; it gets no requests until it is back")

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            for replica in self.replicas:
                if not replica.alive and await self.healthy(replica):
                    replica.alive, replica.failures = True, 0
                    self.counts["servers back"] += 1
                    self.say(f"{replica.url} is back")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one try gave: a reply, or why not and how long to wait (0: as long as the number of tries says)."""

    reply: Reply | None = None
    kind: str = ""
    reason: str = ""
    wait: float = 0.0


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key; none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def backoff(tries: int) -> float:
    """Seconds before try number `tries` + 1: doubled each time, half of it by chance so that clients do not come back together."""
    longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
    # Not keyed by the run's seed: it decides when something is asked, never what.
    return longest * (0.5 + random.random() / 2)


def wait_of(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says nothing of use."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
