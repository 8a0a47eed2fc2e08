"""The ranks of one launch (`torchrun`, `accelerate launch`): broadcast, barrier and a common end.

Rank 0 is the main rank: it locks the run, plans, writes, prints and broadcasts the work to share. Ranks communicate through the
launch's key-value store instead of a process group, so that a rank can wait for hours while rank 0 samples. Imports torch only when
there is more than one rank.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixpo.errors import RunError

POLL_SECONDS = 0.05
"""Poll interval of a waiting rank. Unlike a blocking wait, polling lets Ctrl-C through."""
REPORT_SECONDS = 10.0
"""How long a rank that fails later waits: the launcher stops all ranks at the first exit, which would cut off the first message."""


@dataclass
class Ranks:
    """This process among all ranks of the launch. local_rank: on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _store: Any = field(default=None, repr=False)
    _broadcasts: int = 0
    _barriers: int = 0

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def shard(self, items: list[int]) -> list[int]:
        """This rank's items: every `world_size`-th one."""
        return items[self.rank :: self.world_size]

    def broadcast(self, value: Any) -> None:
        """Send a JSON value from the main rank to all others, in order."""
        if self.world_size > 1:
            self._broadcasts += 1
            self._connect().set(f"broadcast-{self._broadcasts}", json.dumps(value))

    def receive(self) -> Any:
        """Wait for the next value that the main rank broadcasts, without a timeout."""
        self._broadcasts += 1
        return json.loads(self._wait(f"broadcast-{self._broadcasts}"))

    def barrier(self) -> None:
        """Wait until every rank gets here, without a timeout."""
        if self.world_size == 1:
            return
        self._barriers += 1
        name = f"barrier-{self._barriers}"
        if self._connect().add(f"{name}-arrived", 1) == self.world_size:
            self._connect().set(name, "all")
        self._wait(name)

    def is_first_failure(self) -> bool:
        """Whether no other rank has failed yet. Only the first one prints its message, and then calls `failure_reported`."""
        if self.world_size == 1:
            return True
        try:
            return bool(self._connect().add("failures", 1) == 1)
        except (RuntimeError, RunError):
            # The store died with its rank; two messages are better than none.
            return True

    def failure_reported(self) -> None:
        """Tell the other ranks that the first failure has been printed."""
        if self.world_size > 1:
            try:
                self._connect().set("reported", "yes")
            except (RuntimeError, RunError):
                return

    def wait_for_failure_report(self) -> None:
        """Give the first failing rank time to print its message."""
        end = time.monotonic() + REPORT_SECONDS
        try:
            while time.monotonic() < end and not self._connect().check(["reported"]):
                time.sleep(POLL_SECONDS)
        except (RuntimeError, RunError):
            return

    def close(self) -> None:
        """Leave together, if ever connected: rank 0 holds the store and must exit last."""
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
        """The store; selects this rank's device on first use. Raises RunError without a rendezvous address in the environment."""
        if self._store is None:
            import torch
            from torch.distributed.rendezvous import rendezvous

            try:
                store, _, _ = next(rendezvous("env://", self.rank, self.world_size))
            except (ValueError, RuntimeError) as error:
                raise RunError(
                    f"rank {self.rank} of {self.world_size} cannot connect to the others ({error}); start it with torchrun",
                    code="ranks-not-connected",
                ) from None
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank)
            distributed: Any = torch.distributed
            self._store = distributed.PrefixStore("mixpo", store)
        return self._store


def ranks_from_env(environment: Mapping[str, str]) -> Ranks:
    """Rank, world size and local rank as a launcher sets them; a single rank without one. Raises RunError for invalid values."""
    try:
        ranks = Ranks(*(int(environment.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
    except ValueError:
        raise RunError(
            "RANK, WORLD_SIZE and LOCAL_RANK in the environment must be whole numbers; unset them, or use torchrun",
            code="rank-environment-invalid",
        ) from None
    if not 0 <= ranks.rank < ranks.world_size:
        raise RunError(
            f"RANK is {ranks.rank} and WORLD_SIZE is {ranks.world_size} in the environment; unset them, or use torchrun",
            code="rank-environment-invalid",
        )
    return ranks
