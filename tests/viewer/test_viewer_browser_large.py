"""A person with a real browser on a generated run of 300,000 pairs.

Seconds are measured by benchmarks/viewer.py; here is only a wide bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import generated_run
import pytest
from browsing import CHROMIUM, Server, click, press, total

if TYPE_CHECKING:
    from playwright import sync_api as api
else:
    api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(600),
]

QUESTIONS = generated_run.questions_for(300_000)
"""Of ten questions one is open (two pairs without the image), one all right, one all wrong, and seven give five pairs."""
PAIRS = QUESTIONS // 10 * 37
BOUND_S = 8.0
"""A page that takes the server more processor time is broken."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The viewer on the run."""
    root = generated_run.write_run(tmp_path_factory.mktemp("large") / "run", QUESTIONS, shard_size=512)
    found = Server(root)
    yield found
    found.stop()


def opened(page: api.Page, server: Server, path: str) -> float:
    """Seconds of processor time that a page takes the server."""
    begun = processor_seconds(server)
    page.goto(server.home + path)
    return processor_seconds(server) - begun


def processor_seconds(server: Server) -> float:
    """Of all its threads, since it was started."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_every_page_comes_at_once(page: api.Page, server: Server) -> None:
    pages = ("/", "/pairs", "/questions", "/statistics", "/audit", "/audit?kind=suspicious", "/audit/7", "/filtered", "/pairs?text=nowhere")
    slow = {path: seconds for path in pages if (seconds := opened(page, server, path)) > BOUND_S}
    assert slow == {}


def test_every_filter(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    assert total(page) == PAIRS >= 300_000
    page.get_by_label("Origin").select_option("dropout_ntp")
    page.wait_for_url("**/pairs?origin=dropout_ntp")
    assert total(page) == QUESTIONS // 10 * 2
    page.get_by_label("Origin").select_option("format")
    page.wait_for_url("**/pairs?origin=format")
    assert total(page) == QUESTIONS // 10 * 7
    page.get_by_label("Rejected").select_option("wrong")
    page.get_by_text("No pairs match this filter.").wait_for()
    page.get_by_label("Origin").select_option("")
    page.wait_for_url("**/pairs?outcome=wrong")
    assert total(page) == QUESTIONS // 10 * 28
    page.get_by_label("Domain").select_option("sum")
    page.wait_for_url("**domain=sum**")
    domain = generated_run.DOMAINS.index("sum")
    asked = sum(number % 5 == domain and number % 10 not in (0, 1, 2) for number in range(QUESTIONS))
    assert total(page) == asked * 4
    click(page, page.get_by_role("link", name="Clear"))
    page.get_by_label("at least").fill("70")
    page.get_by_label("at most").fill("70")
    click(page, page.get_by_role("button", name="Apply"))
    page.wait_for_url("**shortest=70&longest=70")
    assert total(page) == PAIRS
    page.get_by_label("at least").fill("71")
    page.get_by_label("at most").fill("")
    click(page, page.get_by_role("button", name="Apply"))
    page.get_by_text("No pairs match this filter.").wait_for()


def test_a_text_at_the_end_of_the_run_is_found(page: api.Page, server: Server) -> None:
    """A search answers with what it has, and goes on by itself until it has seen all."""
    number = QUESTIONS - 5
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("/")
    page.keyboard.type(f"number {number:,} of")
    press(page, "Enter")
    page.locator("a.row").nth(4).wait_for(timeout=60_000)
    page.locator("[data-go-on]").wait_for(state="detached")
    assert total(page) == 5
    click(page, page.locator("a.row").first)
    page.wait_for_url("**/pairs/*")
    assert f"number {number:,} of" in page.locator("h1").inner_text()
    assert page.locator(".katex").count() > 0


def test_pages_and_pairs_by_keys(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    for first in (26, 51, 76):
        press(page, "n")
        page.locator(".pager b", has_text=f"{first}–").first.wait_for()
    press(page, "p")
    page.locator(".pager b", has_text="51–").first.wait_for()
    click(page, page.locator("a.row").nth(20))
    for step in range(71, 76):
        page.locator(".walker b", has_text=str(step)).wait_for()
        press(page, "j")
    page.locator(".walker b", has_text="76").wait_for()
    page.keyboard.press("z")
    page.locator(".zoom-of", has_text="320 × 240").wait_for()
    page.keyboard.press("Escape")
    press(page, "u")
    page.locator(".pager b", has_text="76–100").first.wait_for()


def test_questions_statistics_and_the_audit(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/questions")
    assert total(page) == QUESTIONS
    for outcome in ("all_right", "all_wrong", "open"):
        page.locator("select[name=outcome]").select_option(outcome)
        page.wait_for_url(f"**outcome={outcome}")
        assert total(page) == QUESTIONS // 10
    page.locator("select[name=outcome]").select_option("all_wrong")
    page.wait_for_url("**outcome=all_wrong")
    click(page, page.locator("a.row").first)
    page.locator(".response").nth(7).wait_for()
    assert "0 of 8 right" in page.locator("article").inner_text()
    page.goto(f"{server.home}/statistics")
    cells = page.locator("tbody tr").all_inner_texts()
    assert [cell.split("\t")[:2] for cell in cells] == [["generated", f"{QUESTIONS:,}"]]
    assert f"DropoutNTP {QUESTIONS // 10 * 2:,}" in page.locator(".legend").first.inner_text()
    page.goto(f"{server.home}/audit?kind=suspicious")
    assert "in random order" in page.locator("main").inner_text()
    page.goto(f"{server.home}/audit")
    click(page, page.get_by_role("link", name="Start"))
    press(page, "1")
    page.wait_for_url("**/audit/1?**")
    press(page, "u")
    page.get_by_text("1 of 500 labelled").wait_for()
