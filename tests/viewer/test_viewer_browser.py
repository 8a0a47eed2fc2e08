"""A person with a real browser: Debian's Chromium clicks and types through every page of a real server process.

Skipped where Chromium or the playwright package is not installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import generated_run
import pytest
import viewer_run

from mixpo.marks import MARKS

api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

PAIRS = 5000
"""Of the generated run here; benchmarks/viewer.py takes 300,000."""


class Server:
    """`mixpo view` in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        command = [sys.executable, "-m", "mixpo", "view", str(root), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        self.home = found[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The run made by hand."""
    found = Server(viewer_run.write(tmp_path_factory.mktemp("browsed")))
    (found.root / "report.html").write_text("<!doctype html><title>r</title><style>h1{color:red}</style><h1>The report</h1>")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A generated run."""
    root = tmp_path_factory.mktemp("large") / "run"
    found = Server(generated_run.write_run(root, generated_run.questions_for(PAIRS)))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: api.Browser) -> Iterator[api.Page]:
    """A fresh page. Whatever the console complains of (the policy too), or a request to another host, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found, complaints = context.new_page(), []
    found.set_default_timeout(15_000)
    found.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: complaints.append(request.url) if "//127.0.0.1:" not in request.url else None)
    yield found
    context.close()
    assert complaints == []


def number(page: api.Page) -> str:
    return page.locator(".walker b").first.inner_text()


def test_pairs_by_mouse_and_by_keys(page: api.Page, server: Server) -> None:
    page.goto(server.home)
    page.get_by_role("link", name="Pairs", exact=True).click()
    assert "115 pairs" in page.locator(".pager").first.inner_text()
    page.locator(".row").first.click()
    assert "How many shapes do the two pictures have" in page.locator("h1").inner_text()
    assert number(page) == "1"
    page.keyboard.press("j")
    page.wait_for_url("**/pairs/*")
    page.locator(".walker b", has_text="2").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator(".walker b", has_text="3").wait_for()
    page.keyboard.press("k")
    page.locator(".walker b", has_text="2").wait_for()
    page.get_by_role("link", name="Next ›").click()
    page.locator(".walker b", has_text="3").wait_for()
    page.keyboard.press("u")
    page.wait_for_url("**/pairs")
    page.keyboard.press("n")
    page.wait_for_url("**/pairs?after=*")
    assert page.locator(".pager b").first.inner_text() == "26–50"
    page.keyboard.press("p")
    page.locator(".pager b", has_text="1–25").first.wait_for()


def test_rows_are_chosen_by_keys(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_url("**/pairs/*")
    assert number(page) == "2"


def test_filters(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.get_by_label("Origin").select_option("dropout_ntp")
    page.wait_for_url("**/pairs?origin=dropout_ntp")
    page.locator(".row").click()
    assert "finished without the image" in page.locator("article").inner_text()
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("/")
    page.keyboard.type("红色的方块")
    page.keyboard.press("Enter")
    page.wait_for_url("**/pairs?text=*")
    assert page.url.count("=") == 1
    assert page.locator(".row").count() == 2
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("at least").fill("100")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("No pair fits this filter.").wait_for()


def test_differing_words_and_provenance(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.locator(".row").first.click()
    assert page.locator(".good mark").first.inner_text() == "look closely at"
    assert page.locator(".bad mark").first.inner_text() == "guess from"
    left, right = (page.locator(side).bounding_box() for side in (".side.good", ".side.bad"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    page.get_by_role("link", name="all its responses").click()
    page.wait_for_url("**/questions/*")
    assert page.locator(".response").count() == 4


def test_several_images_and_zoom(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.locator(".row").first.click()
    assert page.locator(".zoomable").count() == 2
    page.keyboard.press("z")
    picture = page.locator("#zoom img")
    page.locator(".zoom-of", has_text="image 1 of 2, 480 × 320").wait_for()
    before = picture.bounding_box()
    page.keyboard.press("+")
    after = picture.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] == pytest.approx(before["width"] * 1.4, rel=0.01)
    page.keyboard.press("ArrowRight")
    page.locator(".zoom-of", has_text="image 2 of 2").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    page.locator(".zoomable").nth(1).click()
    page.locator(".zoom-of", has_text="image 2 of 2").wait_for()
    page.get_by_role("button", name="Close", exact=True).click()
    assert not page.locator("#zoom").is_visible()


def test_formulas_are_set_and_can_be_seen_as_written(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/questions?text=int_0")
    page.locator(".row").click()
    assert page.locator("h1 .katex").count() == 1
    assert page.locator(".katex-display").count() == 4
    assert page.locator(".response").first.inner_text().count("costs $5 and $6") == 1
    fonts = page.evaluate("document.fonts.ready.then(() => [...document.fonts].filter(f => f.status == 'loaded').map(f => f.family))")
    assert any("KaTeX" in name for name in fonts)
    page.keyboard.press("m")
    assert page.locator(".katex").count() == 0
    assert "\\frac{1}{2}" in page.locator(".response").first.inner_text()
    page.reload()
    assert page.locator(".katex").count() == 0
    page.keyboard.press("m")
    assert page.locator(".katex-display").count() == 4


def test_an_attack_is_words(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs?text=window.hacked")
    page.locator(".row").first.click()
    assert viewer_run.ATTACK in page.locator(".side.good .text").inner_text()
    assert page.locator("article script, article a[href^=javascript], article img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_questions(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/questions")
    assert page.get_by_role("img", name="Share of right answers by domain").is_visible()
    page.get_by_role("link", name="All right", exact=True).click()
    page.wait_for_url("**outcome=all_right")
    assert "puzzle 7" in page.locator(".row").inner_text()
    page.locator("select[name=outcome]").select_option("all_wrong")
    page.wait_for_url("**outcome=all_wrong")
    page.locator(".row").click()
    assert "0 of 4 right" in page.locator("article").inner_text()


def test_an_audit(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/audit")
    assert page.locator(".figure .big").all_inner_texts() == ["–", "–", "–"]
    page.get_by_role("link", name="Start").click()
    marked = []
    for step, key in enumerate(("1", "2", "3"), start=1):
        marked.append(page.locator("input[name=question]").get_attribute("value"))
        page.keyboard.press(key)
        page.wait_for_url(f"**/audit/{step}?**")
    page.get_by_role("button", name="cannot tell").click()
    page.wait_for_url("**/audit/4?**")
    rows = [json.loads(line) for line in (server.root / MARKS).read_text().splitlines()]
    assert [row["question"] for row in rows[:3]] == marked
    assert [row["outcome"] for row in rows] == ["correct", "wrong", "malformed", "undecided"]
    page.keyboard.press("u")
    page.get_by_text("4 of 59 marked").wait_for()
    assert page.locator(".figure .big").last.inner_text().endswith("%")
    page.get_by_role("link", name="Suspicious").click()
    page.get_by_text("called wrong, but the ground truth").first.click()
    page.locator(".marking").wait_for()
    here = page.url
    page.keyboard.press("1")
    page.wait_for_url(lambda url: url != here and "kind=suspicious" in url)
    assert len((server.root / MARKS).read_text().splitlines()) == 5


def test_training_and_evaluation(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/training")
    for title in ("Loss and its weighted parts", "Rewards", "Reward margin", "Quality shift δ", "Share of pairs ranked right"):
        assert page.get_by_role("heading", name=title).count() >= 2
    page.get_by_role("link", name="Evaluation").click()
    page.get_by_role("link", name="side by side").click()
    page.get_by_label("Models").select_option("gained")
    page.wait_for_url("**change=gained**")
    page.locator(".row-link").first.click()
    assert [box.inner_text().split()[0] for box in page.locator(".response h2").all()] == ["Start", "MPO"]
    assert page.locator(".response.wrong").count() == page.locator(".response.correct").count() == 1
    first = page.locator("h1").inner_text()
    page.keyboard.press("j")
    page.locator(".walker b", has_text="2").wait_for()
    assert page.locator("h1").inner_text() != first
    page.get_by_role("link", name="Left out").click()
    page.get_by_text("the same text as another answer").wait_for()
    page.get_by_role("link", name="Report").click()
    assert page.get_by_role("heading", name="The report").evaluate("e => getComputedStyle(e).color") == "rgb(255, 0, 0)"


def test_keys_are_explained_and_focus_is_seen(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("next pair, question or row").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "dark")])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(browser: api.Browser, server: Server, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    for path in ("/", "/pairs", "/questions", "/audit", "/audit/0", "/training", "/evaluation", "/evaluation/held-out", "/left-out"):
        page.goto(server.home + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(CONTRAST) == [], path
    context.close()


CONTRAST = """() => {
  const light = c => {
    const v = c.map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126*v[0] + .7152*v[1] + .0722*v[2];
  };
  const rgba = s => s.match(/[\\d.]+/g).map(Number);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll('main *, .top *')) {
    if (e.closest('svg, .off, dialog, option') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(rgba(getComputedStyle(e).color).slice(0, 3)), b = light(back(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(e.className + ' ' + e.textContent.trim().slice(0, 20) + ' ' + ratio.toFixed(2));
  }
  return bad;
}"""
"""WCAG contrast of every text with the first opaque background behind it: what is below 4.5."""


def test_a_large_run_pages_at_once(page: api.Page, large: Server) -> None:
    for path in ("/pairs", "/pairs?origin=format", "/questions", "/audit"):
        begun = time.monotonic()
        page.goto(large.home + path)
        assert time.monotonic() - begun < 5, "seconds are in benchmarks/viewer.py; this only notices what is broken"
    page.goto(f"{large.home}/pairs?text=picture+shows")
    page.locator(".row").nth(20).click()
    page.locator(".walker b", has_text="21").wait_for()
    for step in range(22, 27):
        page.keyboard.press("j")
        page.locator(".walker b", has_text=str(step)).wait_for()
