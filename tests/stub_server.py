"""A server in a thread that answers like vLLM, with the real tokenizer and made-up answers, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, Self

import numpy as np
import orjson
from aiohttp import web
from PIL import Image

from mixpo.engines.tokens import TokenCodec
from mixpo.types import IMAGE_TOKEN

Fault = Callable[["StubServer", web.Request, dict[str, Any], int], Any]
"""Given the server, the request, its body and how often this user message was asked before: a response to give instead, or None."""

WORDS = ("red", "green", "blue", "one", "two", "three", "four", "five", "left", "right", "top", "low", "sum", "of", "the", "picture")


class StubServer:
    """Use as a context manager. `bodies` holds every request; the flags switch off what servers may lack.

    ready_at: until then it says on /health that it loads its model.
    """

    def __init__(self, codec: TokenCodec | None = None, fault: Fault | None = None, /, **lacks: bool) -> None:
        self.codec, self.fault, self.lacks = codec, fault, lacks
        self._reserved = socket.socket()
        self.port = 0
        self.bodies: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.most_at_once = self.at_once = 0
        self.asked: dict[str, int] = {}
        self.ready_at = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        # Bound all the time but never listening: between `stop` and `start` nobody else on this machine gets the port.
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(120)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(120)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()

    def stop(self) -> None:
        """Close the port and every connection; what is under way is cut off."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(120)
            self._runner = None

    def start(self) -> None:
        """Open the same port again."""
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(120)

    async def _open(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._post)
        if not self.lacks.get("no_completions"):
            app.router.add_post("/v1/completions", self._post)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if time.monotonic() < self.ready_at else 200)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stub"}]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.bodies.append((request.path, body, dict(request.headers)))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            message = text_of(body)
            before = self.asked.get(message, 0)
            self.asked[message] = before + 1
            if self.fault is not None:
                instead: Any = self.fault(self, request, body, before)
                if asyncio.iscoroutine(instead):
                    instead = await instead
                if isinstance(instead, web.StreamResponse):
                    return instead
            if "top_k" in body and self.lacks.get("strict"):
                return web.json_response({"detail": "unexpected keys"}, status=422)
            if isinstance(body.get("prompt"), list) and self.lacks.get("no_ids_in"):
                return web.json_response({"detail": "prompt must be a string"}, status=400)
            if "continue_final_message" in body and self.lacks.get("no_prefix"):
                return web.json_response({"detail": "unexpected keys"}, status=422)
            return web.json_response(self.reply(body))
        finally:
            self.at_once -= 1

    # --- a made-up model ---------------------------------------------------------------------------------------------------

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        n = 1 if self.lacks.get("no_n") else body["n"]
        chat = "messages" in body
        choices = [self.choice(body, number, chat) for number in range(n)]
        usage = {"prompt_tokens": self.prompt_tokens(body)} if self.codec else {}
        return {"choices": choices, "usage": usage, "model": "stub-2026"}

    def choice(self, body: dict[str, Any], number: int, chat: bool) -> dict[str, Any]:
        seed = 0 if body["temperature"] == 0 or self.lacks.get("greedy") else (body["seed"], 0 if self.lacks.get("one_seed") else number)
        seen = text_of(body) if self.lacks.get("blind") else orjson.dumps([body.get("messages"), body.get("prompt")]).decode()
        key = hashlib.sha256(repr((seen, seed)).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:8]))
        count = int(min(body["max_tokens"], 3 + rng.integers(4)))
        text = " ".join(WORDS[rng.integers(len(WORDS))] for _ in range(count))
        finish = "stop"
        ids: list[int] = []
        if self.codec is not None:
            ids = list(self.codec.encode(text))
            if len(ids) > body["max_tokens"]:
                ids, finish = ids[: body["max_tokens"]], "length"
                text = self.codec.decode(ids)
        for stop in body.get("stop", []):
            text = text.partition(stop)[0]
        bias = {} if self.lacks.get("no_bias") else bias_of(body)
        if self.codec is not None and (forced := [token for token, value in bias.items() if value > 0]):
            ids, finish = forced[:1] * body["max_tokens"], "length"
            text = self.codec.decode(ids)
        elif self.codec is not None and self.lacks.get("leaks") and bias.get(self.codec.banned[0], 0) >= 0 and key[8] < 40:
            # An image token in the middle, which a server that shows no special tokens leaves out of the text.
            ids, text = [*ids[:2], self.codec.banned[0], *ids[2:]], text if key[9] < 128 else f"{text}<IMG_CONTEXT>"
        made: dict[str, Any] = {"finish_reason": finish, "index": number}
        if not self.lacks.get("no_ids_out") and ids:
            made["token_ids"] = ids
        logprobs = [-float(rng.random()) for _ in ids or text.split()]
        if body.get("logprobs") and not self.lacks.get("no_logprobs"):
            entries = [{"token": "x", "logprob": value} for value in logprobs]
            made["logprobs"] = {"content": entries} if chat else {"token_logprobs": logprobs}
        return {**made, **({"message": {"role": "assistant", "content": text}} if chat else {"text": text})}

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        assert self.codec is not None
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            return len(prompt)
        if isinstance(prompt, str):
            return len(self.codec.encode_raw(prompt))
        user = body["messages"][0]
        text, images = parts_of(user)
        if len(body["messages"]) > 1:
            begun = body["messages"][1]["content"]
            shown = len(self.codec.prompt_ids(text, images)) - len(self.codec.encode_raw(self.codec.prompt_text(text))) if images else 0
            return shown + len(self.codec.encode_raw(self.codec.prompt_text(text) + (begun.strip() if self.lacks.get("strips") else begun)))
        return len(self.codec.prompt_ids(text, images)) + (3 if self.lacks.get("other_tiles") and images else 0)


async def _cancel_all() -> None:
    """End what still answers a client that has gone."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def bias_of(body: dict[str, Any]) -> dict[int, float]:
    """What is added to the logits of which tokens."""
    if "generation_config" in body:
        listed = orjson.loads(body["generation_config"]).get("sequence_bias", [])
        return {ids[0]: value for ids, value in listed if len(ids) == 1}
    return {int(token): value for token, value in body.get("logit_bias", {}).items()}


def parts_of(message: dict[str, Any]) -> tuple[str, list[Image.Image]]:
    """The text with marks, and the pictures, of a user's message."""
    if isinstance(message["content"], str):
        return message["content"], []
    text, images = "", []
    for part in message["content"]:
        if part["type"] == "text":
            text += part["text"]
        else:
            kind, _, data = part["image_url"]["url"].partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            images.append(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))
            text += IMAGE_TOKEN
    return text, images


def text_of(body: dict[str, Any]) -> str:
    """The text of what was asked."""
    return parts_of(body["messages"][0])[0] if "messages" in body else repr(body["prompt"])


# --- vllm_errors --------------------------------------------------------------------------------------------------------------


def on(word: str, act: Callable[..., Any], times: int = 10**9) -> Fault:
    """`act` for the first `times` requests whose user message holds `word`."""

    def fault(server: StubServer, request: web.Request, body: dict[str, Any], before: int) -> Any:
        return act(server, request, body) if word in text_of(body) and before < times else None

    return fault


def status(code: int, **headers: str) -> Callable[..., Any]:
    return lambda server, request, body: web.json_response({"error": f"made up {code}"}, status=code, headers=headers)


def raw(content: bytes) -> Callable[..., Any]:
    return lambda server, request, body: web.Response(body=content, content_type="application/json")


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """The right reply with something done to it."""

    def act(server: StubServer, request: web.Request, body: dict[str, Any]) -> web.Response:
        reply = server.reply(body)
        change(reply)
        return web.json_response(reply)

    return act


def each(change: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """The right reply with something done to every choice."""
    return changed(lambda reply: [change(choice) for choice in reply["choices"]])


def truncated(server: StubServer, request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(server.reply(body))[:-20], content_type="application/json")


async def hang(server: StubServer, request: web.Request, body: dict[str, Any]) -> None:
    await asyncio.sleep(3600)  # until the client, or the end of the server, ends it


async def slow(server: StubServer, request: web.Request, body: dict[str, Any]) -> None:
    await asyncio.sleep(0.3)


def cut_off(server: StubServer, request: web.Request, body: dict[str, Any]) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
