"""A person with a real browser: Debian's Chromium clicks and types through every page of a real server process.

Here on a run made by hand, which holds every odd thing; other files do it on the demo's run and on a large one. Skipped where
Chromium or the playwright package is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import pytest
import viewer_run
from browsing import CHROMIUM, TOFU, Server, click, needs_chinese, press, problems

from mixpo.human_labels import LABELS
from mixpo.viewer.text import MAX_FORMULA

if TYPE_CHECKING:
    from playwright import sync_api as api
else:
    api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The run made by hand."""
    found = Server(viewer_run.write(tmp_path_factory.mktemp("browsed")))
    (found.root / "report.html").write_text("<!doctype html><title>r</title><style>h1{color:red}</style><h1>The report</h1>")
    yield found
    found.stop()


def number(page: api.Page) -> str:
    return page.locator(".walker b").first.inner_text()


def test_pairs_by_mouse_and_by_keys(page: api.Page, server: Server) -> None:
    page.goto(server.home)
    click(page, page.get_by_role("link", name="Pairs", exact=True))
    assert "115 pairs" in page.locator(".pager").first.inner_text()
    click(page, page.locator("a.row").first)
    assert "How many shapes do the two pictures have" in page.locator("h1").inner_text()
    assert number(page) == "1"
    press(page, "j")
    page.wait_for_url("**/pairs/*")
    page.locator(".walker b", has_text="2").wait_for()
    press(page, "ArrowRight")
    page.locator(".walker b", has_text="3").wait_for()
    press(page, "k")
    page.locator(".walker b", has_text="2").wait_for()
    click(page, page.get_by_role("link", name="Next ›"))
    page.locator(".walker b", has_text="3").wait_for()
    press(page, "u")
    page.wait_for_url("**/pairs#row-*")
    press(page, "n")
    page.wait_for_url("**/pairs?after=*")
    assert page.locator(".pager b").first.inner_text() == "26–50"
    press(page, "p")
    page.locator(".pager b", has_text="1–25").first.wait_for()


def test_rows_are_chosen_by_keys(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    press(page, "Enter")
    page.wait_for_url("**/pairs/*")
    assert number(page) == "2"


def test_back_in_a_list_the_keys_go_on_from_the_row_that_one_comes_from(page: api.Page, server: Server) -> None:
    for address in ("/pairs", "/questions", "/audit", "/evaluation/held-out"):
        page.goto(f"{server.home}{address}")
        for _ in range(20):
            page.keyboard.press("j")
        press(page, "Enter")
        press(page, "j")
        press(page, "u")
        rows = page.locator("a.row, .row-link")
        assert rows.evaluate_all("rows => rows.indexOf(document.activeElement)") == 20
        assert page.evaluate("document.activeElement.getBoundingClientRect().bottom <= innerHeight")


def test_another_search_can_be_written_while_one_goes_on(page: api.Page, server: Server) -> None:
    """A search that is not done loads its page again and again; that must not take what is being typed."""
    loads = []

    def not_done(route: api.Route) -> None:
        loads.append(route.request.url)
        with suppress(api.Error):  # the page has gone on to its next load, and disposed of this one
            answer = route.fetch()
            body = answer.text().replace("</main>", '<a href="" data-continue>continue</a></main>')
            route.fulfill(response=answer, body=body)

    page.route("**/pairs?text=red", not_done)

    def loaded_again(before: int) -> bool:
        """Waits as long as a busy machine needs."""
        for _ in range(200):
            if len(loads) > before:
                return True
            page.wait_for_timeout(100)
        return False

    page.goto(f"{server.home}/pairs?text=red")
    assert loaded_again(1)
    field, before, typed = page.locator("[data-search]"), 0, ""
    for _ in range(20):
        before = len(loads)
        with suppress(api.Error):  # the page may be on its way to itself, and then loads once more
            field.focus()
            page.keyboard.type("blue")
            page.wait_for_timeout(900)
            if "blue" in (typed := field.input_value()) and len(loads) == before:
                break
    assert "blue" in typed
    assert len(loads) == before
    page.keyboard.press("Escape")
    assert loaded_again(before)
    page.unroute_all(behavior="ignoreErrors")


def test_filters(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.get_by_label("Origin").select_option("dropout_ntp")
    page.wait_for_url("**/pairs?origin=dropout_ntp")
    click(page, page.locator("a.row"))
    assert "completed without the image" in page.locator("article").inner_text()
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("/")
    page.keyboard.type("红色的方块")
    press(page, "Enter")
    page.wait_for_url("**/pairs?text=*")
    assert page.url.count("=") == 1
    assert page.locator("a.row").count() == 2
    click(page, page.get_by_role("link", name="Clear"))
    page.get_by_label("at least").fill("100")
    click(page, page.get_by_role("button", name="Apply"))
    page.get_by_text("No pairs match this filter.").wait_for()


def test_differing_words_and_provenance(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    click(page, page.locator("a.row").first)
    assert page.locator(".good mark").first.inner_text() == "look closely at"
    assert page.locator(".bad mark").first.inner_text() == "guess from"
    left, right = (page.locator(side).bounding_box() for side in (".side.good", ".side.bad"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    click(page, page.get_by_role("link", name="all responses"))
    page.wait_for_url("**/questions/*")
    assert page.locator(".response").count() == 4


def test_several_images_and_zoom(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    click(page, page.locator("a.row").first)
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
    api.expect(page.locator("#zoom")).to_be_hidden()
    page.locator(".zoomable").nth(1).click()
    page.locator(".zoom-of", has_text="image 2 of 2").wait_for()
    page.get_by_role("button", name="Close", exact=True).click()
    api.expect(page.locator("#zoom")).to_be_hidden()


def test_formulas_are_set_and_can_be_seen_as_written(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/questions?text=int_0")
    click(page, page.locator("a.row"))
    assert page.locator("h1 .katex").count() == 1
    assert page.locator(".katex-display").count() == 4
    assert page.locator(".response").first.inner_text().count("costs $5 and $6") == 1
    fonts = page.evaluate("document.fonts.ready.then(() => [...document.fonts].filter(f => f.status == 'loaded').map(f => f.family))")
    assert any("KaTeX" in name for name in fonts)
    page.keyboard.press("m")
    api.expect(page.locator(".katex")).to_have_count(0)
    assert "\\frac{1}{2}" in page.locator(".response").first.inner_text()
    page.reload()
    api.expect(page.locator(".katex")).to_have_count(0)
    page.keyboard.press("m")
    api.expect(page.locator(".katex-display")).to_have_count(4)


@pytest.mark.parametrize(
    ("tex", "least"),
    [
        (r"\begin{cases} x & \text{otherwise} \\ y & 0 \end{cases}", 2),
        pytest.param(r"\text{中文}", 1, marks=needs_chinese),
        (r"\begin{aligned} \text{otherwise} \end{aligned}", 2),
    ],
)
def test_words_in_a_formula_stand_side_by_side(page: api.Page, server: Server, tex: str, least: float) -> None:
    """A text may be broken anywhere, but not inside a formula, whose boxes are as narrow as they can be."""
    page.goto(f"{server.home}/pairs")
    click(page, page.locator("a.row").first)
    wide = page.evaluate(
        """tex => {
          const part = document.createElement('span');
          part.dataset.tex = tex;
          document.querySelector('.side .said').append(part);
          setFormula(part);
          const box = part.querySelector('.katex-html .text').getBoundingClientRect();
          return box.width / box.height;
        }""",
        tex,
    )
    assert wide > least


def test_equations_are_not_numbered_over_the_page(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    click(page, page.locator("a.row").first)
    seen = page.evaluate(
        """() => {
          const part = document.createElement('span');
          part.dataset.tex = '\\\\begin{equation} x \\\\end{equation}';
          part.dataset.display = '';
          document.querySelector('.said').append(part);
          setFormula(part);
          return [...part.querySelectorAll('.eqn-num')].map(number => getComputedStyle(number, '::before').content);
        }"""
    )
    assert seen == ["none"]


def test_a_line_runs_in_the_direction_of_its_script(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    click(page, page.locator("a.row").first)
    sides = page.evaluate(
        """() => {
          const said = document.querySelector('h1.said');
          said.textContent = 'שלום.\\nhello.';
          const [text, room] = [said.firstChild, said.getBoundingClientRect()];
          const places = [[0, 4], [4, 5], [6, 11]].map(([start, end]) => {
            const range = document.createRange();
            range.setStart(text, start);
            range.setEnd(text, end);
            return range.getBoundingClientRect();
          });
          return [room.right - places[0].right, places[0].left - places[1].right, places[2].left - room.left];
        }"""
    )
    # The Hebrew word begins at the right end, its full stop stands to the left of it, and English begins at the left end.
    assert sides == pytest.approx([0, 0, 0], abs=1)


def test_an_attack_is_words(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs?text=window.hacked")
    click(page, page.locator("a.row").first)
    assert viewer_run.ATTACK in page.locator(".side.good .text").inner_text()
    assert page.locator("article script, article a[href^=javascript], article img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None


HOSTILE_TEX = (
    "\\href{javascript:window.hacked=1}{x}", "\\url{javascript:window.hacked=1}", "\\includegraphics{https://evil.example/x.png}",
    "\\htmlData{x=<img src=x onerror=window.hacked=1>}{x}", "\\htmlStyle{background:url(https://evil.example)}{x}",
    "\\def\\a{\\a\\a}\\a", "\\text{<script>window.hacked=1</script>}", "x^" * 900,
)  # fmt: skip


@pytest.mark.parametrize("tex", HOSTILE_TEX)
def test_a_hostile_formula_is_inert(page: api.Page, server: Server, tex: str) -> None:
    page.goto(f"{server.home}/pairs")
    found = page.evaluate(
        """tex => {
          const part = document.createElement('span');
          part.dataset.tex = tex;
          document.querySelector('main').append(part);
          setFormula(part);
          return [part.querySelectorAll('a, script, img, iframe, object').length, [...part.querySelectorAll('*')]
            .filter(e => [...e.attributes].some(a => a.name.startsWith('on') || /javascript:|evil/.test(a.value))).length];
        }""",
        tex,
    )
    assert found == [0, 0]
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("head", [r"\frac{1}{", r"\sqrt{", "x_{", r"\overset{a}{"])
def test_a_formula_that_would_crash_the_tab_stays_as_it_was_written(page: api.Page, server: Server, head: str) -> None:
    """A model that goes in circles writes fractions in fractions; a browser's layout of hundreds of them ends its process."""
    page.goto(f"{server.home}/pairs")
    script = """tex => {
      const part = document.createElement('span');
      part.dataset.tex = part.textContent = tex;
      document.querySelector('main').append(part);
      setFormula(part);
      return [part.classList.contains('set'), part.getBoundingClientRect().height > 0];
    }"""
    deep = head * 150 + "x" + "}" * 150
    assert len(deep) <= MAX_FORMULA
    assert page.evaluate(script, head * 30 + "x" + "}" * 30) == [True, True]
    assert page.evaluate(script, deep) == [False, True]


def test_questions(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/questions")
    assert page.get_by_role("img", name="Accuracy of the sampled responses by domain").is_visible()
    click(page, page.get_by_role("link", name="all right", exact=True))
    page.wait_for_url("**outcome=all_right")
    assert "puzzle 7" in page.locator("a.row").inner_text()
    page.locator("select[name=outcome]").select_option("all_wrong")
    page.wait_for_url("**outcome=all_wrong")
    click(page, page.locator("a.row"))
    assert "0 of 4 right" in page.locator("article").inner_text()


def test_an_audit(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/audit")
    assert page.locator(".figure .big").all_inner_texts() == ["–", "–", "–"]
    click(page, page.get_by_role("link", name="Start"))
    marked = []
    for step, key in enumerate(("1", "2", "3"), start=1):
        marked.append(page.locator("input[name=question]").get_attribute("value"))
        press(page, key)
        page.wait_for_url(f"**/audit/{step}?**")
    click(page, page.get_by_role("button", name="cannot tell"))
    page.wait_for_url("**/audit/4?**")
    rows = [json.loads(line) for line in (server.root / LABELS).read_text().splitlines()]
    assert [row["question"] for row in rows[:3]] == marked
    assert [row["outcome"] for row in rows] == ["correct", "wrong", "malformed", "undecided"]
    press(page, "u")
    page.get_by_text("4 of 59 labelled").wait_for()
    assert page.locator(".figure .big").last.inner_text().endswith("%")
    click(page, page.get_by_role("link", name="Suspicious"))
    assert page.get_by_text("its last sentence").count() == 0  # the suspicion stays hidden until the label
    click(page, page.locator("a.row").first)
    press(page, "1")
    assert "kind=suspicious" in page.url
    assert len((server.root / LABELS).read_text().splitlines()) == 5
    press(page, "u")
    page.get_by_text("its last sentence").first.wait_for()


def test_training_and_evaluation(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/training")
    for title in ("Loss and weighted terms", "Rewards", "Reward margin", "Quality shift δ", "Reward accuracy"):
        assert page.get_by_role("heading", name=title).count() >= 2
    click(page, page.get_by_role("link", name="Evaluation"))
    click(page, page.get_by_role("link", name="Compare the models"))
    page.get_by_label("Models").select_option("gained")
    page.wait_for_url("**change=gained**")
    click(page, page.locator(".row-link").first)
    assert [box.inner_text().split()[0] for box in page.locator(".response h2").all()] == ["Base", "MPO"]
    assert page.locator(".response.wrong").count() == page.locator(".response.correct").count() == 1
    first = page.locator("h1").inner_text()
    press(page, "j")
    page.locator(".walker b", has_text="2").wait_for()
    assert page.locator("h1").inner_text() != first
    click(page, page.get_by_role("link", name="Filtered"))
    page.get_by_text("the same text as another answer").wait_for()
    click(page, page.get_by_role("link", name="Report"))
    assert page.get_by_role("heading", name="The report").evaluate("e => getComputedStyle(e).color") == "rgb(255, 0, 0)"


def test_keys_are_explained_and_focus_is_seen(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("next pair, question or row").wait_for()
    page.keyboard.press("Escape")
    api.expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Tab")
    api.expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


PAGES = ("/", "/pairs", "/questions", "/statistics", "/audit", "/audit?kind=suspicious", "/audit/0", "/training", "/evaluation",
         "/evaluation/held-out", "/filtered", "/nothing")  # fmt: skip


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(
    browser: api.Browser, server: Server, width: int, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{server.home}/questions?text=int_0")
    formulas = page.locator("a.row").first.get_attribute("href")
    page.goto(f"{server.home}/questions?text=puzzle+9")
    wide = page.locator("a.row").first.get_attribute("href")
    page.goto(f"{server.home}/pairs")
    several = page.locator("a.row").first.get_attribute("href")
    found = {}
    for path in (*PAGES, formulas, wide, several):
        page.goto(f"{server.home}{path}")
        found[path] = problems(page)
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
    context.close()


@needs_chinese
def test_chinese_is_drawn(page: api.Page, server: Server) -> None:
    page.goto(f"{server.home}/pairs?text=红色的方块")
    click(page, page.locator("a.row").first)
    assert viewer_run.CHINESE in page.locator(".side.good .text").inner_text()
    assert not page.evaluate(TOFU)


def test_another_site_can_change_nothing(browser: api.Browser, server: Server) -> None:
    """A page elsewhere sends the very form that the audit sends, token and all: by its own origin, and by the name localhost."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{server.home}/audit/0")
    form = page.locator("form.labelling").evaluate("e => e.outerHTML")
    marks = server.root / LABELS
    before = marks.read_text() if marks.exists() else ""
    page.goto("about:blank")
    page.set_content(form.replace('action="/audit/label"', f'action="{server.home}/audit/label"'))
    click(page, page.get_by_role("button", name="wrong"))
    page.get_by_text("refused: forms are taken from these pages only").wait_for()
    # The other name of this machine is another origin.
    page.goto(f"{server.home.replace('127.0.0.1', 'localhost')}/nothing")
    page.evaluate("form => document.body.insertAdjacentHTML('beforeend', form)", form.replace("/audit/label", f"{server.home}/audit/label"))
    page.locator(".labelling").evaluate("form => form.requestSubmit(form.querySelector('[value=wrong]'))")
    page.wait_for_timeout(300)
    assert page.url.endswith("/nothing"), "the policy lets forms go nowhere else"
    assert (marks.read_text() if marks.exists() else "") == before
    context.close()
