"""Sampling and continuing in a run whose answers come from a server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_run import make, open_small, said

pytest.importorskip("aiohttp")

from stub_server import StubServer, on, status

from mixpo.commands.check import engine_problems
from mixpo.engines.openai.server import ServerProcess
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError, ModelError, RecipeError
from mixpo.pipeline import run_stage
from mixpo.recipe import ImageTable, ModelTable, load
from mixpo.records import Sampled
from mixpo.stages.engine import engine_of
from mixpo.stages.models import ModelRef, Models
from mixpo.vlm.load import Vlm


@pytest.fixture
def server(tiny_vlm: Vlm) -> Iterator[StubServer]:
    with StubServer(TokenCodec(tiny_vlm)) as stub:
        yield stub


def overrides(url: str) -> tuple[str, ...]:
    return ('sample.engine="openai"', f'sample.server.urls=["{url}"]', "sample.server.retries=0", "max_error_rate=0.2")


def test_answers_and_continuations_come_from_the_server(tmp_path: Path, tiny_folder: Path, server: StubServer) -> None:
    recipe = make(tmp_path, tiny_folder)
    server.fault = on("number 12", status(400))
    context = open_small(recipe, tmp_path / "run", *overrides(server.url))
    plan = run_stage(context, ("sample", "continue"))
    rows = [row for shard in range(len(plan.shards("round-1/sample"))) for row in plan.rows("round-1/sample", shard)]
    assert [bool(row.error) for row in rows] == [number == 12 for number in range(11, 21)]
    assert all(len(row.responses) == 4 and row.responses[0].engine == "openai" for row in rows if not row.error)
    continued = [
        row for shard in range(len(plan.shards("round-1/sample"))) for row in plan.rows("round-1/continue", shard) if row.responses
    ]
    assert continued
    first = {row.question: row for row in rows}
    for row in continued:
        assert isinstance(row, Sampled)
        for response in row.responses:
            whole = next(r for r in first[row.question].responses if r.index == response.index)
            assert response.token_ids[: response.prefix_len] == whole.token_ids[: response.prefix_len]
    manifest = json.loads((tmp_path / "run/round-1/sample/manifest.json").read_text())
    assert manifest["facts"]["server"]["images"] == "yes"
    assert manifest["facts"]["counts"]["failed questions"] == 1
    assert any(line.startswith("server: answers per request: 4") for line in said(context))
    assert not any("secret" in json.dumps(body) for _, body, _ in server.bodies)
    # Another address of the same model changes nothing.
    again = run_stage(open_small(recipe, tmp_path / "run", *overrides("http://127.0.0.1:9/v1")), ("sample", "continue"))
    assert all(planned.finished() for planned in again.planned.values() if planned.job.kind in ("sample", "continue"))


def test_evaluation_and_trained_models_stay_in_this_process(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = load(make(tmp_path, tiny_folder), overrides("http://127.0.0.1:9/v1"))
    start, trained = ModelRef(name="base", identity="x"), ModelRef(name="mpo", identity="y", folder=tmp_path)
    assert [engine_of(recipe, start, "sample"), engine_of(recipe, start, "answer")] == ["openai", "transformers"]
    assert engine_of(recipe, trained, "sample") == "transformers"
    own = load(tmp_path / "recipe.toml", ('sample.engine="openai"', 'sample.server.serve="transformers"'))
    assert engine_of(own, trained, "answer") == "openai"


def test_a_server_that_does_not_start_is_said_with_its_last_words(tmp_path: Path, tiny_folder: Path) -> None:
    code = "import sys; sys.exit('no such GPU')"
    command = json.dumps([sys.executable, "-c", code, "{model}", "{port}"])
    context = open_small(make(tmp_path, tiny_folder), tmp_path / "run", 'sample.engine="openai"', f"sample.server.start={command}")
    with pytest.raises(EngineError, match=r"ended with status 1.*server\.log says: no such GPU"):
        run_stage(context, ("sample",))
    assert any(line.startswith("starting a server: ") and str(tiny_folder) in line for line in said(context))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-program", "{port}"], r"sample\.server\.start: no program 'no-such-program' can be run here"),
        (["sleep 100 {port}"], "each item is one argument"),
        (
            [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(600)", "{port}"],
            r"refused\), after .*log says: loading",
        ),
    ],
)
def test_a_server_that_never_answers_is_said(
    tmp_path: Path, tiny_folder: Path, command: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ServerProcess.output

    def output(process: ServerProcess) -> str:
        while not (process.log.exists() and process.log.read_text()):  # on a busy machine it starts late
            time.sleep(0.01)
        return real(process)

    monkeypatch.setattr(ServerProcess, "output", output)
    settings = ('sample.engine="openai"', f"sample.server.start={json.dumps(command)}", "sample.server.patience_s=2")
    with pytest.raises(EngineError, match=message):
        run_stage(open_small(make(tmp_path, tiny_folder), tmp_path / "run", *settings), ("sample",))


def test_a_model_with_an_adapter_is_not_served_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.stages.models.find_adapter", lambda table, base: tmp_path)
    models = Models(ModelTable(path="mixpo:tiny"), tmp_path, ImageTable())
    with pytest.raises(ModelError, match=r"model\.adapter.*merge"):
        models.folder(ModelRef(name="base", identity="x"))
    assert models.folder(ModelRef(name="mpo", identity="y", folder=tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("sample.engine=openai",), "needs a server"),
        (('sample.server.urls=["10.0.0.1:8000"]',), "is no address"),
        (('sample.server.urls=["http://me:word@host/v1"]',), "must hold no password"),
        (('sample.server.start=["serve"]',), "start must hold {port}"),
        (('sample.server.start=["serve", "{port}"]', "sample.server.serve=transformers"), "give only one of"),
        (('sample.stop=[""]',), "cannot be empty"),
        (('sample.stop=["a","b","c","d","e"]',), "at most 4"),
    ],
)
def test_bad_tables(tmp_path: Path, tiny_folder: Path, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(make(tmp_path, tiny_folder), settings)


def test_check_names_servers_and_keys(tmp_path: Path, tiny_folder: Path, server: StubServer, monkeypatch: Any) -> None:
    recipe = make(tmp_path, tiny_folder)
    monkeypatch.delenv("NO_KEY", raising=False)
    good = load(recipe, overrides(server.url))
    bad = load(recipe, (*overrides("http://127.0.0.1:9/v1"), "sample.server.api_key_env=NO_KEY"))
    assert list(engine_problems(good)) == []
    assert [problem.split(" ")[0] for problem in engine_problems(bad)] == ["sample.server.api_key_env:", "http://127.0.0.1:9/v1"]
    assert list(engine_problems(load(recipe))) == []
    own = load(recipe, ("sample.engine=openai", 'sample.server.start=["no-such-program", "{port}"]'))
    assert [problem.partition(";")[0] for problem in engine_problems(own)] == [
        "sample.server.start: no program 'no-such-program' can be run here"
    ]
