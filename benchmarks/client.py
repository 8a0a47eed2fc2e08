"""Requests a second that one process sends with pictures of 100 KB, against a server on this machine that does nothing.

The engine's client, and the OpenAI SDK if it is installed, in turn: request bodies with one picture as a data address, 32 in flight.

python benchmarks/client.py [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from history import emit

from mixpo.engines.base import SamplingParams
from mixpo.engines.openai.client import Client, Limits
from mixpo.engines.openai.protocol import data_url, parse_completion, sampling_body, user_message

IN_FLIGHT = 32
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=64)
REPLY = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "stub",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Final answer: 7"}}],
}


def serve(pipe: Connection) -> None:
    """Answer everything at once; sends the port."""
    from aiohttp import web

    content = json.dumps(REPLY).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=content, content_type="application/json")

    async def main() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.sleep(10**6)

    asyncio.run(main())


NEVER = dict.fromkeys(range(20), -100.0)
"""As many control tokens as a model of the InternVL family has."""


def body(picture: bytes, seed: int) -> dict[str, Any]:
    """What the engine sends: the picture is encoded for each request, as it is for each question."""
    turn = user_message("<image>\nWhat is the sum?", [data_url(picture, "jpeg")], "<image>")
    return {**sampling_body("stub", PARAMS, 8, seed, "negative", (), NEVER), "messages": [turn], "logprobs": True, "top_logprobs": 1}


async def ours(url: str, picture: bytes, count: int) -> None:
    """The engine's client."""
    limits = Limits(in_flight=IN_FLIGHT)
    client = Client(urls=[url], limits=limits, notify=print)
    await client.open()
    try:
        await spread(count, lambda seed: client.post("/chat/completions", body(picture, seed), parse_completion))
    finally:
        await client.close()


async def sdk(url: str, picture: bytes, count: int) -> None:
    """The OpenAI SDK's asynchronous client."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def post(seed: int) -> Any:
            made = body(picture, seed)
            own = ("top_k", "min_p", "repetition_penalty", "repeat_penalty", "return_token_ids")
            extra = {name: made.pop(name) for name in own}
            return await client.chat.completions.create(**made, extra_body=extra)

        await spread(count, post)


async def spread(count: int, post: Callable[[int], Awaitable[Any]]) -> None:
    """`count` requests with IN_FLIGHT workers."""
    seeds = iter(range(count))

    async def worker() -> None:
        for seed in seeds:
            await post(seed)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parent, child = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(child,), daemon=True)
    server.start()
    url, picture = f"http://127.0.0.1:{parent.recv()}/v1", os.urandom(75_000)  # 100 KB as base64
    clients = {"mixpo": ours, **({"openai SDK": sdk} if importlib.util.find_spec("openai") else {})}
    wall: dict[str, list[float]] = {name: [] for name in clients}
    cpu: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(args.rounds + 1):
        for name, work in clients.items():
            begun, used = time.perf_counter(), time.process_time()
            asyncio.run(work(url, picture, args.requests))
            if number:  # the first round warms up
                wall[name].append(args.requests / (time.perf_counter() - begun))
                cpu[name].append(args.requests / (time.process_time() - used))
    server.terminate()
    results = [
        {"name": name, "requests_per_s": statistics.median(wall[name]), "requests_per_cpu_s": statistics.median(cpu[name])}
        for name in clients
    ]
    for r in results:
        print(f"{r['name']}: {r['requests_per_s']:.0f} requests/s, {r['requests_per_cpu_s']:.0f} for each second of the client's CPU")
    emit("client", {"cases": results}, show=args.json)


if __name__ == "__main__":
    main()
