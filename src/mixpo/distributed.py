"""The processes of one launch (`torchrun`, `accelerate launch`): who leads, who follows, and how they end together.

Rank 0 leads: it alone locks the run, plans, writes and prints, and tells the others which work to share. They talk through the key-value
store of the launch, not through a process group, so that a rank can wait for hours while rank 0 samples. Imports torch only when
there is more than one rank. Knows nothing about models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixpo.errors import RunError

POLL_SECONDS = 0.05
"""How often a waiting rank looks. Polling, unlike a blocking wait, lets Ctrl-C through."""
REPORT_SECONDS = 10.0
"""How long a rank that fails second stays, so that the launcher, which then stops everyone, does not cut off the first one's message."""


@dataclass
class Ranks:
    """This process among the others. number: from 0. count: of all. local: number on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _store: Any = field(default=None, repr=False)
    _broadcasts: int = 0
    _barriers: int = 0

    @property
    def main(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def shard(self, items: list[int]) -> list[int]:
        """This rank's share of some work."""
        return items[self.rank :: self.world_size]

    def broadcast(self, value: Any) -> None:
        """From the main rank to all others: one JSON value, in order."""
        if self.world_size > 1:
            self._broadcasts += 1
            self._connect().set(f"order-{self._broadcasts}", json.dumps(value))

    def receive(self) -> Any:
        """The main rank's next order, however long it takes."""
        self._broadcasts += 1
        return json.loads(self._wait(f"order-{self._broadcasts}"))

    def barrier(self) -> None:
        """Come back when every rank is here, however long it takes."""
        if self.world_size == 1:
            return
        self._barriers += 1
        name = f"meeting-{self._barriers}"
        if self._connect().add(f"{name}-count", 1) == self.world_size:
            self._connect().set(name, "all")
        self._wait(name)

    def is_first_failure(self) -> bool:
        """Whether no other rank has failed before. The first one prints its message and calls `told`; the others keep quiet."""
        if self.world_size == 1:
            return True
        try:
            return bool(self._connect().add("failures", 1) == 1)
        except (RuntimeError, RunError):
            # The store is gone with the rank that held it; better two messages than none.
            return True

    def failure_reported(self) -> None:
        """The message of the first failure is out."""
        if self.world_size > 1:
            try:
                self._connect().set("told", "yes")
            except (RuntimeError, RunError):
                return

    def wait_for_failure_report(self) -> None:
        """Give the first rank that failed the time to say why."""
        end = time.monotonic() + REPORT_SECONDS
        try:
            while time.monotonic() < end and not self._connect().check(["told"]):
                time.sleep(POLL_SECONDS)
        except (RuntimeError, RunError):
            return

    def close(self) -> None:
        """Leave together, if ever met: the rank that holds the store must not go first."""
        if self._store is None:
            return
        self.barrier()
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if not self.main:
            self._connect().set(f"left-{self.rank}", "yes")
            return
        for rank in range(1, self.world_size):
            self._wait(f"left-{rank}")

    def _wait(self, key: str) -> str:
        store = self._connect()
        while not store.check([key]):
            time.sleep(POLL_SECONDS)
        return bytes(store.get(key)).decode()

    def _connect(self) -> Any:
        """The store, and this rank's device. Raises RunError when the launch does not say where the ranks meet."""
        if self._store is None:
            import torch
            from torch.distributed.rendezvous import rendezvous

            try:
                store, _, _ = next(rendezvous("env://", self.rank, self.world_size))
            except (ValueError, RuntimeError) as error:
                raise RunError(f"rank {self.rank} of {self.world_size} cannot meet the others ({error}); start it with torchrun") from None
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank)
            distributed: Any = torch.distributed
            self._store = distributed.PrefixStore("mixpo", store)
        return self._store


def ranks_from_env(environment: Mapping[str, str]) -> Ranks:
    """The ranks that a launcher says there are; one without a launcher. Raises RunError for nonsense."""
    try:
        found = Ranks(*(int(environment.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
    except ValueError:
        raise RunError("RANK, WORLD_SIZE and LOCAL_RANK in the environment must be whole numbers; unset them, or use torchrun") from None
    if not 0 <= found.rank < found.world_size:
        raise RunError(f"RANK is {found.rank} and WORLD_SIZE is {found.world_size} in the environment; unset them, or use torchrun")
    return found
