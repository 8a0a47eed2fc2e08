"""Evaluation over servers: each model of the run served in turn, and models that are nowhere here as rows of their own."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_run import make, open_small, said

pytest.importorskip("aiohttp")

from stub_server import StubServer, on, status

from mixpo.cli import main
from mixpo.commands.check import served_problems
from mixpo.commands.compare import compare_evaluations
from mixpo.engines import Request, SamplingParams, create
from mixpo.engines.openai.server import start
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EvaluateError, RecipeError, UnfinishedError
from mixpo.pipeline import run_recipe, run_stage
from mixpo.recipe import ModelTable, ServerTable, load
from mixpo.records import Prediction, Sampled
from mixpo.stages.answer import prompt_for
from mixpo.types import Question
from mixpo.vlm.folder import find_model
from mixpo.vlm.load import Vlm
from mixpo.vlm.load import load as load_model

SERVED = """
[[evaluate.served]]
name = "big-1.0"
urls = ["{url}"]
model = "big"
in_flight = 2
timeout_s = 120
retries = 0
patience_s = 120
{more}
"""
ASK = ("answer", "evaluate")


@pytest.fixture
def server(tiny_vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    monkeypatch.setattr("mixpo.engines.openai.client.HEALTH_SECONDS", 0.1)
    with StubServer(TokenCodec(tiny_vlm)) as stub:
        yield stub


def recipe_with(folder: Path, model: Path, url: str, more: str = "") -> Path:
    return make(folder, model, extra=SERVED.format(url=url, more=more))


def manifest(root: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((root / name / "manifest.json").read_text()))


def asked(server: StubServer) -> Counter[str]:
    """How often each question was put; the probe shortens its answers."""
    return Counter(json.dumps(body["messages"]) for _, body, _ in server.bodies if body.get("max_tokens") == 32)


@pytest.mark.slow
def test_a_served_model_is_a_row_of_the_table(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    recipe = recipe_with(tmp_path, tiny_folder, server.url)
    root = tmp_path / "run"
    context = open_small(recipe, root)
    run_recipe(context)
    report = json.loads((root / "report.json").read_text())
    assert list(report["models"]) == ["base", "sft", "mpo", "big-1.0"]
    assert report["headline"]["b"] == "mpo"
    scores = report["models"]["big-1.0"]["cot"]
    assert scores["n"] == 6
    assert scores["mean_tokens"] > 2
    assert {(c["a"], c["b"]) for c in report["comparisons"]} >= {("base", "big-1.0"), ("big-1.0", "mpo")}
    # Six questions in two modes, each once, and greedily.
    assert sorted(asked(server).values()) == [1] * 12
    assert {body["temperature"] for _, body, _ in server.bodies if body["max_tokens"] == 32} == {0.0}
    settings = manifest(root, "evaluate/held-out/big-1.0/cot")["settings"]
    assert (settings["engine"], settings["model"], settings["server"]) == ("openai", "served big", {"model": "big"})
    assert manifest(root, "answer/held-out/big-1.0/cot")["counts"]["answered by: stub-2026"] == 6
    page = (root / "report.html").read_text()
    assert "big-1.0" in page
    assert "stub-2026" in page
    # Nothing is asked again, and a run is compared by its own main model.
    before = len(server.bodies)
    run_recipe(open_small(recipe, root))
    assert len(server.bodies) == before
    (cot, _) = compare_evaluations(root, root)
    assert (cot["a"]["model"], cot["b"]["model"]) == ("mpo", "mpo")


def test_a_run_is_not_led_by_a_model_that_it_did_not_train(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    context = open_small(recipe_with(tmp_path, tiny_folder, server.url), tmp_path / "run")
    run_stage(context, ASK)
    run_stage(context, ("report",))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["models"]) == ["base", "big-1.0"]
    assert report["headline"] is None


def test_what_was_answered_before_the_server_went_away_is_kept(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    recipe = recipe_with(tmp_path, tiny_folder, server.url)
    # The seventh question of the two modes is where it goes away for good.
    server.fault = lambda stub, request, body, before: (
        status(401)(stub, request, body) if body.get("max_tokens") == 32 and sum(asked(server).values()) > 6 else None
    )
    with pytest.raises(UnfinishedError, match=r'HTTP 401.*api_key_env in evaluate\.served "big-1\.0"'):
        run_stage(open_small(recipe, tmp_path / "run"), ASK)
    first = asked(server)
    server.fault = None
    run_stage(open_small(recipe, tmp_path / "run"), ASK)
    again = asked(server) - first
    assert sum(again.values()) < 8
    rows = list(known_rows(tmp_path / "run", recipe))
    assert len(rows) == 12
    assert not any(row.error for row in rows)


@pytest.mark.slow
def test_a_server_that_is_away_at_the_end_costs_its_own_row_and_no_other(
    tmp_path: Path, tiny_folder: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, root = recipe_with(tmp_path, tiny_folder, server.url), tmp_path / "run"
    recipe.write_text(recipe.read_text().replace("patience_s = 120", "patience_s = 3"))
    server.stop()
    assert main(["run", str(recipe), "--dir", str(root), "--set", "evaluate.served=[]", "--limit", "2"]) == 0  # loads what takes time
    begun = time.monotonic()
    assert main(["run", str(recipe), "--dir", str(root)]) == 1
    assert time.monotonic() - begun < 200
    shown = capsys.readouterr()
    assert "cannot be reached (connection refused), after patience_s = 3" in shown.err
    assert "everything else is done" in shown.err
    assert "MPO" in shown.out, "the results are shown all the same"
    missing = [f"{kind}/held-out/big-1.0/{mode}" for mode in ("cot", "direct") for kind in ASK]
    assert f"! not finished, and missing here: {', '.join(missing)}" in shown.out
    report = json.loads((root / "report.json").read_text())
    assert list(report["models"]) == ["base", "sft", "mpo"]
    assert report["headline"]["b"] == "mpo"
    assert report["unfinished"] == missing
    assert missing[0] in (root / "report.html").read_text()
    # It is waited for once, not once for each mode.
    assert shown.err.count("waiting for it up to patience_s") == 1
    assert "answer held-out: big-1.0, direct: skipped, what it needs failed" in shown.err
    # When it is back, only its row is made.
    server.start()
    recipe.write_text(recipe.read_text().replace("patience_s = 3", "patience_s = 120"))
    context = open_small(recipe, root)
    run_recipe(context)
    stages = [line.partition(": ")[0] for line in said(context) if "stale" in line or "resuming" in line]
    assert stages == ["answer held-out", "report"]
    assert [line for line in said(context) if "resuming, 0 of 2 shards are done" in line]
    report = json.loads((root / "report.json").read_text())
    assert list(report["models"]) == ["base", "sft", "mpo", "big-1.0"]
    assert report["unfinished"] == []


@pytest.mark.slow
def test_a_server_whose_answers_fail_costs_no_report(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    server.fault = lambda stub, request, body, before: status(500)(stub, request, body) if body.get("max_tokens") == 32 else None
    context = open_small(recipe_with(tmp_path, tiny_folder, server.url), tmp_path / "run")
    with pytest.raises(UnfinishedError, match=r"big-1\.0/cot: 6 of 6 questions failed.*\(and 1 more\)"):
        run_recipe(context)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["models"]) == ["base", "sft", "mpo", "big-1.0"]
    assert report["unfinished"] == []
    assert [alarm["model"] for alarm in report["alarms"] if alarm["cause"] == "failed"] == ["big-1.0"] * 2


def known_rows(root: Path, recipe: Path) -> Iterator[Sampled]:
    run = open_small(recipe, root).run
    for mode in ("cot", "direct"):
        yield from run.stage(f"answer/held-out/big-1.0/{mode}").read_all(Sampled)


@pytest.mark.slow
def test_texts_that_end_an_answer_end_it_in_evaluation_too(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    recipe = recipe_with(tmp_path, tiny_folder, server.url)
    run_stage(open_small(recipe, tmp_path / "plain"), ASK)
    assert not any("stop" in body for _, body, _ in server.bodies)
    server.bodies.clear()
    context = open_small(recipe, tmp_path / "run", 'sample.stop=["red", "of"]', "evaluate.samples=2")
    run_stage(context, ASK)
    asked = [body for _, body, _ in server.bodies if body["max_tokens"] == 32]
    assert {tuple(body["stop"]) for body in asked} == {("red", "of")}
    for mode in ("cot", "direct", "sampled"):
        texts = [r.text for row in context.run.stage(f"answer/held-out/big-1.0/{mode}").read_all(Sampled) for r in row.responses]
        assert not [text for text in texts if "red" in text or "of" in text]
        assert manifest(tmp_path / "run", f"evaluate/held-out/big-1.0/{mode}")["settings"]["decode"]["stop"] == ["red", "of"]
    one, other = (tmp_path / name / "evaluate" / "held-out" / "big-1.0" / "cot" for name in ("plain", "run"))
    with pytest.raises(EvaluateError, match=r"decode\.stop: \[\] -> \['red', 'of'\]"):
        compare_evaluations(one, other)


def test_one_question_that_it_refuses_is_listed(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    server.fault = on("number 503", status(400))
    recipe = recipe_with(tmp_path, tiny_folder, server.url)
    context = open_small(recipe, tmp_path / "run", "max_error_rate=0.2")
    run_stage(context, ASK)
    rows = list(context.run.stage("evaluate/held-out/big-1.0/cot").read_all(Prediction))
    assert [row.finish for row in rows].count("error") == 1
    assert len(rows) == 6


def test_the_key_comes_from_the_environment_and_stands_nowhere(
    tmp_path: Path, tiny_folder: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(tmp_path, tiny_folder, server.url, 'api_key_env = "BIG_KEY"')
    monkeypatch.delenv("BIG_KEY", raising=False)
    with pytest.raises(RecipeError, match=r'evaluate\.served "big-1\.0"\.api_key_env: .* BIG_KEY is not set'):
        run_recipe(open_small(recipe, tmp_path / "run"))
    assert not (tmp_path / "run" / "round-1").exists(), "it should stop before the work"
    (served,) = load(recipe).evaluate.served
    assert any("BIG_KEY is not set" in problem for problem in served_problems(served))
    monkeypatch.setenv("BIG_KEY", "very-secret")
    assert list(served_problems(served)) == []
    run_stage(open_small(recipe, tmp_path / "run"), ASK)
    assert all(headers["Authorization"] == "Bearer very-secret" for _, _, headers in server.bodies)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
    # What was answered needs no key any more.
    monkeypatch.delenv("BIG_KEY")
    run_stage(open_small(recipe, tmp_path / "run"), ASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('model = "big"', 'model = ""'), "model: .* at least 1 character"),
        (("urls = [", "#"), "missing key 'urls'"),
        (('"big-1.0"', '"base"'), "'base' is the name of a model of this run"),
        (('"big-1.0"', '"../x"'), "name"),
        (("http://", "http://me:word@"), "must hold no password"),
        (("retries = 0", 'serve = "transformers"'), "unknown key 'serve'"),
    ],
)
def test_bad_tables(tmp_path: Path, tiny_folder: Path, change: tuple[str, str], message: str) -> None:
    recipe = recipe_with(tmp_path, tiny_folder, "http://127.0.0.1:9/v1")
    recipe.write_text(recipe.read_text().replace(*change))
    with pytest.raises(RecipeError, match=message):
        load(recipe)
    recipe.write_text(recipe_with(tmp_path, tiny_folder, "http://127.0.0.1:9/v1").read_text() + SERVED.format(url="http://h/v1", more=""))
    with pytest.raises(RecipeError, match="two served models have the same name"):
        load(recipe)


# --- real servers --------------------------------------------------------------------------------------------------------


DIGITS = """
seed = 3
[source]
kind = "digits"
pool = "preference"
count = 8
[model]
device = "cpu"
[prompt]
cot = "brief"
[sample]
engine = "openai"
n = 3
max_new_tokens = 40
[sample.server]
serve = "transformers"
in_flight = 2
[train]
baselines = ["sft"]
learning_rate = 3e-3
batch_size = 8
max_length = 200
[evaluate]
modes = ["cot"]
max_new_tokens = 24
[[evaluate.sets]]
name = "held-out"
source = { kind = "digits", pool = "validation", count = 4 }
"""


@pytest.mark.slow
def test_each_model_is_served_in_turn(tmp_path: Path) -> None:
    """Start, SFT and MPO by `transformers serve`, each with its own weights: greedy answers are those of the same weights here."""
    pytest.importorskip("fastapi")
    (tmp_path / "recipe.toml").write_text(DIGITS)
    context = open_small(tmp_path / "recipe.toml", tmp_path / "run")
    run_recipe(context)
    bundled = find_model(ModelTable(), Path())
    folders = {"base": bundled} | {name: (tmp_path / "run" / "models" / name).resolve() for name in ("sft", "mpo")}
    started = [line.split(" serve ")[1].split(" ")[0] for line in said(context) if line.startswith("starting a server: ")]
    # Once for sampling, once for evaluation (training needed the memory in between), once for each trained model.
    assert [Path(model).resolve() for model in started] == [bundled, *folders.values()]
    questions = list(context.run.stage("evaluate/held-out/source").read_all(Question))
    written = {}
    for name, folder in folders.items():
        rows = list(context.run.stage(f"answer/held-out/{name}/cot").read_all(Sampled))
        assert {response.engine for row in rows for response in row.responses} == {"openai"}
        written[name] = [row.responses[0].text for row in rows]
        engine = create("transformers", vlm=load_model(ModelTable(path=str(folder), device="cpu"), Path()))
        asking = [greedily(context.recipe, question, "cot") for question in questions]
        here = engine.sample(asking, SamplingParams(temperature=0.0, max_new_tokens=24))
        assert written[name] == [row.responses[0].text for row in here]
    assert len({tuple(texts) for texts in written.values()}) == 3, "the models answer alike, so this test would show little"


def greedily(recipe: Any, question: Question, mode: str) -> Request:
    prompt = prompt_for(recipe, question, mode)
    return Request(key=question.id, prompt=prompt, images=question.images, seeds=(0,), indices=(0,))


@pytest.mark.slow
def test_a_real_server_as_another_row(tmp_path: Path, tiny_folder: Path) -> None:
    """The bundled model behind `transformers serve`, in a run whose own model is another one."""
    pytest.importorskip("fastapi")
    bundled = find_model(ModelTable(path="mixpo:tiny"), Path())
    started = start(ServerTable(serve="transformers"), bundled, "cpu", tmp_path / "server.log", print)
    try:
        recipe = recipe_with(tmp_path, tiny_folder, started.url)
        text = recipe.read_text().replace('model = "big"', f'model = "{bundled}"')
        recipe.write_text(text)
        context = open_small(recipe, tmp_path / "run", 'evaluate.modes=["direct"]')
        run_stage(context, ASK)
    finally:
        started.close()
    rows = list(context.run.stage("answer/held-out/big-1.0/direct").read_all(Sampled))
    vlm = load_model(ModelTable(path="mixpo:tiny", device="cpu"), Path())
    questions = context.run.stage("evaluate/held-out/source").read_all(Question)
    asking = [greedily(context.recipe, question, "direct") for question in questions]
    here = list(create("transformers", vlm=vlm).sample(asking, SamplingParams(temperature=0.0, max_new_tokens=32)))
    assert [row.responses[0].text for row in rows] == [row.responses[0].text for row in here]
    facts = manifest(tmp_path / "run", "answer/held-out/big-1.0/direct")["facts"]
    assert facts["server"]["images"] == "yes"
