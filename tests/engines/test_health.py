"""Addresses behind which there is no server, another one, or one that cannot be trusted: each is said at once, with its cause."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web
from stub_server import StubServer

from mixpo.engines import Request, SamplingParams
from mixpo.engines.openai.client import Limits
from mixpo.engines.openai.engine import OpenAIEngine, unavailable_servers
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError
from mixpo.vlm.load import Vlm

REQUEST = Request(key="q", prompt="Question?", images=(), seeds=(1, 2), indices=(0, 1))
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=24)


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.engines.openai.engine.HEALTH_SECONDS", 0.05)


@pytest.fixture(scope="module")
def codec(tiny_vlm: Vlm) -> TokenCodec:
    return TokenCodec(tiny_vlm)


def ask(urls: list[str], model: str = "", patience_s: float = 120.0) -> tuple[str, list[str]]:
    """The error of sampling from servers at `urls`, and what was said before."""
    said: list[str] = []
    limits = Limits(in_flight=2, timeout_s=60.0, retries=0, patience_s=patience_s)
    engine = OpenAIEngine(urls, limits=limits, model=model, notify=said.append)
    try:
        list(engine.sample([REQUEST], PARAMS))
    except EngineError as error:
        return str(error), said
    finally:
        engine.close()
    return "", said


class Other(StubServer):
    """Something else on the port. page: what it answers to everything. tls: its certificate."""

    def __init__(self, page: Callable[[web.Request], web.Response], tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.page, self.tls = page, tls

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:") if self.tls else super().url

    async def _open(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            return self.page(request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True).start()


def html(request: web.Request) -> web.Response:
    return web.Response(text="<html>A chat in the browser</html>", content_type="text/html")


def test_an_address_without_v1_is_said_to_lack_it(codec: TokenCodec) -> None:
    with StubServer(codec) as server:
        bare = server.url.removesuffix("/v1")
        assert r"/models answers with HTTP 404; check sample.server.urls (most end in /v1)" in ask([bare])[0]
        assert "check urls (most end in /v1)" in ask([bare], model="stub")[0]
        assert ask([server.url + "/"])[0] == ""


def test_a_page_for_people_is_no_list_of_models() -> None:
    with Other(html) as server:
        assert "/models answers with text/html that is no list of models" in ask([server.url])[0]
        assert "not valid JSON but text/html" in ask([server.url], model="x")[0]


def test_several_models_are_named(codec: TokenCodec) -> None:
    async def two(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "small"}, {"id": "large"}]})

    server = StubServer(codec)
    server._models = two  # type: ignore[method-assign]
    with server:
        assert "the server lists 2 models (small, large); set sample.server.model" in ask([server.url])[0]


def test_servers_of_different_models_are_refused_unless_one_name_is_given(codec: TokenCodec) -> None:
    class Named(StubServer):
        name = "a"

        async def _models(self, _: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": self.name}]})

    with Named(codec) as one, Named(codec) as other:
        other.name = "b"
        assert "sample.server.urls list different models (a, b)" in ask([one.url, other.url])[0]
        assert ask([one.url, other.url], model="both")[0] == ""


def test_a_redirect_is_named_and_not_followed() -> None:
    def moved(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": f"https://elsewhere.example{request.path}"})

    with Other(moved) as server:
        error, said = ask([server.url], patience_s=60)
    assert "HTTP 301, redirects to 'https://elsewhere.example/v1/models', which is not followed" in error
    assert said == []


def test_what_is_waited_for_is_said_and_why() -> None:
    url = "http://127.0.0.1:9/v1"
    error, said = ask([url], patience_s=0.3)
    assert said == [f"{url} cannot be reached (connection refused); waiting for it up to patience_s = 0.3"]
    assert error == f"{url} cannot be reached (connection refused), after patience_s = 0.3; start the server, or correct sample.server.urls"


def test_https_where_there_is_none_is_said(codec: TokenCodec) -> None:
    with StubServer(codec) as server:
        assert "SSL" in ask([server.url.replace("http:", "https:")], patience_s=0.3)[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate with its key."""
    program, path = shutil.which("openssl"), tmp_path_factory.mktemp("tls") / "server.pem"
    if program is None:
        pytest.skip("needs the openssl program")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([program, *made, "-keyout", path, "-out", path.with_suffix(".crt")], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def test_a_certificate_that_cannot_be_trusted_is_not_waited_for(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with Other(html, tls) as server:
        error, said = ask([server.url], patience_s=60)
    assert "its certificate cannot be trusted" in error
    assert "SSL_CERT_FILE" in error
    assert said == []


def test_the_check_before_a_run_says_why(codec: TokenCodec) -> None:
    def broken(request: web.Request) -> web.Response:
        return web.Response(status=500)

    with Other(broken) as ill, StubServer(codec) as well:
        found: Any = unavailable_servers([ill.url, well.url, "http://127.0.0.1:9/v1"], "sample.server")
    assert found == [
        f"{ill.url} is not ready (/v1/models answers with HTTP 500); start the server or correct sample.server.urls",
        "http://127.0.0.1:9/v1 cannot be reached (connection refused); start the server or correct sample.server.urls",
    ]
