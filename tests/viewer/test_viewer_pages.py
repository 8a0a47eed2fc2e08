"""Every page through a client: what it shows, what it escapes, and what it says when something is not there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import viewer_run
from starlette.testclient import TestClient

from mixpo import sealed
from mixpo.human_labels import HumanLabel, append_label, read_labels
from mixpo.pipeline import open_run
from mixpo.records import Drop, OtherReading, Paired, Prediction, Sampled
from mixpo.report.benchmarks import CAUSES
from mixpo.run import Run
from mixpo.types import Pair, Question, content_id
from mixpo.viewer.app import create_app
from mixpo.viewer.views import Views

PAGES = (
    "/",
    "/pairs",
    "/questions",
    "/statistics",
    "/audit",
    "/audit?kind=suspicious",
    "/audit/0",
    "/training",
    "/evaluation",
    "/evaluation/held-out",
    "/filtered",
)


def question_id(number: int) -> str:
    return content_id("viewer", number)


def pairs_of(root: Path, number: int) -> tuple[Pair, ...]:
    return next(row.pairs for row in Run(root).stage("round-1/pair").read_all(Paired) if row.question == question_id(number))


def body(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there(client: TestClient, path: str) -> None:
    text = body(client, path)
    assert text.count("<h1") + text.count("walker") >= 1
    assert "run</span>" in text


def test_no_page_has_inline_code_or_foreign_content(client: TestClient, made: Path) -> None:
    """What the policy forbids is not there to begin with."""
    pair = pairs_of(made, 1)[0].id
    for path in (*PAGES, f"/pairs/{pair}", f"/questions/{question_id(1)}", f"/evaluation/held-out/{question_id(500)}", "/nothing"):
        text = client.get(path).text
        assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", text), path
        assert all('src="/static/' in tag for tag in re.findall(r"<script[^>]*>", text))
        assert not re.findall(r"\s(?:href|src|action)=\"(?!/|#|\?)[^\"]+", text), path


def test_a_pair_shows_all_of_itself(client: TestClient, made: Path) -> None:
    pair = pairs_of(made, 0)[0]
    text = body(client, f"/pairs/{pair.id}")
    assert "<mark>look closely at</mark>" in text
    assert "<mark>guess from</mark>" in text
    assert "✓ correct" in text
    assert "✗ wrong" in text
    for shown in (
        pair.id,
        question_id(0),
        "sample 0",
        "seed 1",
        "by hand",
        "correct vs. wrong",
        "numbers compared",
        'alt="Image 2 of 2',
    ):
        assert shown in text


def test_a_continuation_is_told_from_a_verdict(client: TestClient, made: Path) -> None:
    text = body(client, f"/pairs/{pairs_of(made, 5)[0].id}")
    assert "completed without the image" in text
    assert '<span class="kept">' in text
    assert "shared prefix of 5 tokens" in text


def test_model_output_is_inert(client: TestClient, views: Views, made: Path) -> None:
    audited = next(n for n, item in enumerate(views.audits.sample("random", 1)) if item.question == question_id(1))
    for path in (f"/pairs/{pairs_of(made, 1)[0].id}", f"/questions/{question_id(1)}", "/pairs", "/questions", f"/audit/{audited}"):
        text = body(client, path)
        assert "&lt;script&gt;window.hacked" in text
        assert "<script>window" not in text
        assert "<img src=x" not in text
        assert 'href="javascript' not in text


def test_formulas_and_chinese(client: TestClient, made: Path) -> None:
    text = body(client, f"/questions/{question_id(3)}")
    assert 'data-tex="x^2 + y^2 = z^2"' in text
    assert re.search(r'data-tex="\\frac\{1\}[^"]*" data-display', text)
    assert "costs $5 and $6" in text
    assert viewer_run.CHINESE in body(client, f"/questions/{question_id(2)}")


def test_a_filter_stays_while_walking(client: TestClient, made: Path) -> None:
    listed = body(client, "/pairs?origin=format&text=puzzle")
    first = re.search(r'href="(/pairs/\w+\?origin=format&amp;text=puzzle)"', listed)
    assert first is not None
    page = body(client, first[1].replace("&amp;", "&"))
    assert re.search(r'rel="next"', page)
    assert page.count("origin=format&amp;text=puzzle") >= 2
    assert '<option value="format" selected>' in page


def test_a_question_shows_every_response(client: TestClient) -> None:
    text = body(client, f"/questions/{question_id(9)}")
    assert text.count('class="card response') == 4
    assert "2 of 4 right" in text
    assert "the same text as another answer" in text


def test_questions_by_domain(client: TestClient) -> None:
    text = body(client, "/questions")
    assert "Accuracy of the sampled responses by domain" in text
    assert re.search(r"all right 1 \(1\.7 %\)", text)


def test_curves(client: TestClient) -> None:
    text = body(client, "/training")
    for title in (
        "Loss and weighted terms",
        "Loss terms, unweighted",
        "Rewards",
        "Reward margin",
        "Quality shift δ",
        "Reward accuracy",
    ):
        assert f"<h3>{title}</h3>" in text
    for part in ("preference", "quality", "generation", "weighted generation", "reward chosen", "reward rejected"):
        assert f"<title>{part}</title>" in text
    assert "Reward margin of all trainings" in text


def test_models_side_by_side(client: TestClient) -> None:
    text = body(client, f"/evaluation/held-out/{question_id(502)}")
    assert "Base model" in text
    assert text.count('class="card response') == 2
    assert text.count("✗ wrong") == 1
    assert "7 questions" in body(client, "/evaluation/held-out?change=gained")
    assert "0 questions" in body(client, "/evaluation/held-out?change=lost")
    assert "53.3" in body(client, "/evaluation")


def test_what_a_judge_said_and_what_others_read_stands_beside_the_answer(own: Path, own_client: TestClient) -> None:
    run, name = Run(own), "evaluate/held-out/mpo/cot"
    rows = list(run.stage(name).read_all(Prediction))
    reply = f"It is right. {viewer_run.ATTACK}\nRating: 5"
    others = (OtherReading(extractor="paper", outcome="wrong"), OtherReading(extractor="official", outcome="correct"))
    rows[0] = dataclasses.replace(rows[0], outcome="correct", reply=reply, judge="judge-7b #0a1b2c3d")
    rows[1] = dataclasses.replace(rows[1], outcome="correct", others=others)
    shutil.rmtree(own / name)
    viewer_run.stage(run, name, Prediction, rows, {"answers": len(rows)})
    text = body(own_client, f"/evaluation/held-out/{rows[0].question}")
    assert "Reply of judge judge-7b #0a1b2c3d" in text
    assert "Rating: 5" in text
    assert "<script>window" not in text
    assert "graded by" not in text
    text = body(own_client, f"/evaluation/held-out/{rows[1].question}")
    assert "graded by “paper”: wrong" in text
    assert "official" not in text
    assert "Reply of judge" not in text


def test_of_a_benchmark_it_says_where_the_published_figures_are(client: TestClient, own: Path, own_client: TestClient) -> None:
    run, name = Run(own), "evaluate/held-out/source"
    rows = [dataclasses.replace(row, facts='{"benchmark": "pope", "categories": ["random"]}') for row in run.stage(name).read_all(Question)]
    shutil.rmtree(own / name)
    viewer_run.stage(run, name, Question, rows)
    note = 'The published metrics of POPE are in the <a href="/report">report</a>'
    assert note in body(own_client, "/evaluation")
    assert "published metrics" not in body(client, "/evaluation")


def test_a_filter_reason_leads_to_the_questions_it_concerns(client: TestClient) -> None:
    page = body(client, "/filtered")
    assert '<a href="/questions?dropped=duplicate">3 answers</a>' in page
    listed = body(client, "/questions?dropped=duplicate")
    assert "of 59 questions" in listed
    assert '<option value="duplicate" selected>' in listed
    assert "0 questions" in body(client, "/questions?dropped=entailment")


def test_the_audit_hides_the_verdict_until_the_response_is_labelled(own: Path, own_client: TestClient, own_views: Views) -> None:
    for kind in ("random", "suspicious"):
        item = own_views.audits.sample(kind, 1)[0]
        verdict = ("✓ correct", "✗ wrong", "numbers compared", "called ", "verifier</span>", ">agrees<", ">disagrees")
        for path in (f"/audit?kind={kind}", f"/audit/0?kind={kind}"):
            page = body(own_client, path)
            assert not [words for words in verdict if words in page], path
        append_label(own, HumanLabel(question=item.question, index=item.index, outcome="undecided"))
        assert "disagrees: " in body(own_client, f"/audit?kind={kind}")
        assert "numbers compared" in body(own_client, f"/audit/0?kind={kind}")
        assert "you said <b>undecided</b>, the verifier said <b>" in body(own_client, f"/audit/1?kind={kind}")


def test_the_overview_starts_with_the_headline_of_the_report(own: Path, own_client: TestClient) -> None:
    assert "points</b>" not in body(own_client, "/")
    headline = {"a": "base", "b": "mpo", "mode": "cot", "before": 0.5, "after": 0.75, "n": 30, "difference": 0.25, "low": 0.1, "high": 0.4,
                "p": 0.016, "only_a": 1, "only_b": 8, "verdict": "gain"}  # fmt: skip
    alarm = {"set": "held-out", "model": "mpo", "mode": "cot", "cause": "truncated", "text": "10 %"}
    report = {"headline": headline, "set": "held-out", "created": "2026-11-27T15:35:59Z", "alarms": [alarm, alarm]}
    (own / "report.json").write_text(sealed.dumps(report))
    page = body(own_client, "/")
    assert "Base model → MPO" in page
    assert "<b>+25.0 points</b>, 95 % interval +10.0 to +40.0 (p = 0.016), on 30 held-out questions" in page
    assert page.count(CAUSES["truncated"]) == 1
    (own / "report.json").write_text("{")
    assert "points</b>" not in body(own_client, "/")


def test_what_was_filtered(client: TestClient) -> None:
    text = body(client, "/filtered")
    assert "the same text as another answer to the question" in text
    assert "3 answers" in text


def test_the_report(own: Path, own_client: TestClient) -> None:
    assert "no report yet" in body(own_client, "/report", 404)
    (own / "report.html").write_text("<h1>a report</h1>")
    answer = own_client.get("/report")
    assert "a report" in answer.text
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/pairs/0123456789abcdef", "/pairs/%27%20OR%201=1", "/questions/none", "/audit/9999", "/audit/-1", "/audit/x",
        "/evaluation/none", "/evaluation/held-out/none", "/image/none/0", "/static/none.css", "/round-1/pair",
        "/pairs/978be46c491e77e9?round=7", "/openapi.json", "/docs",
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_page_that_says_so(client: TestClient, path: str) -> None:
    assert "Overview of the run" in body(client, path, 404)


@pytest.mark.parametrize(
    "query", ["after=x", "after=-5", "after=99999999999999999", "round=0", "shortest=1e9", "text=%00", "origin=%F0%9F%98%80", "page=-3"]
)
def test_odd_queries_are_borne(client: TestClient, query: str) -> None:
    for path in ("/pairs", "/questions", "/audit", "/evaluation/held-out"):
        assert client.get(f"{path}?{query}").status_code == 200


def test_an_empty_run(own: Path) -> None:
    """Only the recipe is there: every page says so."""
    for path in own.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    views = Views(open_run(own))
    client = TestClient(create_app(views), base_url="http://localhost")
    for page, said in {
        "/": "No stage has started", "/pairs": "No pairs yet", "/questions": "No questions yet", "/training": "No training has started",
        "/evaluation": "Nothing has been evaluated", "/audit": "No verdicts in this round", "/filtered": "Nothing was filtered",
    }.items():  # fmt: skip
        assert said in body(client, page)
    views.index.close()


def test_a_run_that_stopped_while_sampling(own: Path) -> None:
    for name in ("verify", "pair", "continue", "train"):
        shutil.rmtree(own / "round-1" / name)
    shutil.rmtree(own / "evaluate")
    sorted((own / "round-1" / "sample").glob("*.parquet"))[-1].unlink()
    views = Views(open_run(own))
    client = TestClient(create_app(views), base_url="http://localhost")
    assert "part" in body(client, "/")
    assert "I look closely" in body(client, f"/questions/{question_id(9)}")
    assert "No responses sampled yet" in body(client, f"/questions/{question_id(59)}")
    assert "not verified yet" in body(client, "/questions")
    views.index.close()


def test_a_training_that_runs_shows_its_steps(own: Path, own_client: TestClient) -> None:
    stage = Run(own).stage("round-1/train/mpo")
    (shard,) = sorted(stage.folder.glob("*.parquet"))
    work = stage.folder / f"work-{shard.stem}"
    work.mkdir()
    rows = [viewer_run.step(step, 0.1) for step in range(1, 8)]
    (work / "metrics.jsonl").write_text("".join(sealed.dumps(dataclasses.asdict(row)) for row in rows) + '{"step": 8, "ep')
    shard.unlink()
    text = body(own_client, "/training")
    assert "running or stopped" in text
    assert "<b>7</b> steps" in text
    with (work / "metrics.jsonl").open("a") as log:
        log.write(sealed.dumps(dataclasses.asdict(viewer_run.step(8, 0.1))).removeprefix('{"step": 8, "ep'))
    assert "<b>8</b> steps" in body(own_client, "/training")


def test_an_image_that_is_gone_is_said_and_takes_no_page_away(own: Path) -> None:
    run = Run(own)
    rows = list(run.stage("source").read_all(Question))
    rows[6] = dataclasses.replace(rows[6], images=(*rows[6].images, dataclasses.replace(rows[6].images[0], path="/nowhere/gone.png")))
    lost = dataclasses.replace(rows[7].images[0], path=str(Path(rows[7].images[0].path).with_name("moved.png")))
    rows[7] = dataclasses.replace(rows[7], images=(lost,))
    shutil.rmtree(own / "source")
    viewer_run.stage(run, "source", Question, rows)
    views = Views(open_run(own))
    client = TestClient(create_app(views), base_url="http://localhost")
    text = body(client, f"/questions/{question_id(6)}")
    assert text.count('class="zoomable"') == 1
    assert "Image 2 of 2 cannot be shown. /nowhere/gone.png: outside the folders" in text
    text = body(client, f"/questions/{question_id(7)}")
    assert "Image 1 of 1 cannot be shown. " in text
    assert "moved.png: no such image" in text
    views.index.close()


def test_a_shard_that_goes_while_the_page_is_open(own: Path, own_client: TestClient) -> None:
    pair = pairs_of(own, 20)[0].id
    assert own_client.get(f"/pairs/{pair}").status_code == 200
    for shard in (own / "round-1" / "pair").glob("00001-*.parquet"):
        shard.unlink()
    text = body(own_client, f"/pairs/{pair}", 500)
    assert "<h1>Error</h1>" in text
    assert "run the same command again" in text


def test_a_run_that_is_deleted_while_it_is_looked_at_says_so(own: Path, own_client: TestClient) -> None:
    pair = re.search(r'href="(/pairs/\w+)"', own_client.get("/pairs").text)[1]  # type: ignore[index]
    assert "no longer exists" not in own_client.get("/").text
    shutil.rmtree(own)
    for path in ("/", "/pairs", "/training", "/evaluation", pair, "/report"):
        answer = own_client.get(path)
        assert (answer.status_code == 200) == (path not in (pair, "/report"))
        assert f"no longer exists: <code>{own}</code>" in answer.text
    assert not own.exists()


def test_no_mark_comes_from_reading(client: TestClient, made: Path) -> None:
    for path in PAGES:
        client.get(path)
    assert read_labels(made) == {}
    assert not (made / "audit").exists()


def test_a_broken_line_of_marks_takes_no_page_away(own: Path, own_client: TestClient) -> None:
    (own / "audit").mkdir()
    (own / "audit" / "labels.jsonl").write_text("nonsense\n")
    for path in (*PAGES, f"/questions/{question_id(6)}", f"/pairs/{pairs_of(own, 6)[0].id}"):
        text = body(own_client, path)
        assert "Human labels are not shown: " in text
        assert "labels.jsonl:1: not valid JSON" in text


def test_very_many_domains_are_written_and_not_picked_from_a_list(own: Path) -> None:
    run = Run(own)
    rows = [
        dataclasses.replace(question, domain=f"domain {number}") for number, question in enumerate(run.stage("source").read_all(Question))
    ]
    more = [dataclasses.replace(rows[-1], id=content_id("more", number), domain=f"more {number}") for number in range(200)]
    shutil.rmtree(own / "source")
    viewer_run.stage(run, "source", Question, [*rows, *more])
    views = Views(open_run(own))
    client = TestClient(create_app(views), base_url="http://localhost")
    text = body(client, "/questions")
    assert '<input name="domain" value="" placeholder="one of 260">' in text
    assert "The 12 best and the 12 worst of 59 domains." in text
    assert text.count('class="lane-label"') == 24
    assert "<b>1–1</b> of 1 question" in body(client, "/questions?domain=more+7")
    views.index.close()


def test_many_images_and_many_answers_are_shown_small(own: Path) -> None:
    run = Run(own)
    rows = list(run.stage("source").read_all(Question))
    rows[6] = dataclasses.replace(rows[6], images=rows[6].images * 5)
    shutil.rmtree(own / "source")
    viewer_run.stage(run, "source", Question, rows)
    views = Views(open_run(own))
    text = body(TestClient(create_app(views), base_url="http://localhost"), f"/questions/{question_id(6)}")
    assert '<div class="pictures many">' in text
    assert text.count('class="zoomable"') == 5
    views.index.close()


def test_balanced_pairs_are_those_that_were_kept(own: Path) -> None:
    """With pairs.balance the run is trained on what the stage `select` kept; what it left out is listed."""
    run = Run(own)
    rows = [
        dataclasses.replace(row, pairs=row.pairs[:1], dropped=(Drop(reason="balance", count=len(row.pairs[1:])),))
        for row in run.stage("round-1/pair").read_all(Paired)
    ]
    viewer_run.stage(run, "round-1/select", Paired, rows, {"dropped: balance": 57})
    recipe = json.loads((own / "recipe.json").read_text())
    recipe["pairs"]["balance"] = ["origin"]
    for text, count in ((sealed.dumps({**recipe, "pairs": {**recipe["pairs"], "balance": []}}), 115), (sealed.dumps(recipe), 58)):
        (own / "recipe.json").write_text(text)
        views = Views(open_run(own))
        try:
            assert views.pairs({})["page"].total == count
            assert ("round-1/select" in {state.name for state in views.overview()["states"]}) == (count == 58)
            assert any(row["stage"] == "round-1/select" for row, *_ in views.filtered()["rows"]) == (count == 58)
            assert views.pair(pairs_of(own, 3)[0].id, {})["neighbours"].total == count
        finally:
            views.index.close()


def test_questions_that_failed_are_listed_with_their_reason(own: Path) -> None:
    run = Run(own)
    asked = [row.question for row in run.stage("round-1/sample").read_all(Sampled)]
    errors = ["timed out"] * 5 + ["refused"] + [""] * (len(asked) - 6)
    rows = [Sampled(question=name, error=error) for name, error in zip(asked, errors, strict=True)]
    viewer_run.stage(run, "answer/held-out/base/cot", Sampled, rows, {"failed": 6})
    views = Views(open_run(own))
    try:
        found = [row for row, *_ in views.filtered()["rows"] if row["stage"] == "answer/held-out/base/cot"]
        assert [(row["reason"], row["count"], row["unit"]) for row in found] == [("timed out", 5, "questions"), ("refused", 1, "questions")]
        assert found[0]["where"] == ", ".join(sorted(asked[:5])[:3])
        assert "answer/held-out/base/cot" in {state.name for state in views.overview()["states"]}
    finally:
        views.index.close()
