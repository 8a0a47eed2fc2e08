"""A person with a real browser on a run that mixpo made: the demo with 32 questions. What the pages say is held against the records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import forked
import pytest
from browsing import CHROMIUM, Server, click, press, problems, total
from PIL import Image

from mixpo.human_labels import read_labels
from mixpo.records import Judged, Paired, Prediction, Sampled
from mixpo.run import Run
from mixpo.train.metrics import StepMetrics
from mixpo.types import Pair, Question

if TYPE_CHECKING:
    from playwright import sync_api as api
else:
    api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.timeout(600),
]

SMALL = ("--limit", "32", "--set", "evaluate.samples=0")


def mixpo(*arguments: str) -> None:
    """A command in a process of its own, as a person would type it."""
    done = forked.run(forked.mixpo, *arguments)
    assert done.status == 0, done.error


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo's run."""
    root = tmp_path_factory.mktemp("demo") / "run"
    mixpo("demo", "--dir", str(root), *SMALL)
    return root


@pytest.fixture(scope="module")
def server(demo: Path) -> Iterator[Server]:
    """The viewer on it."""
    found = Server(demo)
    yield found
    found.stop()


class Records:
    """What the run holds, read without the viewer."""

    def __init__(self, root: Path) -> None:
        self.run = Run(root)
        self.questions = {row.id: row for row in self.run.stage("source").read_all(Question)}
        self.responses = {row.question: row.responses for row in self.run.stage("round-1/sample").read_all(Sampled)}
        self.verdicts = {row.question: row.verdicts for row in self.run.stage("round-1/verify").read_all(Judged)}
        self.pairs: list[Pair] = [pair for row in self.run.stage("round-1/pair").read_all(Paired) for pair in row.pairs]

    def count(self, stage: str, name: str) -> int:
        """A count of a stage's manifest."""
        manifest = self.run.stage(stage).manifest
        assert manifest is not None
        return manifest.counts[name]

    def longer(self, pair: Pair) -> int:
        """Tokens of the longer side."""
        return max(len(pair.chosen_ids), len(pair.rejected_ids))

    def predictions(self, model: str, mode: str) -> dict[str, Prediction]:
        """What a model said, by question."""
        return {row.question: row for row in self.run.stage(f"evaluate/test/{model}/{mode}").read_all(Prediction)}


@pytest.fixture
def records(demo: Path) -> Records:
    return Records(demo)


# --- pairs -------------------------------------------------------------------------------------------------------------------


def test_a_pair_is_as_recorded(page: api.Page, server: Server, records: Records) -> None:
    page.goto(server.home)
    click(page, page.get_by_role("link", name="preference pairs"))
    click(page, page.locator("a.row").first)
    pair = records.pairs[0]
    question, verdicts = records.questions[pair.question], records.verdicts[pair.question]
    assert page.locator("h1").inner_text() == question.text.replace("<image>", "").strip()
    for side, text, index in ((".good", pair.chosen, pair.chosen_index), (".bad", pair.rejected, pair.rejected_index)):
        shown = page.locator(f".side{side}")
        assert shown.locator(".text").inner_text() == text
        assert shown.locator("mark").count() >= 1
        assert (verdicts[index].extracted or "no final answer") in shown.locator("h2").inner_text()
        assert verdicts[index].reason in shown.inner_text()
    words = page.locator(".provenance").inner_text()
    for said in (pair.id, question.id, f"sample {pair.chosen_index}", f"sample {pair.rejected_index}", question.source, "transformers"):
        assert said in words
    picture, told = (page.locator(part).bounding_box() for part in (".pictures", ".body"))
    assert picture is not None
    assert told is not None
    assert picture["x"] + picture["width"] <= told["x"]
    assert picture["y"] == pytest.approx(told["y"], abs=30)
    page.keyboard.press("z")
    with Image.open(question.images[0].path) as image:
        width, height = image.size
    page.locator(".zoom-of", has_text=f"{width} × {height}").wait_for()


def test_the_keys_walk_in_the_order_of_the_run(page: api.Page, server: Server, records: Records) -> None:
    page.goto(f"{server.home}/pairs/{records.pairs[0].id}")
    for number in (1, 2, 3):
        press(page, "j")
        page.wait_for_url(f"**/pairs/{records.pairs[number].id}")
    press(page, "k")
    page.wait_for_url(f"**/pairs/{records.pairs[2].id}")


def test_every_filter(page: api.Page, server: Server, records: Records) -> None:
    def shown(label: str, value: str) -> int:
        page.goto(f"{server.home}/pairs")
        page.get_by_label(label).select_option(value)
        page.wait_for_url(f"**={value}")
        return total(page)

    def having(*values: object) -> int:
        return sum(values)  # type: ignore[arg-type]

    for origin in ("correctness", "format", "dropout_ntp"):
        assert shown("Origin", origin) == having(*(pair.origin == origin for pair in records.pairs))
    for outcome in ("wrong", "malformed"):
        assert shown("Rejected", outcome) == having(
            *(p.origin != "dropout_ntp" and records.verdicts[p.question][p.rejected_index].outcome == outcome for p in records.pairs)
        )
    for domain in sorted({records.questions[pair.question].domain for pair in records.pairs})[:3]:
        assert shown("Domain", domain) == having(*(records.questions[pair.question].domain == domain for pair in records.pairs))
    middle = sorted(map(records.longer, records.pairs))[len(records.pairs) // 2]
    page.goto(f"{server.home}/pairs")
    page.get_by_label("at least").fill(str(middle))
    page.get_by_label("at most").fill(str(middle + 5))
    click(page, page.get_by_role("button", name="Apply"))
    page.wait_for_url("**shortest=*")
    assert total(page) == having(*(middle <= records.longer(pair) <= middle + 5 for pair in records.pairs))
    word = "top row"
    page.goto(f"{server.home}/pairs")
    page.keyboard.press("/")
    page.keyboard.type(word)
    press(page, "Enter")
    page.wait_for_url("**text=*")
    texts = [f"{records.questions[p.question].text}\n{p.chosen}\n{p.rejected}".lower() for p in records.pairs]
    assert total(page) == having(*(word in text for text in texts)) > 0


# --- questions and statistics --------------------------------------------------------------------------------------------------


def test_questions_and_what_was_answered(page: api.Page, server: Server, records: Records) -> None:
    rights = {name: [v.outcome == "correct" for v in verdicts] for name, verdicts in records.verdicts.items() if verdicts}
    for outcome, fits in (("all_right", all), ("all_wrong", lambda found: not any(found))):
        page.goto(f"{server.home}/questions")
        page.locator("select[name=outcome]").select_option(outcome)
        page.wait_for_url(f"**outcome={outcome}")
        assert total(page) == sum(map(fits, rights.values()))
    page.goto(f"{server.home}/questions")
    domains: dict[str, list[bool]] = {}
    for name, found in rights.items():
        domains.setdefault(records.questions[name].domain, []).extend(found)
    chart = page.get_by_role("img", name="Accuracy of the sampled responses by domain").inner_text()
    for domain, found in domains.items():
        assert domain in chart
        assert f"{sum(found) / len(found) * 100:.1f}\u00a0%" in chart
    name = next(iter(rights))
    page.goto(f"{server.home}/questions/{name}")
    for index, (response, verdict) in enumerate(zip(records.responses[name], records.verdicts[name], strict=True)):
        box = page.locator(".response").nth(index)
        assert box.locator(".text").inner_text() == response.text
        assert {"correct": "correct", "wrong": "wrong", "malformed": "no final answer"}[verdict.outcome] in box.locator("h2").inner_text()
        assert f"{len(response.token_ids)} tokens" in box.inner_text()


def test_statistics(page: api.Page, server: Server, records: Records) -> None:
    page.goto(f"{server.home}/statistics")
    origins = [sum(pair.origin == origin for pair in records.pairs) for origin in ("correctness", "format", "dropout_ntp")]
    (cells,) = [row.split("\t") for row in page.locator("tbody tr").all_inner_texts()]
    assert cells[:2] == ["digits/preference", "32"]
    assert cells[4:8] == [str(len(records.pairs)), *map(str, origins)]
    assert cells[8] == f"{sum(len(pair.chosen_ids) for pair in records.pairs) / len(records.pairs):.1f}"
    assert page.get_by_role("img", name="Length of both sides").is_visible()


# --- training, evaluation, left out -----------------------------------------------------------------------------------------------


def test_curves_of_every_part(page: api.Page, server: Server, records: Records) -> None:
    page.goto(f"{server.home}/training")
    titles = ["Loss and weighted terms", "Loss terms, unweighted", "Rewards", "Reward margin", "Reward accuracy",
              "Quality shift δ", "Gradient norm", "Learning rate"]  # fmt: skip
    arm = page.locator("section.arm", has=page.locator("#mpo-1"))
    shown = {figure.locator("h3").inner_text(): figure for figure in arm.locator("figure").all()}
    assert set(titles) <= shown.keys()
    steps = len(list(records.run.stage("round-1/train/mpo").read_all(StepMetrics)))
    for name, lines in (
        (titles[0], ["loss", "weighted preference", "weighted quality", "weighted generation"]),
        (titles[1], ["preference", "quality", "generation"]),
        (titles[2], ["reward chosen", "reward rejected"]),
    ):
        assert shown[name].locator(".legend li").all_inner_texts() == lines
        assert shown[name].locator("path.curve").count() == len(lines)
        assert shown[name].locator(".spot").count() == steps * len(lines)
    together = page.locator("section.arm").first
    assert sorted(together.locator("figure").first.locator(".legend li").all_inner_texts()) == ["DPO", "MPO", "SFT"]


def test_models_side_by_side(page: api.Page, server: Server, records: Records) -> None:
    page.goto(f"{server.home}/evaluation")
    assert page.get_by_role("img", name="Accuracy of each model").is_visible()
    click(page, page.get_by_role("link", name="Compare the models"))
    start, last = records.predictions("base", "cot"), records.predictions("mpo", "cot")
    page.get_by_label("Models").select_option("differ")
    page.wait_for_url("**change=differ**")
    page.goto(f"{server.home}/evaluation/test?change=lost")
    assert total(page) == sum(start[q].outcome == "correct" != last[q].outcome for q in start)
    page.goto(f"{server.home}/evaluation/test")
    click(page, page.locator(".row-link").first)
    page.wait_for_url("**/evaluation/test/*")
    name = page.url.rpartition("/")[2].partition("?")[0]
    boxes = page.locator(".responses").first.locator(".response")
    assert [box.locator("h2").inner_text().split()[0] for box in boxes.all()] == ["Base", *_models(records.run.root)]
    assert boxes.first.locator(".text").inner_text() == start[name].text
    tops = {round(box["y"]) for item in boxes.all() if (box := item.bounding_box())}
    assert len(tops) == 1, "Compare the models"


def _models(root: Path) -> Sequence[str]:
    """The trained models in the order of their first answers."""
    folders = [path for path in (root / "evaluate" / "test").iterdir() if path.name not in ("source", "base")]
    return [path.name.upper() for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns)]


def test_what_each_stage_left_out(page: api.Page, server: Server, records: Records) -> None:
    page.goto(server.home)
    click(page, page.get_by_role("link", name="Filtered", exact=True))
    manifest = records.run.stage("round-1/pair").manifest
    assert manifest is not None
    dropped = {name: count for name, count in manifest.counts.items() if name.startswith("dropped: ") and count}
    rows = page.locator("tbody tr", has_text="round-1/pair").all_inner_texts()
    assert sorted(int(row.split("\t")[1].split()[0]) for row in rows) == sorted(dropped.values())
    assert any("more than the cap per question" in row for row in rows)


# --- how it looks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    browser: api.Browser, server: Server, records: Records, width: int, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked = next(iter(records.predictions("base", "cot")))
    found = {}
    for path in ("/", "/pairs", f"/pairs/{records.pairs[0].id}", f"/questions/{records.pairs[0].question}", "/statistics", "/training",
                 "/evaluation", f"/evaluation/test/{asked}", "/report"):  # fmt: skip
        page.goto(server.home + path)
        found[path] = problems(page)
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
    context.close()


def test_the_report_opens_from_disk_and_prints(page: api.Page, demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    page.goto((demo / "report.html").as_uri())
    assert page.title() == "Digits demo"
    assert f"{report['headline']['after'] * 100:.1f}" in page.locator(".hero").inner_text()
    for title in ("Reward margin", "Quality shift δ", "Length of both sides", "By source"):
        assert page.get_by_role("heading", name=title).first.is_visible()
    page.keyboard.press("Tab")
    api.expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    api.expect(page).to_have_url(re.compile("#results$"))
    settings = page.locator("details", has=page.get_by_role("heading", name="Settings"))
    settings.locator("summary").focus()
    page.keyboard.press("Enter")
    api.expect(settings.get_by_text("train.learning_rate")).to_be_visible()
    page.emulate_media(media="print", color_scheme="dark")
    api.expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    api.expect(page.locator("nav")).to_be_hidden()
    page.set_viewport_size({"width": 700, "height": 1000})  # the width of A4 without its margins, in CSS pixels
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    pages = page.pdf(format="A4").count(b"/Type /Page\n")
    assert pages > 3


# --- the audit, last because it changes the run ------------------------------------------------------------------------------------


def test_a_mark_flows_into_the_next_pairs(page: api.Page, server: Server, records: Records) -> None:
    """A person finds a wrong answer right; the next `mixpo pair` rejects it no more."""
    rejected = {(pair.question, pair.rejected_index) for pair in records.pairs if pair.origin != "dropout_ntp"}
    page.goto(f"{server.home}/audit/0")
    here = ("", -1)
    for _ in range(32):
        here = tuple(page.locator(f"input[name={name}]").get_attribute("value") for name in ("question", "index"))  # type: ignore[assignment]
        if (here[0], int(here[1])) in rejected:
            break
        press(page, "j")
    question, index = here[0], int(here[1])
    assert (question, index) in rejected, "no sampled answer is a rejected one"
    press(page, "1")
    assert [(mark.question, mark.index, mark.outcome) for mark in read_labels(records.run.root).values()] == [(question, index, "correct")]
    page.goto(f"{server.home}/audit")
    assert "of 1" in page.locator(".figures-row").inner_text()
    page.goto(f"{server.home}/questions/{question}")
    assert "labelled correct by" in page.locator(".response").nth(index).inner_text()
    mixpo("pair", str(resources.files("mixpo") / "assets" / "demo.toml"), "--dir", str(records.run.root), *SMALL)
    after = Records(records.run.root)
    assert records.count("round-1/pair", "marked") == 1
    assert (question, index) not in {(pair.question, pair.rejected_index) for pair in after.pairs}
    page.wait_for_timeout(1100)
    page.reload()
    page.locator("summary", has_text="Provenance").click()
    shown = page.locator(".provenance dd", has_text=" vs. ").all_inner_texts()
    assert len(shown) == sum(pair.question == question for pair in after.pairs)
    assert not any(text.endswith(f" vs. {index}") for text in shown)
