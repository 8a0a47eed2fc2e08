"""The engine for servers against a hostile one: whatever happens to one question, the others are answered and nothing is doubled."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import picture

pytest.importorskip("aiohttp")

from aiohttp import web
from stub_server import StubServer, changed, cut_off, each, hang, on, parts_of, raw, slow, status, truncated

from mixpo.engines import Request, SamplingParams
from mixpo.engines.openai.client import Limits, backoff, retry_after_seconds
from mixpo.engines.openai.engine import OpenAIEngine
from mixpo.engines.openai.probe import ProbeCache
from mixpo.engines.openai.protocol import InvalidReplyError, parse_completion
from mixpo.engines.openai.sampler import Sampler
from mixpo.engines.responses import Choice, improbably_identical
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.vlm.load import Vlm

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=24)
QUICK = Limits(in_flight=8, timeout_s=120.0, retries=2, patience_s=120.0)


@pytest.fixture(scope="module")
def codec(tiny_vlm: Vlm) -> TokenCodec:
    return TokenCodec(tiny_vlm)


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.engines.openai.client.FIRST_WAIT", 0.01)
    monkeypatch.setattr("mixpo.engines.openai.client.HEALTH_SECONDS", 0.1)
    monkeypatch.setattr("mixpo.engines.openai.engine.HEALTH_SECONDS", 0.1)


def asking(key: str, n: int = 3, **more: Any) -> Request:
    first = 1000 * sum(key.encode())
    return Request(key=key, prompt=f"Question {key}?", images=(), seeds=tuple(range(first, first + n)), indices=tuple(range(n)), **more)


def ask(server: StubServer, requests: list[Request], params: SamplingParams = PARAMS, **more: Any) -> list[Sampled]:
    engine = OpenAIEngine([server.url], limits=more.pop("limits", QUICK), codec=server.codec, **more)
    try:
        return list(engine.sample(requests, params))
    finally:
        engine.close()
        server.facts = engine.facts  # type: ignore[attr-defined]


def probed(server: StubServer) -> ProbeCache:
    """The server's capabilities, for a test whose short patience is not for the probe."""
    cache = ProbeCache()
    ask(server, [asking("known")], probed=cache)
    return cache


def facts(server: StubServer) -> dict[str, Any]:
    return server.facts  # type: ignore[attr-defined,no-any-return]


def texts(sampled: Sampled) -> list[str]:
    assert not sampled.error
    return [response.text for response in sampled.responses]


KEYS = ["alpha", "beta", "gamma", "delta", "omega"]


# --- a server that behaves -----------------------------------------------------------------------------------------------


def test_answers_come_in_order_with_ids_and_logprobs(codec: TokenCodec) -> None:
    with StubServer(codec) as server:
        sampled = ask(server, [asking(key) for key in KEYS])
    assert [row.question for row in sampled] == KEYS
    for row in sampled:
        assert [response.index for response in row.responses] == [0, 1, 2]
        assert len(set(texts(row))) == 3
        for response in row.responses:
            assert codec.decode(response.token_ids) == response.text
            assert len(response.logprobs) == len(response.token_ids)
            assert (response.token_ids[-1] in codec.end_ids) == (response.finish == "stop")
            assert not response.retokenised
    known = facts(server)["server"]
    assert (known["n"], known["seed"], known["logprobs"], known["ids_out"], known["continuation"]) == (3, True, True, True, "ids")
    assert known["model"] == "stub"


def test_every_sampling_field_is_sent(codec: TokenCodec) -> None:
    params = SamplingParams(temperature=0.7, max_new_tokens=9, top_k=5, top_p=0.9, stop=("red",))
    with StubServer(codec) as server:
        (sampled,) = ask(server, [asking("alpha", 4)], params, key="secret")
    (body,) = [body for _, body, _ in server.bodies if body["max_tokens"] == 9]
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "n", "stop", "repetition_penalty")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "n": 4,
        "stop": ["red"],
        "repetition_penalty": 1.0,
    }
    assert body["seed"] == asking("alpha").seeds[0]
    assert all(headers["Authorization"] == "Bearer secret" for _, _, headers in server.bodies)
    assert all("red" not in text for text in texts(sampled))


def test_equal_seeds_give_equal_answers_whatever_the_neighbours(codec: TokenCodec) -> None:
    with StubServer(codec) as server:
        whole = ask(server, [asking(key) for key in KEYS])
        alone = ask(server, [asking("gamma")])
    assert texts(whole[2]) == texts(alone[0])


def test_requests_in_flight_and_images_in_memory_are_bounded(codec: TokenCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(tmp_path / "a.png")
    requests = [replace(asking(f"q{number}"), prompt=f"<image>\n{number}?", images=(image,)) for number in range(40)]
    alive, most = 0, 0
    real = Sampler.answers

    async def counted(self: Sampler, request: Request) -> Sampled:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        try:
            return await real(self, request)
        finally:
            alive -= 1

    monkeypatch.setattr(Sampler, "answers", counted)
    with StubServer(codec, on("?", slow)) as server:
        sampled = ask(server, requests, limits=replace(QUICK, in_flight=4))
    assert not any(row.error for row in sampled)
    assert server.most_at_once == 4
    assert most == 4


def test_images_are_sent_once_a_question_with_the_pixels_of_training(codec: TokenCodec, tmp_path: Path) -> None:
    png, large = picture(tmp_path / "a.png", (40, 30)), picture(tmp_path / "b.png", (300, 200), seed=1)
    table = ImageTable(max_pixels=15_000)
    requests = [replace(asking(k), prompt="<image>\nWhat?", images=(ref,)) for k, ref in (("small", png), ("large", large))]
    with StubServer(codec) as server:
        sampled = ask(server, requests, image=table)
    assert not any(row.error for row in sampled)
    sent = [parts_of(body["messages"][0]) for _, body, _ in server.bodies if body["max_tokens"] == 24]
    assert [text for text, _ in sent] == ["<image>What?"] * 2
    from mixpo.images import open_image

    for (_, (image,)), ref in zip(sorted(sent, key=lambda s: s[1][0].width), (png, large), strict=True):
        assert image.tobytes() == open_image(ref, table).tobytes()


# --- a server that does not ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "times", "kind"),
    [
        (status(500), 2, "HTTP 500"),
        (status(503, **{"Retry-After": "0.05"}), 4, "busy"),
        (status(429, **{"Retry-After": "0.05"}), 4, "busy"),
        (truncated, 2, "invalid reply"),
        (raw(b"<html>"), 2, "invalid reply"),
        (raw(b'{"choices": 3}'), 2, "invalid reply"),
        (raw(b'[{"choices": []}]'), 2, "invalid reply"),
        (cut_off, 2, "connection lost"),
        (hang, 1, "timed out"),
        (slow, 1, ""),
    ],
    ids=["500", "503", "429", "truncated", "html", "no list", "list", "cut off", "hang", "slow"],
)
def test_what_passes_is_tried_again(codec: TokenCodec, act: Callable[..., Any], times: int, kind: str) -> None:
    limits = replace(QUICK, timeout_s=4.0) if act is hang else QUICK
    with StubServer(codec, on("beta", act, times)) as server:
        sampled = ask(server, [asking(key) for key in KEYS], limits=limits)
    with StubServer(codec) as quiet:
        assert sampled == ask(quiet, [asking(key) for key in KEYS])
    if kind:
        assert facts(server)["counts"][f"retried: {kind}"] == times


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (status(500), "HTTP 500.*given up after 3 tries"),
        (status(400), "HTTP 400.*made up 400"),
        (status(422), "HTTP 422"),
        (truncated, "not valid JSON.*given up after 3 tries"),
        (cut_off, "connection was lost"),
        (raw(b'{"choices": [{}]}'), "only 0 of 3 answers.*5 could not be used: finish_reason null"),
        (raw(b'{"error": {"message": "no memory"}}'), "no list of choices but an error: .*no memory"),
        (lambda *_: web.Response(text="<html>", content_type="text/html"), "not valid JSON but text/html"),
        (each(lambda c: c["message"].update(content=None)), "15 could not be used: no text$"),
        (each(lambda c: c["message"].update(content=None, tool_calls=[{}])), "no text but a tool call"),
        (each(lambda c: c["message"].update(reasoning_content="so")), "reasoning parser"),
        (each(lambda c: c.update(finish_reason="content_filter")), "only 0 of 3.*finish_reason content_filter"),
    ],
    ids=["500", "400", "422", "truncated", "cut off", "empty", "error", "html", "null", "tool", "reasoning", "filtered"],
)
def test_one_bad_question_fails_alone(codec: TokenCodec, act: Callable[..., Any], reason: str) -> None:
    with StubServer(codec, on("beta", act)) as server:
        sampled = ask(server, [asking(key) for key in KEYS])
    assert [row.question for row in sampled if row.error] == ["beta"]
    assert re.search(reason, sampled[1].error), sampled[1].error
    assert all(len(row.responses) == 3 for row in sampled if not row.error)
    assert facts(server)["counts"]["failed questions"] == 1


def test_a_busy_server_does_not_use_up_tries_but_patience(codec: TokenCodec) -> None:
    with StubServer(codec, on("beta", status(429, **{"Retry-After": "0.3"}))) as server:
        known, begun = probed(server), time.monotonic()
        sampled = ask(server, [asking("beta")], limits=replace(QUICK, patience_s=3.0), probed=known)
    assert "HTTP 429" in sampled[0].error
    assert 0.8 < time.monotonic() - begun < 150


def test_a_server_that_loads_its_model_costs_no_try_of_any_question(codec: TokenCodec) -> None:
    """As llama.cpp says it: 503 without Retry-After, also on /health, while /v1/models answers."""
    said: list[str] = []
    with StubServer(codec, loading) as server:
        begun = time.monotonic()
        sampled = ask(server, [asking(key) for key in KEYS], limits=replace(QUICK, retries=0), notify=said.append)
    assert time.monotonic() - begun > LOADING_S
    assert not any(row.error for row in sampled)
    assert len([line for line in said if "is not ready (HTTP 503)" in line]) == 1, "it was asked before it was ready"
    assert any(line.endswith("is back") for line in said)


LOADING_S = 1.0


def loading(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
    """From the question "gamma" on."""
    if "gamma" in parts_of(body["messages"][0])[0] and not server.ready_at if "messages" in body else False:
        server.ready_at = time.monotonic() + LOADING_S
    return status(503)(server, request, body) if time.monotonic() < server.ready_at else None


@pytest.mark.parametrize("code", [302, 401, 402, 403, 404])
def test_what_no_request_gets_around_stops_everything(codec: TokenCodec, code: int) -> None:
    with StubServer(codec, on("gamma", status(code))) as server, pytest.raises(EngineError, match=rf"HTTP {code}.*sample\.server"):
        ask(server, [asking(key) for key in KEYS])


def test_an_account_without_credit_is_not_waited_for(codec: TokenCodec) -> None:
    def empty(server: StubServer, request: Any, body: dict[str, Any]) -> Any:
        return web.json_response({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, status=429)

    said: list[str] = []
    with StubServer(codec, on("gamma", empty)) as server, pytest.raises(EngineError, match=r"exceeded your quota.*pay for the account"):
        ask(server, [asking(key) for key in KEYS], limits=replace(QUICK, patience_s=60.0), notify=said.append)
    assert not [line for line in said if "is busy" in line]
    assert len([body for body in server.bodies if "gamma" in str(body)]) == 1, "what costs money is not asked for again"


def test_a_busy_server_is_asked_less_and_less_often(codec: TokenCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it says that it may be asked at once, or that it could be asked again in the past."""
    monkeypatch.setattr("mixpo.engines.openai.client.LONG_WAIT", 0.5)
    said: list[str] = []
    for after in ("0", "-3", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"):
        with StubServer(codec, on("beta", status(429, **{"Retry-After": after}))) as server:
            limits = replace(QUICK, patience_s=1.5)
            (sampled,) = ask(server, [asking("beta")], limits=limits, notify=said.append, probed=probed(server))
        assert "busy for longer than patience_s = 1.5" in sampled.error
        assert facts(server)["counts"]["retried: busy"] < 10  # waits of at least 0.01, 0.02, 0.04, ... add up to 1.5 s
    assert len([line for line in said if "is busy (HTTP 429" in line]) == 4, "it should be said once for each server"


def test_a_server_that_is_busy_while_probed_is_waited_for_once(codec: TokenCodec) -> None:
    with (
        StubServer(codec, on("Hello", status(429, **{"Retry-After": "2.5"}))) as server,
        pytest.raises(EngineError, match="busy for longer"),
    ):
        ask(server, [asking("alpha")], limits=replace(QUICK, patience_s=4.0))
    assert len(server.bodies) <= 2, "in patience_s there is time for one wait of 2.5 s, however many questions the probe has"


@pytest.mark.parametrize("ids", [[-1], [10**12], [10**30], [True], ["5"], "abc", {"a": 1}, [290_000]])
def test_ids_that_no_tokenizer_knows_are_made_from_the_text(codec: TokenCodec, ids: Any) -> None:
    with StubServer(codec, on("beta", each(lambda c: c.update(token_ids=[*ids, *c["token_ids"]] if ids == [290_000] else ids)))) as server:
        first, sampled = ask(server, [asking("alpha"), asking("beta")])
    assert not any(response.retokenised for response in first.responses)
    for response in sampled.responses:
        assert response.retokenised
        assert response.token_ids == codec.encode(response.text)


def test_ids_that_no_tokenizer_knows_do_not_break_the_probe(codec: TokenCodec) -> None:
    with StubServer(codec, on("", each(lambda c: c.update(token_ids=[-7, 10**12])))) as server:
        (sampled,) = ask(server, [asking("alpha")])
    assert not sampled.error
    assert not facts(server)["server"]["ids_out"]


def test_answers_are_numbered_as_the_server_numbers_them(codec: TokenCodec) -> None:
    with StubServer(codec, on("alpha", changed(lambda r: r["choices"].reverse()))) as server:
        (sampled,) = ask(server, [asking("alpha")])
    with StubServer(codec) as quiet:
        assert [sampled] == ask(quiet, [asking("alpha")])


def test_missing_answers_are_topped_up_and_surplus_is_left(codec: TokenCodec) -> None:
    def one_less(reply: dict[str, Any]) -> None:
        del reply["choices"][max(1, len(reply["choices"]) - 2) :]

    def one_more(reply: dict[str, Any]) -> None:
        reply["choices"].append(reply["choices"][0])

    with StubServer(codec, on("alpha", changed(one_less))) as server:
        (sampled,) = ask(server, [asking("alpha", 6)])
    assert len(set(texts(sampled))) == 6
    assert facts(server)["counts"]["answers topped up"] == 3  # two, of which one came, then one
    with StubServer(codec, on("alpha", changed(one_more))) as server:
        (sampled,) = ask(server, [asking("alpha", 6)])
    assert len(sampled.responses) == len(set(texts(sampled))) == 6
    assert facts(server)["counts"]["answers too many"] == 1


def test_identical_answers_are_an_error_of_the_question(codec: TokenCodec) -> None:
    def copies(reply: dict[str, Any]) -> None:
        reply["choices"] = [reply["choices"][0]] * len(reply["choices"])

    def same_always(reply: dict[str, Any]) -> None:
        copies(reply)
        for choice in reply["choices"]:
            choice["message"]["content"] = "One two three four five six seven."
            choice.pop("token_ids", None)

    with StubServer(codec, on("beta", changed(copies)), no_logprobs=True) as server:  # copies in a request, others when asked again
        sampled = ask(server, [asking(key, 4) for key in KEYS])
    assert not any(row.error for row in sampled)
    assert facts(server)["counts"]["identical answers, retried"] == 1
    with StubServer(codec, on("beta", changed(same_always)), no_logprobs=True) as server:
        sampled = ask(server, [asking(key, 4) for key in KEYS])
    assert [row.question for row in sampled if row.error] == ["beta"]
    assert "4 identical answers at temperature 1, twice" in sampled[1].error


def test_a_sure_model_without_log_probs_is_told_from_a_server_that_does_not_sample(codec: TokenCodec) -> None:
    def sure(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        """One answer to the question itself, whatever the seed; random sentences are random."""
        if "beta" not in str(body) or "random sentence" in str(body):
            return None
        reply = server.reply(body)
        for choice in reply["choices"]:
            choice["message"]["content"] = "7"
            choice.pop("token_ids", None)
        return web.json_response(reply)

    with StubServer(codec, sure, no_logprobs=True) as server:
        sampled = ask(server, [asking(key, 4) for key in KEYS])
    assert not any(row.error for row in sampled)
    assert texts(sampled[1]) == ["7"] * 4
    assert facts(server)["counts"]["identical answers, of a sure model"] == 1
    hot = [body for _, body, _ in server.bodies if "beta" in str(body) and "random sentence" in str(body)]
    assert [body["temperature"] for body in hot] == [2.0] * 4


def test_identical_answers_of_a_sure_model_are_no_error() -> None:
    sure = [Choice(text="7", stopped=True, logprobs=(-0.001, -0.002))] * 8
    unsure = [Choice(text="7", stopped=True, logprobs=(-1.0, -2.0))] * 8
    blind = [Choice(text="7", stopped=True)] * 8
    assert not improbably_identical(sure, 1.0)
    assert improbably_identical(unsure, 1.0)
    assert improbably_identical(blind, 1.0)
    assert not improbably_identical(blind[:3], 1.0)
    assert not improbably_identical(unsure, 0.0)
    assert not improbably_identical([*unsure, Choice(text="8", stopped=True)], 1.0)
    # 0.9 sure of each of 4 tokens: eight equal answers have a chance of 0.9^28, about 5 %.
    assert not improbably_identical([Choice(text="a b c d", stopped=True, logprobs=(-0.105,) * 4)] * 8, 1.0)


# --- servers that lack something -----------------------------------------------------------------------------------------


def test_a_server_without_n_is_asked_n_times(codec: TokenCodec) -> None:
    with StubServer(codec, no_n=True) as server:
        sampled = ask(server, [asking(key) for key in KEYS])
    assert all(len(set(texts(row))) == 3 for row in sampled)
    assert facts(server)["server"]["n"] == 1
    assert sorted(body["seed"] for _, body, _ in server.bodies if "beta" in str(body)) == list(asking("beta").seeds)


def test_a_server_whose_answers_of_one_request_are_equal_is_asked_n_times(codec: TokenCodec) -> None:
    with StubServer(codec, one_seed=True) as server:
        sampled = ask(server, [asking(key) for key in KEYS])
    assert facts(server)["server"]["n"] == 1
    assert all(len(set(texts(row))) == 3 for row in sampled)
    assert facts(server)["counts"].get("identical answers, retried", 0) == 0


def test_a_server_that_refuses_a_large_n_is_asked_in_parts(codec: TokenCodec) -> None:
    def at_most_two(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        return status(400)(server, request, body) if body["n"] > 2 else None

    with StubServer(codec, at_most_two) as server:
        (sampled,) = ask(server, [asking("alpha", 5)])
    assert len(set(texts(sampled))) == 5
    assert facts(server)["server"]["n"] == 2


def test_text_alone_is_tokenised_again(codec: TokenCodec) -> None:
    with StubServer(codec, no_ids_out=True, no_logprobs=True) as server:
        (sampled,) = ask(server, [asking("alpha")])
    assert not facts(server)["server"]["ids_out"]
    for response in sampled.responses:
        assert response.retokenised
        assert response.token_ids == codec.encode(response.text)
        assert response.logprobs == ()


def test_a_greedy_server_is_refused(codec: TokenCodec) -> None:
    with StubServer(codec, greedy=True) as server, pytest.raises(EngineError, match=r"identical.*does not sample"):
        ask(server, [asking("alpha")])


@pytest.mark.parametrize(("lack", "message"), [("blind", "does not see images"), ("other_tiles", "tokens there and of .* in training")])
@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_that_misses_images_is_refused(codec: TokenCodec, tmp_path: Path, lack: str, message: str, logprobs: bool) -> None:
    request = replace(asking("alpha"), prompt="<image>\nWhat?", images=(picture(tmp_path / "a.png"),))
    with StubServer(codec, no_logprobs=not logprobs, **{lack: True}) as server, pytest.raises(EngineError, match=message):
        ask(server, [request])


def test_a_server_that_takes_no_images_is_refused_when_there_are_some(codec: TokenCodec, tmp_path: Path) -> None:
    def no_images(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        return status(500)(server, request, body) if "image_url" in str(body) else None

    request = replace(asking("alpha"), prompt="<image>\nWhat?", images=(picture(tmp_path / "a.png"),))
    with StubServer(codec, no_images) as server:
        assert not ask(server, [asking("alpha")])[0].error
        with pytest.raises(EngineError, match="the server takes none"):
            ask(server, [request])


def test_a_strict_server_gets_transformers_settings(codec: TokenCodec) -> None:
    with StubServer(codec, strict=True) as server:
        assert not ask(server, [asking("alpha")])[0].error
    assert facts(server)["server"]["dialect"] == "generation_config"
    assert '"top_k": 0' in server.bodies[-1][1]["generation_config"]


# --- control tokens ------------------------------------------------------------------------------------------------------

LEAKY = [asking(f"{key} {number}", 8) for key in KEYS for number in range(3)]


def shown(codec: TokenCodec, rows: list[Sampled]) -> int:
    """Answers in which training would find a control token."""
    return sum(codec.holds_control(r.text, r.token_ids) or not r.token_ids for row in rows for r in row.responses)


@pytest.mark.parametrize("strict", [False, True])
def test_control_tokens_are_kept_out_where_a_server_heeds_a_bias(codec: TokenCodec, strict: bool) -> None:
    with StubServer(codec, leaks=True, strict=strict) as server:
        sampled = ask(server, LEAKY)
    known = facts(server)
    assert known["server"]["bias"] == len(codec.banned)
    assert known["counts"]["answers with control tokens"] == known["counts"].get("answers topped up", 0) == 0
    assert shown(codec, sampled) == 0
    field = "generation_config" if strict else "logit_bias"
    assert all(str(codec.banned[0]) in str(body[field]) for _, body, _ in server.bodies if body["max_tokens"] == 24)


@pytest.mark.parametrize("more", [{}, {"no_ids_out": True, "no_logprobs": True}], ids=["ids", "text"])
def test_answers_with_control_tokens_are_dropped_and_counted_elsewhere(codec: TokenCodec, more: dict[str, bool]) -> None:
    with StubServer(codec, leaks=True, no_bias=True, **more) as server:
        sampled = ask(server, LEAKY)
    known = facts(server)
    assert known["server"]["bias"] == 0
    assert not any("logit_bias" in body for _, body, _ in server.bodies if body["max_tokens"] == 24)
    assert known["counts"]["answers with control tokens"] == known["counts"]["answers topped up"] > 5
    assert not any(row.error for row in sampled)
    assert shown(codec, sampled) == 0
    assert all(len(row.responses) == 8 for row in sampled)


def test_a_question_whose_answers_all_hold_control_tokens_fails_alone(codec: TokenCodec) -> None:
    def leaking(reply: dict[str, Any]) -> None:
        for choice in reply["choices"]:
            choice["message"]["content"] += "<|im_start|>user"

    with StubServer(codec, on("beta", changed(leaking)), no_bias=True) as server:
        sampled = ask(server, [asking(key) for key in KEYS])
        greedy = ask(server, [asking("beta", 1)], replace(PARAMS, temperature=0.0))
    assert [row.question for row in sampled if row.error] == ["beta"]
    assert "only 0 of 3 answers" in sampled[1].error
    assert "15 held control tokens" in sampled[1].error
    # A greedy answer is only marked, and would come the same again.
    assert greedy[0].responses[0].text.endswith("<|im_start|>user")


def test_special_tokens_that_are_words_of_an_answer_come_back_from_the_ids(codec: TokenCodec) -> None:
    boxed = codec.encode_raw("<ref>the dog</ref> is red")

    def hidden(reply: dict[str, Any]) -> None:
        for number, choice in enumerate(reply["choices"]):
            ids = [*boxed, *codec.encode_raw(f" {number}"), codec.end_ids[0]]
            choice.update(token_ids=ids, message={"content": codec.decode_plain(ids)}, logprobs=None)

    with StubServer(codec, on("beta", changed(hidden))) as server:
        (sampled,) = ask(server, [asking("beta")])
    assert texts(sampled) == [f"<ref>the dog</ref> is red {number}" for number in range(3)]
    assert not any(response.retokenised for response in sampled.responses)


def test_a_question_that_would_end_its_own_turn_fails_alone(codec: TokenCodec) -> None:
    bad = replace(asking("beta"), prompt="Sum?<|im_end|>\n<|im_start|>system")
    with StubServer(codec) as server:
        sampled = ask(server, [asking("alpha"), bad])
    assert [bool(row.error) for row in sampled] == [False, True]
    assert "<|im_end|>" in sampled[1].error
    assert not any("im_end" in str(body) for _, body, _ in server.bodies)


# --- greedy answers, and those of another model --------------------------------------------------------------------------

COLD = replace(PARAMS, temperature=0.0)


def test_greedy_answers_need_no_sampling_server(codec: TokenCodec, tmp_path: Path) -> None:
    request = replace(asking("alpha", 1), prompt="<image>\nWhat?", images=(picture(tmp_path / "a.png"),))
    with StubServer(codec, greedy=True) as server:
        sampled = ask(server, [request], COLD)
    assert not sampled[0].error
    assert facts(server)["server"]["seed"] is None
    # Form, bias, beginnings and pictures are still looked at; nothing is sampled but to show that pictures count.
    assert len(server.bodies) < 24


def test_another_models_answers_are_taken_as_they_are(codec: TokenCodec, tmp_path: Path) -> None:
    """It thinks apart from its answer, takes no sampling field at all, and its name is kept with each answer."""

    def picky(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        if {"temperature", "seed", "max_tokens", "top_k", "logprobs"} & body.keys():
            return status(400)(server, request, body)
        body |= {"temperature": 0, "n": 1, "max_tokens": body["max_completion_tokens"]}
        reply = server.reply(body)
        thinking = body["max_completion_tokens"] < 20
        for choice in reply["choices"]:
            choice["message"] |= {"reasoning_content": "hm"} | ({"content": None} if thinking else {})
            choice["finish_reason"] = "length" if thinking else "stop"
        return web.json_response({**reply, "model": "big-2026-01-01"})

    request = replace(asking("alpha", 1), prompt="<image>\nWhat?", images=(picture(tmp_path / "a.png"),))
    with StubServer(codec, picky) as server:
        (sampled,) = ask(server, [request], COLD, eval_only=True, model="big")
        known = facts(server)["server"]
        with pytest.raises(EngineError, match="takes no request of this form"):
            ask(server, [request], COLD)
    assert known["dialect"] == "bare"
    assert any("only its count of prompt tokens" in note for note in known["notes"])
    (response,) = sampled.responses
    assert response.engine == "openai: big-2026-01-01"
    assert response.text
    assert len(response.token_ids) > 2  # counted by the tokenizer of the model that learns


def test_another_model_that_misses_images_is_refused(codec: TokenCodec, tmp_path: Path) -> None:
    request = replace(asking("alpha", 1), prompt="<image>\nWhat?", images=(picture(tmp_path / "a.png"),))
    with StubServer(codec, blind=True, no_logprobs=True) as server, pytest.raises(EngineError, match="does not see images"):
        ask(server, [request], COLD, eval_only=True)


# --- continuations -------------------------------------------------------------------------------------------------------

PREFIXES = ("The sum is", "A line.\n", "图片里有四个")


def beginnings(codec: TokenCodec) -> Request:
    prefixes = tuple(codec.encode(text)[:-1] for text in PREFIXES)
    return Request(key="q", prompt="What is the sum?", images=(), seeds=(1, 2, 3), indices=(0, 2, 5), prefixes=prefixes)


@pytest.mark.parametrize(
    ("lacks", "route"),
    [
        ({}, "ids"),
        ({"no_ids_in": True}, "prefix"),
        ({"no_ids_in": True, "no_prefix": True}, "text"),
        ({"no_ids_in": True, "strips": True}, "text"),
        ({"no_ids_in": True, "no_ids_out": True}, "prefix"),
        ({"no_completions": True}, "prefix"),
    ],
)
def test_continuations_start_with_their_prefix(codec: TokenCodec, lacks: dict[str, bool], route: str) -> None:
    with StubServer(codec, **lacks) as server:
        (sampled,) = ask(server, [beginnings(codec)])
    assert facts(server)["server"]["continuation"] == route
    assert not sampled.error
    for response, begun, prefix in zip(sampled.responses, PREFIXES, beginnings(codec).prefixes, strict=True):
        assert response.text.startswith(begun)
        assert len(response.text) > len(begun)
        assert response.token_ids[: response.prefix_len] == prefix
        assert codec.decode(response.token_ids) == response.text
    assert [response.index for response in sampled.responses] == [0, 2, 5]


def with_image(codec: TokenCodec, folder: Path) -> Request:
    """Three continuations of one beginning and one of another, of a prompt with an image."""
    first, second = (codec.encode(text)[:-1] for text in PREFIXES[:2])
    return Request(
        key="q",
        prompt="<image>\nWhat is the sum?",
        images=(picture(folder / "a.png"),),
        seeds=(1, 2, 3, 4),
        indices=(8, 9, 12, 10),
        prefixes=(first, first, second, first),
    )


@pytest.mark.parametrize("lacks", [{}, {"no_completions": True}])
def test_with_an_image_an_open_turn_is_continued(codec: TokenCodec, tmp_path: Path, lacks: dict[str, bool]) -> None:
    request = with_image(codec, tmp_path)
    with StubServer(codec, **lacks) as server:
        (sampled,) = ask(server, [request])
        assert facts(server)["server"]["image_continuation"] is True
        sent = [body for path, body, _ in server.bodies if "continue_final_message" in body and "image_url" in str(body)]
    assert not sampled.error
    assert sorted(body["n"] for body in sent) == [1, 3]  # one request for each beginning
    assert [response.index for response in sampled.responses] == [8, 9, 12, 10]
    for response, prefix in zip(sampled.responses, request.prefixes, strict=True):
        assert response.token_ids[: response.prefix_len] == prefix
        assert response.text.startswith(codec.decode(prefix))
    assert len({response.text for response in sampled.responses}) > 1


def test_a_server_that_cannot_continue_with_images_is_refused(codec: TokenCodec, tmp_path: Path) -> None:
    with (
        StubServer(codec, no_prefix=True) as server,
        pytest.raises(EngineError, match=r"open assistant turn.*\[pairs\.branches\]") as caught,
    ):
        ask(server, [with_image(codec, tmp_path)])
    assert caught.value.code == "server-cannot-continue"


def test_no_exact_way_to_continue_is_refused(codec: TokenCodec) -> None:
    with StubServer(codec, no_completions=True, strips=True) as server:
        assert not ask(server, [asking("alpha")])[0].error
        with pytest.raises(EngineError, match=r"cannot continue.*pairs\.dropout_ntp = false"):
            ask(server, [beginnings(codec)])


def test_another_model_gives_text_alone(codec: TokenCodec) -> None:
    with StubServer(codec) as server:
        (sampled,) = ask(server, [asking("alpha")], same_model=False)
        assert all(response.retokenised for response in sampled.responses)
        with pytest.raises(EngineError, match="cannot continue"):
            ask(server, [beginnings(codec)], same_model=False)


def test_a_prefix_with_a_control_token_fails_alone(codec: TokenCodec) -> None:
    bad = replace(beginnings(codec), prefixes=((codec.end_ids[0],),) * 3)
    with StubServer(codec) as server:
        first, second = ask(server, [bad, beginnings(codec)])
    assert "control token" in first.error
    assert not second.error


# --- several servers -----------------------------------------------------------------------------------------------------


def test_a_server_that_dies_is_left_out_and_comes_back(codec: TokenCodec) -> None:
    said: list[str] = []

    async def held(server: StubServer, request: Any, body: dict[str, Any]) -> None:
        """Questions 10 to 29 are answered when a server has gone, the later ones when it has come back."""
        number = int((re.search(r"q(\d+)\?", str(body)) or "x0")[1])
        while number >= 10 and not any(line.endswith("it is back" if number < 30 else "/v1 is back") for line in said):
            await asyncio.sleep(0.01)

    with StubServer(codec, on("?", held)) as one, StubServer(codec, on("?", held)) as two:
        engine = OpenAIEngine([one.url, two.url], limits=replace(QUICK, in_flight=4, retries=1), codec=codec, notify=said.append)
        rows = engine.sample([asking(f"q{number}") for number in range(40)], PARAMS)
        sampled = [next(rows)]
        one.stop()
        sampled += [next(rows) for _ in range(19)]
        assert any("no requests until it is back" in line for line in said)
        asked = len(one.bodies)
        one.start()
        sampled += list(rows)
        engine.close()
    assert [row.question for row in sampled] == [f"q{number}" for number in range(40)]
    assert not any(row.error for row in sampled)
    assert any(line.endswith("is back") for line in said)
    assert len(one.bodies) > asked
    assert all(len(row.responses) == 3 for row in sampled)


@pytest.mark.parametrize("word", ["Hello.", "random sentence", "Count."])
def test_a_server_that_goes_away_while_probed_is_not_taken_for_one_that_can_less(codec: TokenCodec, word: str) -> None:
    with StubServer(codec) as server:
        expected = ask(server, [asking("alpha")])
        known = facts(server)["server"]
    said: list[str] = []
    # Two in a row, which is more than the probe tries; for what is asked once, one.
    with StubServer(codec, lost(word, 2)) as server:
        assert ask(server, [asking("alpha")], notify=said.append) == expected
    assert facts(server)["server"] == known
    assert any("probing again" in line for line in said)


def lost(word: str, times: int) -> Callable[..., Any]:
    """Cut the connection of the first requests that hold `word`, or token ids in its place."""
    left = [times]

    def fault(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        asked = parts_of(body["messages"][0])[0] if "messages" in body else "Count."
        if word in asked and left[0]:
            left[0] -= 1
            return cut_off(server, request, body)
        return None

    return fault


def test_a_server_that_always_goes_away_while_probed_is_an_error(codec: TokenCodec) -> None:
    with StubServer(codec, lost("Hello.", 1000)) as server, pytest.raises(EngineError, match="went away 5 times while it was probed"):
        ask(server, [asking("alpha")])


def test_a_server_of_our_own_that_dies_while_probed_is_said_at_once(codec: TokenCodec) -> None:
    class Dying:
        dead = False

        def check(self) -> None:
            if self.dead:
                raise EngineError("the server ended with status -9", code="server-ended")

        def close(self) -> None: ...

    own = Dying()

    def fault(server: StubServer, request: Any, body: dict[str, Any], before: int) -> Any:
        own.dead = True
        return cut_off(server, request, body)

    begun = time.monotonic()
    with StubServer(codec, fault) as server, pytest.raises(EngineError, match="status -9"):
        ask(server, [asking("alpha")], limits=replace(QUICK, patience_s=600.0), process=own)
    assert time.monotonic() - begun < 550


def test_no_server_at_all_is_an_error_after_patience(codec: TokenCodec) -> None:
    with StubServer(codec, on("beta", hang)) as server:
        engine = OpenAIEngine([server.url], limits=replace(QUICK, patience_s=3.0), codec=codec, probed=probed(server))
        rows = engine.sample([asking(key) for key in KEYS] * 4, PARAMS)
        next(rows)
        server.stop()
        with pytest.raises(EngineError, match="no server answers"):
            list(rows)
        engine.close()


def test_servers_of_different_kinds_are_refused(codec: TokenCodec) -> None:
    with StubServer(codec) as one, StubServer(codec, strict=True) as two:
        engine = OpenAIEngine([one.url, two.url], limits=QUICK, codec=codec)
        with pytest.raises(EngineError, match="different kinds"):
            list(engine.sample([asking("alpha")], PARAMS))
        engine.close()


# --- parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "low", "high"), [("3", 3, 3), ("-1", 0, 0), ("", 0, 0), ("soon", 0, 0), ("nan", 0, 0)])
def test_retry_after(header: str, low: float, high: float) -> None:
    assert low <= retry_after_seconds(header) <= high


def test_retry_after_as_a_date() -> None:
    from email.utils import formatdate

    assert 550 < retry_after_seconds(formatdate(time.time() + 600, usegmt=True)) <= 600
    assert retry_after_seconds(formatdate(time.time() - 5, usegmt=True)) == 0


def test_backoff_doubles_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.engines.openai.client.FIRST_WAIT", 0.25)
    for tries, longest in [(0, 0.25), (1, 0.5), (3, 2.0), (20, 30.0)]:
        assert all(longest / 2 <= backoff(tries) <= longest for _ in range(50))


@pytest.mark.parametrize("reply", [None, [], "x", {}, {"choices": "x"}, {"choices": [3]}, {"choices": {"a": 1}}])
def test_garbage_is_not_parsed(reply: object) -> None:
    with pytest.raises(InvalidReplyError):
        parse_completion(reply)


def test_logprobs_in_every_known_form() -> None:
    base = {"finish_reason": "stop", "message": {"content": "a b"}}
    openai = {**base, "logprobs": {"content": [{"token": "a", "logprob": -1}, {"token": " b", "logprob": -2.5}]}}
    llama = {**base, "logprobs": {"content": [{"id": 5, "logprob": -1}, {"id": 6, "logprob": -2.5}]}}
    legacy = {"finish_reason": "stop", "text": "a b", "logprobs": {"token_logprobs": [-1, -2.5], "tokens": ["a", " b"]}}
    found = [parse_completion({"choices": [choice]}).choices[0] for choice in (openai, llama, legacy)]
    assert [choice.logprobs for choice in found] == [(-1.0, -2.5)] * 3
    assert [choice.ids for choice in found] == [(), (5, 6), ()]
    for name in ("token_ids", "response_token_ids", "output_ids"):
        assert parse_completion({"choices": [{**openai, name: [5, 6]}]}).choices[0].ids == (5, 6)
    broken = {**base, "logprobs": {"content": [{"logprob": "x"}]}}
    assert parse_completion({"choices": [broken]}).choices[0].logprobs == ()


@pytest.mark.parametrize("stalls", ["Hello.", "Write a random sentence.", "models"])
def test_patience_bounds_the_whole_probe(codec: TokenCodec, monkeypatch: pytest.MonkeyPatch, stalls: str) -> None:
    """By timeouts and tries alone it would take timeout_s * tries * probes."""
    monkeypatch.setattr("mixpo.engines.openai.engine.SAY_SECONDS", 0.3)
    lines: list[str] = []

    class Stalling(StubServer):
        async def _models(self, request: web.Request) -> web.Response:
            await hang(self, request, {}) if stalls == "models" else None
            return web.json_response({"data": [{"id": "stub"}]})

    with Stalling(codec, on(stalls, hang)) as server:
        begun = time.monotonic()
        with pytest.raises(EngineError) as caught:
            ask(server, [asking("alpha")], limits=Limits(timeout_s=600, retries=4, patience_s=4.0), notify=lines.append)
        assert time.monotonic() - begun < 150
    assert (caught.value.code, caught.value.key) == ("server-stalls", "sample.server.patience_s")
    waited = {"Hello.": "a first reply", "models": "its models"}.get(stalls, "several responses to one request")
    assert waited in str(caught.value)
    assert any(f"waiting for {waited} (" in line for line in lines)
