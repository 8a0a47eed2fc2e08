"""A `Client` for synchronous callers: its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from mixpo.engines.openai.client import Client

Value = TypeVar("Value")


class ClientThread:
    """Runs the event loop of a client in a thread, for synchronous callers; requests continue while the caller does other work."""

    def __init__(self, client: Client) -> None:
        """Opens the client. Raises MissingExtra as `Client.open` does."""
        self.client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mixpo-http", daemon=True)
        self._thread.start()
        try:
            self.run(client.open())
        except BaseException:
            self.close()
            raise

    def submit(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Start `work` in the thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """The result of `work`, once it is there."""
        return self.submit(work).result()

    def close(self) -> None:
        """Cancel what is under way, close the client and end the thread."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
