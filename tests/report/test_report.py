from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from example_report import answer, example, manifest
from PIL import Image

from mixpo.errors import EvaluateError
from mixpo.evaluate.score import compare, score
from mixpo.images import reference
from mixpo.progress import duration
from mixpo.records import Prediction
from mixpo.report.benchmarks import CAUSES
from mixpo.report.build import build
from mixpo.report.data import ReportData
from mixpo.report.images import picture
from mixpo.report.render import asked, render
from mixpo.report.table import SUMMARY_COLUMNS, filled_table, gap_table, summary_rows, yes_no_table
from mixpo.report.words import moment, percent, points, sides
from mixpo.types import ImageRef, Pair, Question, Skipped

EMPTY = ReportData(title="Nothing", created="2025-01-01T00:00:00Z", seed=0)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, and collects what a browser would load, follow or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return example(tmp_path_factory.mktemp("images"), count=60)


@pytest.fixture(scope="module")
def report(data: ReportData) -> dict[str, Any]:
    return build(data)


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return render(report)


# --- report.json -----------------------------------------------------------------------------------------------------------


def test_report_is_strict_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["version"] == 1
    assert set(report) == {
        *("version", "title", "created", "seed", "set", "models", "comparisons", "gaps", "sets", "headline", "counts", "timings"),
        *("pairs", "trained", "training", "dropped", "examples", "changes", "settings", "versions"),
        *("benchmark", "figures", "figure_differences", "sampled_differences", "alarms", "unfinished", "served", "text"),
    }


def test_every_key_is_documented(report: dict[str, Any]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    scores, sampled = (report["models"]["mpo"][mode] for mode in ("cot", "sampled"))
    keys = {
        *report,
        *scores,
        *sampled,
        *sampled["figures"][0],
        *report["sampled_differences"][0],
        *report["comparisons"][0],
        *report["gaps"][0],
        *report["headline"],
        *report["dropped"][0],
        *report["changes"][0],
    }
    assert [key for key in sorted(keys) if f"`{key}`" not in document] == []


def test_scores_are_those_of_the_predictions(data: ReportData, report: dict[str, Any]) -> None:
    expected = score(data.predictions["test", "mpo", "cot"])
    found = report["models"]["mpo"]["cot"]
    assert {key: found[key] for key in ("accuracy", "n", "low", "high", "correct", "malformed", "undecided", "cut", "mean_tokens")} == {
        key: getattr(expected, key) for key in ("accuracy", "n", "low", "high", "correct", "malformed", "undecided", "cut", "mean_tokens")
    }
    assert found["domains"]["sum"]["accuracy"] == expected.domains["sum"].accuracy
    assert "domains" not in found["domains"]["sum"]
    sampled = report["models"]["mpo"]["sampled"]
    assert (sampled["n"], sampled["samples"], sampled["per_question"]) == (60, 240, 4)
    assert [figure["name"] for figure in sampled["figures"]] == ["pass@2", "pass@4", "maj@2", "maj@4"]
    assert found["no_answer"] == found["malformed"] / found["n"]
    assert found["yes_no"]["n"] == expected.domains["compare"].n


def test_comparisons_and_gaps(data: ReportData, report: dict[str, Any]) -> None:
    sides = [(c["a"], c["b"], c["mode"]) for c in report["comparisons"]]
    pairs = [("base", "sft"), ("base", "dpo"), ("base", "mpo"), ("sft", "mpo"), ("dpo", "mpo")]
    assert sides == [(a, b, mode) for a, b in pairs for mode in ("cot", "direct")]
    expected = compare(data.predictions["test", "base", "cot"], data.predictions["test", "mpo", "cot"])
    found = report["comparisons"][4]
    assert (found["difference"], found["p"], found["only_b"]) == (expected.difference, expected.p, expected.only_b)
    gap = next(g for g in report["gaps"] if g["model"] == "mpo")
    both = [report["models"]["mpo"][mode]["accuracy"] for mode in ("cot", "direct")]
    assert gap["difference"] == pytest.approx(both[0] - both[1])


def test_the_gap_is_a_table_for_people(report: dict[str, Any], html: str) -> None:
    headings, rows = gap_table(report)
    assert [row[1] for row in rows] == ["Base model", "SFT", "DPO", "MPO"]
    scores = report["models"]["base"]
    assert rows[0][2:4] == (percent(scores["direct"]["accuracy"]), percent(scores["cot"]["accuracy"]))
    assert all(len(row) == len(headings) for row in rows)
    assert "direct and chain-of-thought accuracy" in html


def test_questions_without_a_family_are_in_table_and_chart(data: ReportData) -> None:
    predictions = {
        key: [replace(row, domain="" if n % 3 == 0 else row.domain) for n, row in enumerate(rows)] for key, rows in data.predictions.items()
    }
    built = build(replace(data, predictions=predictions))
    scores = built["models"]["mpo"]["cot"]
    assert scores["domains"][""]["n"] == 20
    assert sum(part["n"] for part in scores["domains"].values()) == scores["n"]
    page = render(built)
    assert '<th scope="row">(no domain)</th><td>20</td>' in page
    assert page.count("(no domain)") >= 3  # the table, the lane and its tips


def test_yes_no_figures_have_an_interval_and_a_table(data: ReportData) -> None:
    asked = [replace(q, kind="yes_no", answer="yes" if n % 2 else "no") for n, q in enumerate(data.questions.values())]
    rows = [replace(answer(q, "base", "cot", 0.5), extracted="yes", outcome="correct" if n % 3 else "wrong") for n, q in enumerate(asked)]
    built = build(replace(EMPTY, predictions={("s", "base", "cot"): rows}, questions={q.id: q for q in asked}))
    found = built["models"]["base"]["cot"]["yes_no"]
    assert found["low"] < found["f1"] < found["high"]
    headings, (row,) = yes_no_table(built)
    assert len(row) == len(headings)
    assert row[5] == percent(found["f1"])
    assert "yes/no questions" in render(built)


def test_headline_and_changes(report: dict[str, Any]) -> None:
    headline = report["headline"]
    assert (headline["a"], headline["b"], headline["mode"]) == ("base", "mpo", "cot")
    assert headline["after"] - headline["before"] == pytest.approx(headline["difference"])
    assert 0 < len([c for c in report["changes"] if c["change"] == "gained"]) <= 4
    for change in report["changes"]:
        right, wrong = ("after", "before") if change["change"] == "gained" else ("before", "after")
        assert change[right]["outcome"] == "correct"
        assert change[wrong]["outcome"] != "correct"
    domains = [c["question"]["domain"] for c in report["changes"] if c["change"] == "gained"]
    assert len(set(domains)) == len(domains)


def test_a_difference_needs_interval_and_test(data: ReportData) -> None:
    asked = list(data.questions.values())
    for flips, verdict in ((0, "unclear"), (5, "unclear"), (6, "gain")):
        before = [replace(answer(q, "base", "cot", 0.5), outcome="wrong") for q in asked]
        after = [replace(row, outcome="correct") if n < flips else row for n, row in enumerate(before)]
        built = build(replace(EMPTY, predictions={("s", "base", "cot"): before, ("s", "new", "cot"): after}))
        assert built["headline"]["verdict"] == verdict, flips  # 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125
        turned = build(replace(EMPTY, predictions={("s", "base", "cot"): after, ("s", "new", "cot"): before}))
        assert turned["headline"]["verdict"] == {"gain": "loss"}.get(verdict, verdict)


def test_further_sets_and_other_main_model(data: ReportData) -> None:
    rows = data.predictions["test", "base", "cot"]
    built = build(
        replace(EMPTY, predictions={("a", "base", "cot"): rows, ("b", "base", "cot"): rows, ("b", "x", "cot"): rows}, main="absent")
    )
    assert built["set"] == "a"
    assert built["headline"] is None
    assert list(built["sets"]) == ["b"]
    assert built["sets"]["b"]["comparisons"][0]["difference"] == 0
    page = render(built)
    assert "<h3>Evaluation set: a</h3>" in page  # with several, the first must be told from the others
    assert "<h3>Evaluation set: b</h3>" in page
    assert "<h3>Evaluation set:" not in render(build(replace(EMPTY, predictions={("a", "base", "cot"): rows})))


def test_models_asked_different_questions_are_refused(data: ReportData) -> None:
    rows = data.predictions["test", "base", "cot"]
    with pytest.raises(EvaluateError, match="different questions"):
        build(replace(EMPTY, predictions={("a", "base", "cot"): rows, ("a", "x", "cot"): rows[1:]}))


def test_what_was_left_out(report: dict[str, Any]) -> None:
    first = report["dropped"][0]
    assert first == {"stage": "source", "where": "data.jsonl:17, data.jsonl:90", "reason": "image missing", "count": 2, "unit": "rows"}
    assert [(d["stage"], d["count"], d["unit"]) for d in report["dropped"][2:]] == [
        ("round-1/pair", 388, "answers"),
        ("round-1/pair", 17, "pairs"),
    ]


def test_training_rows_become_columns() -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 5, "loss": float("nan"), "margin": 0.2}]
    run = build(replace(EMPTY, training={"mpo": rows}))["training"]["mpo"]
    assert run == {"steps": [1, 5], "curves": {"loss": [1.0, None], "margin": [None, 0.2]}}


def test_memory_is_drawn_in_gigabytes() -> None:
    from mixpo.report.sections import training_charts

    charts = {c.title: c.drawing for c in training_charts({"steps": [1, 2], "curves": {"memory": [1.01e9, None], "seconds_left": [9, 1]}})}
    assert list(charts) == ["Memory (GB)"]
    assert "memory, step 1: 1.01" in charts["Memory (GB)"]


def test_training_charts_leave_out_what_an_objective_has_not(report: dict[str, Any]) -> None:
    from mixpo.report.sections import training_charts

    titles = {arm: [chart.title for chart in training_charts(run)] for arm, run in report["training"].items()}
    assert titles["sft"] == ["Loss and weighted terms", "Loss terms, unweighted", "Gradient norm", "Learning rate"]
    assert titles["mpo"][2:6] == ["Rewards", "Reward margin", "Reward accuracy", "Quality shift δ"]


# --- the page --------------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_complete(html: str) -> None:
    page = Page(html)
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count("h1") == 1
    assert all(int(b[1]) - int(a[1]) <= 1 for a, b in itertools.pairwise(headings)), "a heading level is skipped"
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert {f"#{i}" for i in ids} >= set(links)
    assert {"#results", "#changes", "#pairs", "#examples", "#training", "#run"} <= set(links)


def test_page_is_self_contained(html: str) -> None:
    for tag, attrs in Page(html).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("src") or "data:").startswith("data:image/") or "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
        if tag == "img":
            assert attrs["alt"]
        if tag == "svg":
            assert attrs.get("role") == "img" or "viewbox" not in attrs, "a drawing without a name"
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html.replace("&#39;", "'")


def test_numbers_of_the_page_are_those_of_the_report(html: str, report: dict[str, Any]) -> None:
    text = Page(html).words
    headline = report["headline"]
    for expected in (percent(headline["before"]), percent(headline["after"]), f"{points(headline['difference'])} points"):
        assert expected in text
    assert f"95 % interval {points(headline['low'])} to {points(headline['high'])}" in text
    for modes in report["models"].values():
        for scores in modes.values():
            assert percent(scores["accuracy"]) in text
            assert f"{scores['low'] * 100:.1f} to {percent(scores['high'])}" in text
    for key, value in report["headline"].items():
        assert value is not None, key
    ((name, source),) = report["pairs"]["sources"].items()
    cells = (source["questions"], source["with_pairs"], percent(source["accuracy"]), source["pairs"])
    row = "".join(f'<td class="right">{value}</td>' for value in cells)
    assert f'<th scope="row">{name}</th>{row}' in html


def test_summary_rows(report: dict[str, Any]) -> None:
    rows = summary_rows(report)
    assert len(rows) == 12
    assert all(len(row) == len(SUMMARY_COLUMNS) for row in rows)
    assert rows[0][:2] == ("Base model", "chain of thought")
    assert rows[0][4] == rows[0][5] == ""
    mpo = next(row for row in rows if row[0] == "MPO")
    assert mpo[2] == percent(report["models"]["mpo"]["cot"]["accuracy"])
    assert mpo[4] == points(report["headline"]["difference"])


def test_columns_that_are_empty_throughout_are_not_shown(report: dict[str, Any]) -> None:
    """Responses of other tools have no base model to compare with, and no number of tokens."""
    assert filled_table(report) == (SUMMARY_COLUMNS, summary_rows(report))
    modes = {mode: {**scores, "mean_tokens": 0} for mode, scores in report["models"]["mpo"].items()}
    columns, rows = filled_table({**report, "models": {"mpo": modes}, "comparisons": []})
    assert set(SUMMARY_COLUMNS) - set(columns) == {"Δ vs. base", "p", "tokens"}
    assert [len(row) for row in rows] == [len(columns)] * len(rows)


def test_empty_run_renders() -> None:
    built = build(EMPTY)
    assert built["models"] == {}
    assert built["headline"] is None
    assert summary_rows(built) == []
    text = Page(render(built)).words
    assert "Nothing was evaluated" in text
    assert "Nothing was filtered" in text


def test_parts_may_be_missing(data: ReportData) -> None:
    start = {("s", "base", "direct"): data.predictions["test", "base", "direct"]}
    from mixpo.pairs.statistics import Statistics

    for changed in (
        {"predictions": start},
        {"predictions": {**start, ("s", "mpo", "direct"): data.predictions["test", "mpo", "direct"]}},
        {"predictions": {("s", "base", "sampled"): data.predictions["test", "base", "sampled"]}},
        {"training": {"mpo": [], "sft": [{"step": 1, "loss": float("inf")}]}},
        {"statistics": Statistics().as_dict()},
        {"statistics": data.statistics},
        {"examples": data.examples[:1]},
        {"manifests": {"source": manifest("source", 0.0)}},
    ):
        Page(render(build(replace(EMPTY, **changed))))
    assert "Direct-answer accuracy" not in render(build(replace(EMPTY, predictions=start)))


EVIL = [
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    '"><img src=x onerror=alert(1)>',
    "</style><script>",
    "{{ 7191 * 7 }}",
    "<!--",
    "\x00\x1b[2J",
]


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_text_is_inert(data: ReportData, evil: str) -> None:
    question = Question(id=evil, text=f"<image>{evil}", images=(ImageRef(path=evil, digest=evil),), answer=evil, domain=evil, source=evil)
    pair = Pair(id=evil, question=evil, chosen=evil, rejected=f"no {evil}", origin="correctness", chosen_answer=evil, rejected_answer=evil)
    rows = [
        Prediction(question=evil, mode="cot", text=evil, tokens=1, finish="stop", outcome=o, extracted=evil, reason=evil, domain=evil)
        for o in ("wrong", "correct")
    ]
    built = build(
        ReportData(
            title=evil,
            created=evil,
            seed=0,
            recipe={evil: evil, "model": {"path": evil}},
            versions={evil: evil},
            predictions={(evil, "base", "cot"): rows[:1], (evil, evil, "cot"): rows[1:]},
            questions={evil: question},
            manifests={evil: manifest(evil, 1.0, **{evil: 1, f"dropped: {evil}": 2})},
            statistics={"drops": {evil: 1}, "domains": {evil: {"accuracy": 0.5}}},
            training={evil: [{"step": 1, evil: 1.0}]},
            examples=[(question, pair)],
            skipped=[Skipped(where=evil, reason=evil, stage=evil)],
        )
    )
    page = Page(render(json.loads(json.dumps(built))))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not [attrs for _, attrs in page.tags if "javascript" in (attrs.get("href") or "") + (attrs.get("src") or "")]
    if "{{" in evil:
        assert "50337" not in page.words
        assert evil in page.words


def test_only_the_kept_part_is_underlined(html: str) -> None:
    assert (
        re.findall(r'<span class="kept">([^<]*)</span>', html[html.index('id="examples"') :])[1:]
        == ["The picture shows four handwritten digits: "] * 2
    )


# --- images ----------------------------------------------------------------------------------------------------------------


def test_tiny_images_are_exact_and_crisp(tmp_path: Path) -> None:
    import base64
    import io

    image = Image.effect_noise((56, 40), 90).convert("RGB")
    image.save(tmp_path / "a.png")
    shown = picture(reference(tmp_path / "a.png"))
    assert (shown.width, shown.height, shown.crisp) == (168, 120, True)
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    assert decoded.tobytes() == image.tobytes()


def test_large_images_are_scaled_down(tmp_path: Path) -> None:
    Image.effect_noise((3000, 2000), 90).save(tmp_path / "a.jpg")
    shown = picture(reference(tmp_path / "a.jpg"))
    assert shown.uri.startswith("data:image/jpeg;base64,")
    assert shown.width * shown.height <= 640 * 640
    assert shown.width / shown.height == pytest.approx(1.5, abs=0.01)
    assert not shown.crisp


def test_missing_broken_and_changed_images_are_said(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = reference(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
    for ref in (ImageRef(path=str(tmp_path / "no.png"), digest=""), reference(tmp_path / "b.png"), replace(good, digest="0" * 64)):
        shown = picture(ref)
        assert shown.uri == ""
        assert ref.path in shown.problem


def test_text_of_questions() -> None:
    assert asked("<image>\nHow many?") == "How many?"
    assert asked("Compare <image> and <image>.") == "Compare [image 1] and [image 2]."
    assert asked("no picture") == "no picture"


# --- wording and looks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (75.2, "1 min 15 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_points_have_signs() -> None:
    assert [points(v) for v in (0.137, -0.02, 0.0, -0.0001)] == ["+13.7", "−2.0", "0.0", "0.0"]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_both_themes() -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for drawings."""
    style = resources.files("mixpo.report").joinpath("page.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]]
    for theme in themes:
        for text, back in (
            *((t, b) for t in ("ink", "soft", "accent") for b in ("page", "card")),
            ("good", "good-back"), ("bad", "bad-back"), ("unsure", "unsure-back"), ("good", "page"), ("bad", "page"),
            ("ink", "mark"), ("ink", "mark-good"), ("ink", "mark-bad"), ("ink", "unsure-back"),
        ):  # fmt: skip
            assert _contrast(theme[text], theme[back]) >= 4.5, (text, back)
        for number in range(6):
            assert _contrast(theme[f"c{number}"], theme["card"]) >= 3, number


def test_what_is_left_out_has_its_unit() -> None:
    skipped = [
        Skipped(where=f"w{stage}", reason="r", stage=stage)
        for stage in ("source", "evaluate/a/source", "answer/a/mpo/cot", "round-1/sample")
    ]
    units = {row["stage"]: row["unit"] for row in build(replace(EMPTY, skipped=skipped))["dropped"]}
    assert units == {"source": "rows", "evaluate/a/source": "rows", "answer/a/mpo/cot": "questions", "round-1/sample": "questions"}


def test_the_page_says_where_the_models_are() -> None:
    page = render(build(replace(EMPTY, training={"mpo-round-1": [{"step": 1, "loss": 1.0}]}, models={"mpo-round-1": "models/mpo-round-1"})))
    assert "MPO of round 1" in page
    assert "1 logged step; the model is in models/mpo-round-1" in page


def test_alarms_are_grouped_by_cause_and_folded(report: dict[str, Any]) -> None:
    alarms = [
        {"set": "test", "model": "mpo", "mode": "cot", "cause": cause, "text": f"{cause} {n}."}
        for cause, number in (("truncated", 9), ("failed", 2))
        for n in range(number)
    ]
    page = render({**report, "alarms": alarms})
    assert "<summary>5 more</summary>" in page
    assert page.count("</summary>\n<ul>") == 1, "two of a cause are not folded"
    assert [page.count(alarm["text"]) for alarm in alarms] == [1] * 11
    assert [page.count(CAUSES[cause].partition(":")[0]) for cause in CAUSES] == [1, 0, 1, 0, 0]


def test_columns_of_numbers_stand_on_the_right() -> None:
    rows = [
        ("pope", "Base model", "62.5\N{NO-BREAK SPACE}%", "+1.0", "< 0.001", ""),
        ("own", "2 of 3", "none", "\N{MINUS SIGN}0.5", "0.031", "1,000"),
    ]
    assert sides(rows) == ["left", "left", "right", "right", "right", "right"]
    assert sides([]) == []


def test_moments() -> None:
    assert moment("2026-11-27T15:35:59Z") == "2026-11-27, 15:35 UTC"
    assert moment("now") == "now"


def test_the_page_names_no_test_that_it_did_not_make(html: str) -> None:
    """Where questions share images, p is not McNemar's."""
    assert "McNemar" not in html
