"""The web application of `mixpo view`. Pages are rendered on the server; only a human label changes the run."""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from mixpo.errors import ImageError, MissingExtra, MixpoError, RunError
from mixpo.human_labels import append_label
from mixpo.progress import Progress
from mixpo.run import now
from mixpo.stages.job import Context
from mixpo.stages.report import PAGE, is_intact
from mixpo.viewer.evaluation_views import Values
from mixpo.viewer.guard import REPORT_POLICY, FormRefused, guard, read_form
from mixpo.viewer.images import SIZES
from mixpo.viewer.pages import UnknownPage, page, static_files, with_query
from mixpo.viewer.views import Views

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
    from starlette.exceptions import HTTPException
except ImportError:
    raise MissingExtra("mixpo view", "viewer") from None

TYPES = {".css": "text/css", ".js": "text/javascript", ".woff2": "font/woff2"}
STATUS = {UnknownPage: 404, ImageError: 404, FormRefused: 403}
"""Status by type of error; 500 for others."""
HOST = "127.0.0.1"
CACHED = {"cache-control": "private, max-age=86400"}
"""Headers of files whose content does not change under their address."""


def create_app(views: Views, token: str | None = None) -> Any:
    """The ASGI application of a run, behind its guard. token: required in forms; a fresh one by default."""
    secret = token or secrets.token_urlsafe(24)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    site = _Site(views, secret)
    _add_pages(app, site)
    _add_files(app, site)

    @app.post("/audit/label")
    async def label(request: Request) -> Response:
        return site.label(await request.body())

    for error in (MixpoError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, site.failed)
    return guard(app)


class _Site:
    """Responses rendered from views."""

    def __init__(self, views: Views, token: str) -> None:
        self.views = views
        self.token = token

    def page(self, template: str, make: Callable[..., Values], here: str) -> Callable[[Request], HTMLResponse]:
        """The endpoint of a page. make: its values, from the parameters in its path and the query."""

        def respond(request: Request) -> HTMLResponse:
            self.views.index.refresh()
            values = make(*request.path_params.values(), request.query_params)
            return HTMLResponse(page(f"{template}.html", here=here, token=self.token, **self.views.common(), **values))

        return respond

    def label(self, body: bytes) -> Response:
        form = read_form(body, self.token)
        append_label(self.views.run.root, self.views.label(form, now(), getpass.getuser()))
        kind, number = form.get("kind", ""), form.get("number", "")
        following = str(int(number) + 1) if number.isascii() and number.isdigit() and len(number) < 10 else "0"
        count = len(self.views.audits.sample("suspicious" if kind == "suspicious" else "random", int(form["round"])))
        path = f"/audit/{following}" if int(following) < count else "/audit"
        return RedirectResponse(with_query(path, kind=kind, round=form["round"]), status_code=303)

    def failed(self, request: Request, error: Exception) -> Response:
        """A page with the message of an error."""
        if isinstance(error, RequestValidationError) or getattr(error, "status_code", 0) == 404:
            status, text = 404, "There is no such page."
        elif isinstance(error, HTTPException):
            status, text = error.status_code, str(error.detail)
        else:
            status, text = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500), str(error)
        return HTMLResponse(page("error.html", here="", token="", status=status, text=text, **self.views.common()), status_code=status)


def _add_pages(app: FastAPI, site: _Site) -> None:
    views, evaluation = site.views, site.views.evaluation
    pages: dict[str, tuple[str, Callable[..., Values]]] = {
        "/": ("overview", lambda asked: views.overview()),
        "/pairs": ("pairs", views.pairs),
        "/pairs/{id_}": ("pair", views.pair),
        "/questions": ("questions", views.questions),
        "/questions/{id_}": ("question", views.question),
        "/statistics": ("statistics", views.statistics),
        "/audit": ("audit", views.audit),
        "/audit/{number}": ("audit_item", views.audit_item),
        "/training": ("training", lambda asked: views.training()),
        "/evaluation": ("evaluation", lambda asked: evaluation.sets()),
        "/evaluation/{name}": ("evaluated", evaluation.questions),
        "/evaluation/{name}/{id_}": ("compared", evaluation.question),
        "/filtered": ("filtered", lambda asked: views.filtered()),
    }
    for path, (template, make) in pages.items():
        app.add_route(path, site.page(template, make, path.split("/")[1] or "overview"))


def _add_files(app: FastAPI, site: _Site) -> None:
    @app.get("/static/{name:path}")
    def static(name: str) -> Response:
        if name not in static_files():
            raise UnknownPage("There is no such file.", code="page-not-found")
        path = static_files()[name]
        return FileResponse(path, media_type=TYPES.get(path.suffix, "text/plain"), headers=CACHED)

    @app.get("/image/{question}/{number}")
    def image(question: str, number: int, request: Request) -> Response:
        return _image(site, question, number, request.query_params)

    @app.get("/report")
    def report() -> Response:
        run = site.views.run
        path = run.root / PAGE
        if not path.exists():
            raise UnknownPage("This run has no report yet; `mixpo report` makes one.", code="page-not-found")
        if not is_intact(run.stage("report"), path):
            raise RunError(f"{path}: fails its checksum; `mixpo report` makes it again", code="report-damaged", path=path)
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})


def _image(site: _Site, question: str, number: int, asked: Mapping[str, str]) -> Response:
    size = asked.get("size", "page")
    content, kind = site.views.image(question, number, size if size in SIZES else "page", asked.get("set", ""))
    return Response(content, media_type=kind, headers=CACHED)


def serve(context: Context, port: int, progress: Progress, ready: Callable[[str], None]) -> None:
    """Index the run and serve its pages on the loopback address until Ctrl+C; port 0 takes a free one. `ready` is called with the address.

    Raises RunError when the port is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            what = "in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            raise RunError(f"port {port} is {what}; choose another with --port, or 0 for any free one", code="port-unavailable") from None
        listener.listen()  # requests that come before the server runs wait instead of being refused
        views = Views(context, progress)
        try:
            ready(f"http://{HOST}:{listener.getsockname()[1]}/")
            server = uvicorn.Server(uvicorn.Config(create_app(views), log_level="warning", access_log=False, ws="none", lifespan="off"))
            server.run(sockets=[listener])
        finally:
            views.index.close()
