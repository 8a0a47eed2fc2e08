"""A run made by hand, its pages, and a client for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import viewer_run
from browsing import CHROMIUM

pytest.importorskip("duckdb", reason="needs the viewer extra")
pytest.importorskip("fastapi", reason="needs the viewer extra")

from starlette.testclient import TestClient

from mixpo.pipeline import open_run
from mixpo.viewer.app import create_app
from mixpo.viewer.views import Views

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOKEN = "token of the test"
HOME = "http://127.0.0.1:8765"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run made by hand. Shared: leave it as it is."""
    return viewer_run.write(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="session")
def views(made: Path) -> Iterator[Views]:
    """Its pages as values."""
    found = Views(open_run(made))
    yield found
    found.index.close()


@pytest.fixture(scope="session")
def client(views: Views) -> TestClient:
    """A client that speaks to the application as a browser on this machine would."""
    return TestClient(create_app(views, TOKEN), base_url=HOME, follow_redirects=False)


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the run to change. Its images still lie where they were."""
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    shutil.rmtree(copy / ".view", ignore_errors=True)
    return copy


@pytest.fixture
def own_views(own: Path) -> Iterator[Views]:
    """The pages of the copy."""
    found = Views(open_run(own))
    yield found
    found.index.close()


@pytest.fixture
def own_client(own_views: Views) -> TestClient:
    """A client for the copy."""
    return TestClient(create_app(own_views, TOKEN), base_url=HOME, follow_redirects=False)


# --- a real browser ------------------------------------------------------------------------------------------------------


AT_HOME = ("http://127.0.0.1:", "file:///", "data:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    api.expect.set_options(timeout=60_000)  # as long as other waits: a busy machine may be late
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=240_000)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page. Whatever the console complains of (the policy too), or a request to another host, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found, complaints = context.new_page(), []
    found.set_default_timeout(60_000)
    found.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: None if request.url.startswith(AT_HOME) else complaints.append(request.url))
    yield found
    context.close()
    assert complaints == []
