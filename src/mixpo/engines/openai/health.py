"""Whether a server is there and can work, and which models it lists. Nothing is asked of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixpo.engines.openai.protocol import GarbledError
from mixpo.errors import EngineError

if TYPE_CHECKING:
    import aiohttp

CONTACT_SECONDS = 5.0
"""Longest wait for a server to say how it is."""
NO_SUCH_PAGE = (401, 403, 404, 405)
"""How endpoints answer that do not say how they are."""
MAX_REPLY = 64 * 2**20
"""Bytes of a reply that are read."""


async def trouble(session: aiohttp.ClientSession, url: str, where: str) -> str:
    """Why the server at `url` cannot work now; "" when it says that it can. Raises EngineError where waiting would be no use.

    where: the table of the recipe that names the server.
    """
    import aiohttp

    root = url.removesuffix("/v1")
    limit = aiohttp.ClientTimeout(total=CONTACT_SECONDS)
    found = ""
    for address, own in ((f"{root}/health", False), (f"{url}/models", True)):
        try:
            async with session.get(address, timeout=limit, allow_redirects=False) as reply:
                if own:
                    refuse_redirect(url, reply, where)
        except TimeoutError:
            return f"does not answer within {CONTACT_SECONDS:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return unreached(url, error, where)
        if reply.status == 200:
            return ""
        # An endpoint without such addresses, or one that wants a key for them, answers all the same. One that lies below others' pages
        # may be redirected at the top.
        if reply.status not in NO_SUCH_PAGE and not 300 <= reply.status < 400:
            found = f"is not ready ({address.removeprefix(root)} answers with HTTP {reply.status})"
        if reply.status == 503:  # llama.cpp lists its models while it loads them
            break
    return found


async def models(session: aiohttp.ClientSession, url: str, where: str) -> list[str]:
    """The names that the server lists. Raises EngineError when it gives no list, and what aiohttp raises when it goes away."""
    import orjson

    async with session.get(f"{url}/models", allow_redirects=False) as reply:
        refuse_redirect(url, reply, where)
        try:
            listed = orjson.loads(await whole(reply)) if reply.status == 200 else None
        except (ValueError, GarbledError):
            listed = None
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        what = f"HTTP {reply.status}" if reply.status != 200 else f"{reply.content_type} that is no list of models"
        raise EngineError(
            f"{url}: /models answers with {what}; check {where}.urls (most end in /v1) and .api_key_env, or say the name of the model in "
            f"{where}.model"
        )
    return [entry["id"] for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


async def whole(reply: aiohttp.ClientResponse) -> bytes:
    """The body of a reply. Raises GarbledError for one without end."""
    parts: list[bytes] = []
    size = 0
    async for part in reply.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY:
            raise GarbledError(f"the reply is longer than {MAX_REPLY >> 20} MiB")
    return b"".join(parts)


def refuse_redirect(url: str, reply: aiohttp.ClientResponse, where: str) -> None:
    """Raise EngineError for a redirect: pictures and keys go to addresses that the recipe names and nowhere else."""
    if 300 <= reply.status < 400:
        raise EngineError(
            f"{url}: HTTP {reply.status}, redirects to {reply.headers.get('Location', 'nowhere')[:200]!r}, which is not followed; name "
            f"the address itself in {where}.urls"
        )


def unreached(url: str, error: Exception, where: str) -> str:
    """Why there is no connection. Raises EngineError for a certificate that cannot be trusted."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        raise EngineError(
            f"{url}: its certificate cannot be trusted ({error.certificate_error}); correct {where}.urls, or name the file of the "
            "authority that signed it in the environment variable SSL_CERT_FILE"
        ) from None
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "cannot be reached (connection refused)"
    return f"cannot be reached ({getattr(cause, 'strerror', None) or cause or type(cause).__name__})"
