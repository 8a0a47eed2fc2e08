"""Which servers answer now, asked before a run begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mixpo.engines.openai.client import Limits, Replica, Transport, bearer
from mixpo.errors import EngineError


def troubles(urls: Sequence[str], where: str, key: str = "") -> list[str]:
    """What is wrong, now, with each server that does not say that it can work. where: the table that names them. key: as bearer token."""

    async def ask() -> list[str]:
        transport = Transport(urls=urls, headers=bearer(key), limits=Limits(), say=lambda text: None, where=where)
        await transport.open()
        try:
            found = await asyncio.gather(*(_trouble(transport, replica) for replica in transport.replicas))
        finally:
            await transport.close()
        return [text for text in found if text]

    return asyncio.run(ask()) if urls else []


async def _trouble(transport: Transport, replica: Replica) -> str:
    try:
        why = await transport.trouble(replica)
    except EngineError as error:
        return str(error)
    return f"{replica.url} {why}; start the server or correct {transport.where}.urls" if why else ""
