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
TELL_SECONDS = 10.0
"""How long a rank that fails second stays, so that the launcher, which then stops everyone, does not cut off the first one's message."""


@dataclass
class Ranks:
    """This process among the others. number: from 0. count: of all. local: number on this machine."""

    number: int = 0
    count: int = 1
    local: int = 0
    _store: Any = field(default=None, repr=False)
    _orders: int = 0
    _meetings: int = 0

    @property
    def main(self) -> bool:
        """Whether this process leads."""
        return self.number == 0

    def part(self, numbers: list[int]) -> list[int]:
        """This rank's share of some work."""
        return numbers[self.number :: self.count]

    def lead(self, order: Any) -> None:
        """From the main rank to all others: one JSON value, in order."""
        if self.count > 1:
            self._orders += 1
            self._open().set(f"order-{self._orders}", json.dumps(order))

    def follow(self) -> Any:
        """The main rank's next order, however long it takes."""
        self._orders += 1
        return json.loads(self._wait(f"order-{self._orders}"))

    def meet(self) -> None:
        """Come back when every rank is here, however long it takes."""
        if self.count == 1:
            return
        self._meetings += 1
        name = f"meeting-{self._meetings}"
        if self._open().add(f"{name}-count", 1) == self.count:
            self._open().set(name, "all")
        self._wait(name)

    def first_to_fail(self) -> bool:
        """Whether no other rank has failed before. The first one prints its message and calls `told`; the others keep quiet."""
        if self.count == 1:
            return True
        try:
            return bool(self._open().add("failures", 1) == 1)
        except (RuntimeError, RunError):
            # The store is gone with the rank that held it; better two messages than none.
            return True

    def told(self) -> None:
        """The message of the first failure is out."""
        if self.count > 1:
            try:
                self._open().set("told", "yes")
            except (RuntimeError, RunError):
                return

    def wait_until_told(self) -> None:
        """Give the first rank that failed the time to say why."""
        end = time.monotonic() + TELL_SECONDS
        try:
            while time.monotonic() < end and not self._open().check(["told"]):
                time.sleep(POLL_SECONDS)
        except (RuntimeError, RunError):
            return

    def close(self) -> None:
        """Leave together, if ever met: the rank that holds the store must not go first."""
        if self._store is None:
            return
        self.meet()
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if not self.main:
            self._open().set(f"left-{self.number}", "yes")
            return
        for number in range(1, self.count):
            self._wait(f"left-{number}")

    def _wait(self, key: str) -> str:
        store = self._open()
        while not store.check([key]):
            time.sleep(POLL_SECONDS)
        return bytes(store.get(key)).decode()

    def _open(self) -> Any:
        """The store, and this rank's device. Raises RunError when the launch does not say where the ranks meet."""
        if self._store is None:
            import torch
            from torch.distributed.rendezvous import rendezvous

            try:
                store, _, _ = next(rendezvous("env://", self.number, self.count))
            except (ValueError, RuntimeError) as error:
                raise RunError(f"rank {self.number} of {self.count} cannot meet the others ({error}); start it with torchrun") from None
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local)
            distributed: Any = torch.distributed
            self._store = distributed.PrefixStore("mixpo", store)
        return self._store


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """The ranks that a launcher says there are; one without a launcher. Raises RunError for nonsense."""
    try:
        found = Ranks(*(int(environment.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
    except ValueError:
        raise RunError("RANK, WORLD_SIZE and LOCAL_RANK in the environment must be whole numbers; unset them, or use torchrun") from None
    if not 0 <= found.number < found.count:
        raise RunError(f"RANK is {found.number} and WORLD_SIZE is {found.count} in the environment; unset them, or use torchrun")
    return found
