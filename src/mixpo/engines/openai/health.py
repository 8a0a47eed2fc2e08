"""Whether a server is up and ready, and which models it lists. Sends nothing to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixpo.engines.openai.protocol import InvalidReplyError
from mixpo.errors import EngineError
from mixpo.masking import masked, masked_values

if TYPE_CHECKING:
    import aiohttp

HEALTH_TIMEOUT = 5.0
"""Seconds that a server has to say whether it is ready."""
NO_HEALTH_PAGE = (401, 403, 404, 405, 501)
"""Statuses of endpoints that have no such page."""
MAX_REPLY = 64 * 2**20
"""Bytes of a reply that are read."""


async def unavailable(session: aiohttp.ClientSession, url: str, where: str, key: str = "") -> str:
    """Why the server at `url` is not ready now; "" when it is. Raises EngineError when waiting is pointless.

    where: the recipe table that names the server. key: of the session, masked in what the server says.
    """
    import aiohttp

    root = url.removesuffix("/v1")
    limit = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
    reason = ""
    for address, own in ((f"{root}/health", False), (f"{url}/models", True)):
        try:
            async with session.get(address, timeout=limit, allow_redirects=False) as reply:
                if own:
                    refuse_redirect(url, reply, where, key)
        except TimeoutError:
            return f"does not answer within {HEALTH_TIMEOUT:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return connection_problem(url, error, where)
        if reply.status == 200:
            return ""
        # An endpoint without these pages, or with a key on them, may still be up. Below a shared host, /health may redirect.
        if reply.status not in NO_HEALTH_PAGE and not 300 <= reply.status < 400:
            reason = f"is not ready ({address.removeprefix(root)} answers with HTTP {reply.status})"
        if reply.status == 503:  # llama.cpp lists its models while it still loads them
            break
    return reason


async def models(session: aiohttp.ClientSession, url: str, where: str, key: str = "") -> list[str]:
    """The models that the server lists. Raises EngineError for anything but a list, and aiohttp's errors when the connection is lost."""
    import orjson

    async with session.get(f"{url}/models", allow_redirects=False) as reply:
        refuse_redirect(url, reply, where, key)
        try:
            listed = orjson.loads(await read_body(reply)) if reply.status == 200 else None
        except (ValueError, InvalidReplyError):
            listed = None
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        what = f"HTTP {reply.status}" if reply.status != 200 else f"{masked(reply.content_type, key)} that is no list of models"
        raise EngineError(
            f"{url}: /models answers with {what}; check {where}.urls (most end in /v1) and .api_key_env, or set {where}.model",
            code="server-no-model-list",
            key=f"{where}.urls",
        )
    names = (entry["id"] for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str))
    return [masked_values(name, key) for name in names]


async def read_body(reply: aiohttp.ClientResponse) -> bytes:
    """The body of a reply. Raises InvalidReplyError beyond MAX_REPLY."""
    parts: list[bytes] = []
    size = 0
    async for part in reply.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY:
            raise InvalidReplyError(f"the reply is longer than {MAX_REPLY >> 20} MiB")
    return b"".join(parts)


def refuse_redirect(url: str, reply: aiohttp.ClientResponse, where: str, key: str = "") -> None:
    """Raise EngineError for a redirect: images and keys are sent only to addresses in the recipe."""
    if 300 <= reply.status < 400:
        target = masked(reply.headers.get("Location", "nowhere"), key)[:200]
        raise EngineError(
            f"{url}: HTTP {reply.status}, redirects to {target!r}, which is not followed; put the final address into {where}.urls",
            code="server-redirects",
            key=f"{where}.urls",
        )


def connection_problem(url: str, error: Exception, where: str) -> str:
    """Why there is no connection. Raises EngineError for an untrusted certificate."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        raise EngineError(
            f"{url}: its certificate cannot be trusted ({error.certificate_error}); correct {where}.urls, or name the file of the "
            "authority that signed it in the environment variable SSL_CERT_FILE",
            code="server-certificate",
            key=f"{where}.urls",
        ) from None
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "cannot be reached (connection refused)"
    return f"cannot be reached ({getattr(cause, 'strerror', None) or cause or type(cause).__name__})"
