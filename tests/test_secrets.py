"""No secret that mixpo was given is shown or stored, wherever a server, the Hub or another program repeats it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_run

pytest.importorskip("aiohttp")

from aiohttp import web
from stub_server import StubServer, text_of

from mixpo.cli import main
from mixpo.engines import Request, SamplingParams
from mixpo.engines.openai import server as server_module
from mixpo.engines.openai.client import Limits
from mixpo.engines.openai.engine import OpenAIEngine, unavailable_servers
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError, EvaluateError, RecipeError, RunError
from mixpo.evaluate.judge import Judge
from mixpo.export.push import Upload, push
from mixpo.masking import MASKED, masked, masked_reply
from mixpo.recipe import JudgeTable, ServerTable
from mixpo.train.session import _flat
from mixpo.vlm.load import Vlm

KEY = "k3y/with+odd:signs-4711"
"""Neither its variable nor its form tells that it is a secret."""
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
HIDDEN = "hub-or-wandb-secret-0815"
FORMS = (KEY, ESCAPED, KEY.replace("/", "%2F").replace("+", "%2B").replace(":", "%3A"), KEY.replace("/", "\\/"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER", KEY)
    monkeypatch.setenv("WANDB_API_KEY", HIDDEN)


def stored(folder: Path) -> str:
    """All text below a folder, Parquet files decoded."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            parts.append(repr(pq.read_table(path).to_pylist()))
        elif path.is_file() and path.suffix not in (".png", ".safetensors", ".sqlite"):
            parts.append(path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(parts)


def assert_hidden(text: str) -> None:
    for form in (*FORMS, HIDDEN):
        assert form not in text, text[max(0, text.find(form) - 200) : text.find(form) + 60]


# --- the masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, HIDDEN])
def test_a_secret_is_masked_in_every_form(form: str) -> None:
    body = json.dumps({"choices": [{"text": "HERE"}]}).replace("HERE", form).encode()
    assert MASKED in masked(json.loads(f'"{form}"'), KEY)
    assert_hidden(json.dumps(masked_reply(body, json.loads(body), KEY)))


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer abc.def", "http://me:pass@host/v1", "hf_" + "a" * 30, "sk-" + "b" * 30],
)
def test_what_has_the_form_of_a_secret_is_masked_in_messages(text: str) -> None:
    secret = text.partition("Bearer ")[2] or text.partition("//")[2].partition("@")[0] or text
    assert secret not in str(RunError(f"the server says {text}", code="x"))


def test_ordinary_text_and_short_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_API_KEY", "EMPTY")
    for text in ("http://127.0.0.1:8000/v1", "The set is EMPTY.", "bearer of news", "see a:b@c", "12:30"):
        assert masked(text) == text
    content = b'{"text": "The set is EMPTY, see http://a:b@c"}'
    assert masked_reply(content, json.loads(content), "EMPTY") == json.loads(content)


# --- sample -----------------------------------------------------------------------------------------------------------------


def echoes(server: StubServer, request: web.Request, body: dict[str, Any], _: int) -> Any:
    """Repeats the key in another place for each question."""
    asked, key = text_of(body), request.headers["Authorization"].removeprefix("Bearer ")
    if body["max_tokens"] != 64:  # the probe
        return None
    if "number 11" in asked:
        return web.json_response({"error": {"message": f"bad request by {key}, {HIDDEN}"}}, status=400)
    if "number 12" in asked:
        return web.Response(text=f'{{"error": "{ESCAPED}"}}', status=400, content_type="application/json")
    if "number 13" in asked:
        return web.json_response({"error": key})
    if "number 14" in asked:
        return web.Response(text=f"<html>{key}", content_type=f"text/x-{'k3y'}")
    reply = server.reply(body)
    reply["model"] = key
    for choice in reply["choices"]:
        if "number 15" in asked:
            choice["message"]["content"] += f" Your key is {key} and {HIDDEN}"
        if "number 16" in asked:
            choice["finish_reason"] = key
    return web.json_response(reply)


def test_sampling_stores_and_shows_none(tmp_path: Path, tiny_folder: Path, tiny_vlm: Vlm, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    with StubServer(TokenCodec(tiny_vlm), echoes) as server:
        settings = [
            'sample.engine="openai"', f'sample.server.urls=["{server.url}"]', 'sample.server.api_key_env="MY_SERVER"',
            "sample.server.retries=0", "max_error_rate=0.9", "pairs.dropout_ntp=false",
        ]  # fmt: skip
        options = [part for setting in settings for part in ("--set", setting)]
        assert main(["sample", str(recipe), "--dir", str(tmp_path / "run"), *options]) == 0
        assert any(headers.get("Authorization") == f"Bearer {KEY}" for _, _, headers in server.bodies)
    text, shown = stored(tmp_path / "run"), "".join(capfd.readouterr())
    assert_hidden(text + shown)
    assert text.count(MASKED) >= 6


@pytest.mark.parametrize("where", ["refusal", "redirect", "list of models"])
def test_errors_of_a_server_that_repeats_its_key(where: str, tiny_vlm: Vlm, capsys: pytest.CaptureFixture[str]) -> None:
    class Echo(StubServer):
        async def _models(self, request: web.Request) -> web.Response:
            key = request.headers["Authorization"]
            return {
                "list of models": lambda: web.json_response({"data": [{"id": key}, {"id": "b"}]}),
                "redirect": lambda: web.Response(status=307, headers={"Location": f"http://elsewhere/{key}"}),
            }.get(where, lambda: web.json_response({"data": [{"id": "stub"}]}))()

        async def _health(self, _: web.Request) -> web.Response:
            return web.Response(status=404)

    def refuse(_server: StubServer, request: web.Request, _body: dict[str, Any], _before: int) -> web.Response:
        return web.json_response({"error": {"message": f"Incorrect API key provided: {request.headers['Authorization']}"}}, status=401)

    request = Request(key="a", prompt="b", images=(), seeds=(1,), indices=(0,))
    with Echo(TokenCodec(tiny_vlm), refuse) as server:
        engine = OpenAIEngine([server.url], key=KEY, limits=Limits(timeout_s=60, retries=0, patience_s=60), codec=server.codec)
        try:
            with pytest.raises(EngineError) as caught:
                list(engine.sample([request], SamplingParams(temperature=1.0, max_new_tokens=24)))
        finally:
            engine.close()
        assert_hidden(str(caught.value) + "".join(unavailable_servers([server.url], "sample.server", KEY)))
        assert MASKED in str(caught.value)


# --- judge and score --------------------------------------------------------------------------------------------------------


def judged(tmp_path: Path, act: Callable[[web.Request], web.Response]) -> Iterator[Any]:
    with StubServer(None, lambda _server, request, _body, _before: act(request)) as server:
        table = JudgeTable(urls=[server.url], model="judge", api_key_env="MY_SERVER", retries=0, patience_s=60, attempts=1)
        judge = Judge(table, tmp_path / "judge")
        try:
            yield judge
        finally:
            judge.close()


RUBRIC = SimpleNamespace(prompt="{question} {answer}", system="")


def test_a_judge_that_repeats_its_key_in_its_reply(tmp_path: Path) -> None:
    def act(request: web.Request) -> web.Response:
        key = request.headers["Authorization"]
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": f"0.5, by the holder of {key}"}}
        return web.json_response({"model": f"judge of {key}", "choices": [choice]})

    for judge in judged(tmp_path, act):
        reply = judge.ask(RUBRIC, {"question": "a", "answer": "b"}, lambda text: text or None)
        assert_hidden(repr(reply) + stored(tmp_path))
        assert MASKED in reply.reply
        assert MASKED in reply.judge


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_judge_that_repeats_its_key_in_an_error(tmp_path: Path, status: int) -> None:
    body = lambda request: {"error": {"message": f"insufficient_quota of {request.headers['Authorization']} {HIDDEN}"}}  # noqa: E731
    for judge in judged(tmp_path, lambda request: web.json_response(body(request), status=status)):
        with pytest.raises(EvaluateError) as caught:
            judge.ask(RUBRIC, {"question": "a", "answer": "b"}, lambda text: text or None)
        assert_hidden(str(caught.value) + stored(tmp_path))
        assert MASKED in str(caught.value)


# --- servers, trackers, the Hub ---------------------------------------------------------------------------------------------


def test_the_log_of_a_server(tmp_path: Path) -> None:
    code = f"import os, sys; print('key', os.environ['MY_SERVER'], flush=True); sys.stderr.write('{HIDDEN}'); sys.exit('no GPU')"
    process = server_module.ServerProcess([sys.executable, "-c", code], "http://127.0.0.1:9/v1", tmp_path / "server.log", KEY)
    end = time.monotonic() + 60
    while process._process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(EngineError, match="no GPU") as caught:
        process.check()
    assert_hidden(str(caught.value) + stored(tmp_path))
    assert stored(tmp_path).count(MASKED) == 2


@pytest.mark.parametrize("argument", ["--api-key", "--api_key=abc", "--hf-token", "-password", "--vllm-api-key=x"])
def test_a_server_is_started_without_a_key_in_its_arguments(argument: str) -> None:
    with pytest.raises(ValueError, match="start must hold no key"):
        ServerTable(start=["server", argument, "abc", "{port}"])
    ServerTable(start=["server", "--max-num-batched-tokens", "5", "--tokenizer", "x", "{port}"])


def test_the_settings_that_trackers_get() -> None:
    assert_hidden(json.dumps(_flat({"a": {"b": f"with {HIDDEN}", "c": [HIDDEN]}, "d": 1})))


def test_a_hub_that_repeats_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("stored-by-hf-login\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(f"401 for Bearer {KEY}, {HIDDEN}, stored-by-hf-login\nmore")

    upload = Upload(repository="org/model", folder=tmp_path, files=(), card="")
    with pytest.raises(RunError) as caught:
        push(upload, private=True, api=SimpleNamespace(token=KEY, create_repo=refuse))
    assert_hidden(str(caught.value))
    assert "stored-by-hf-login" not in str(caught.value)


def test_the_traceback_of_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    from mixpo.__main__ import _print_traceback

    _print_traceback(ValueError, ValueError(f"a bug with {HIDDEN}"), None)
    error = capsys.readouterr().err
    assert_hidden(error)
    assert "ValueError: a bug with" in error


def test_a_recipe_error_shows_no_password() -> None:
    assert "word" not in str(RecipeError("http://user:word@host is no address", code="x"))
