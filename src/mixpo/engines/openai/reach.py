"""Which servers answer now, asked before a run begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mixpo.engines.openai.transport import Limits, Transport, bearer


def unreachable(urls: Sequence[str], key: str = "") -> list[str]:
    """The addresses at which no server says that it can work, now. key: sent as bearer token."""

    async def ask() -> list[str]:
        transport = Transport(urls=urls, headers=bearer(key), limits=Limits(), say=lambda text: None)
        await transport.open()
        try:
            healthy = await asyncio.gather(*map(transport.healthy, transport.replicas))
        finally:
            await transport.close()
        return [url for url, well in zip(urls, healthy, strict=True) if not well]

    return asyncio.run(ask()) if urls else []
