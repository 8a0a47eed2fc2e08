"""Checks on every request, and headers of every response. Pure ASGI; knows no page.

A page of another site can make a browser send requests here. So: only loopback names in Host (a foreign name that points here is
refused), changes by POST alone, with the Origin of these pages and their token, and answers that allow neither foreign content nor
inline code.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from mixpo.errors import MixpoError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
"""What Host may be, as a whole."""
MAX_BODY = 4096
"""Bytes of a form; longer ones are refused."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; sandbox allow-same-origin"
)
"""For the run's report: one file with its own style inside and no script."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # Nothing goes to other sites; "no-referrer" would also take the Origin from forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer that does not set its own."""


class FormRefused(MixpoError):  # noqa: N818
    """A form that these pages did not send."""


def guard(app: App) -> App:
    """The application behind its checks."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        for name, value in scope.get("headers", ()):
            # Of a repeated header it could not be said which one counts; joined it is no name of this machine.
            key = name.decode("latin-1").lower()
            headers[key] = f"{headers[key]}, {value.decode('latin-1')}" if key in headers else value.decode("latin-1")
        refusal = reason_to_refuse(scope.get("method", ""), headers) if scope["type"] == "http" else "no such protocol"
        if refusal:
            await _refuse(scope, send, refusal)
        else:
            await app(scope, receive, _with_headers(send))

    return guarded


def reason_to_refuse(method: str, headers: dict[str, str]) -> str:
    """Why a request is refused, or ""."""
    host = headers.get("host", "")
    if not _LOOPBACK.fullmatch(host):
        return "this server answers to localhost only"
    if method in ("GET", "HEAD"):
        return ""
    if method != "POST":
        return "no such method"
    if headers.get("origin") != f"http://{host}":
        return "forms are taken from these pages only"
    length = headers.get("content-length", "")
    return "" if length.isdigit() and int(length) <= MAX_BODY else "the form is too long"


def read_form(body: bytes, token: str) -> dict[str, str]:
    """The fields of a form that carries the token. Raises FormRefused for any other."""
    try:
        fields = {name: values[-1] for name, values in parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=20).items()}
    except ValueError:
        raise FormRefused("the form cannot be read", code="form-unreadable") from None
    if not hmac.compare_digest(fields.pop("token", "").encode(), token.encode()):
        raise FormRefused("this page is from an earlier start of the viewer; reload it and label again", code="form-token")
    return fields


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sent


async def _refuse(scope: Scope, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = f"refused: {reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
