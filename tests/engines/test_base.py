"""What stages share: opened once for those that ask the same model, and never beside another one."""

from __future__ import annotations

import pytest

from mixpo.engines.base import SharedResource


def test_one_thing_at_a_time() -> None:
    events: list[str] = []

    def take(shared: SharedResource, name: str) -> str:
        def opened() -> str:
            events.append(f"open {name}")
            return name

        return shared.get(("server", name), opened, lambda held: events.append(f"close {held}"))

    shared = SharedResource()
    assert [take(shared, name) for name in ("a", "a", "b", "a")] == ["a", "a", "b", "a"]
    shared.close()
    shared.close()
    take(shared, "a")
    assert events == ["open a", "close a", "open b", "close b", "open a", "close a", "open a"]


def test_what_does_not_open_is_not_kept() -> None:
    shared, closed = SharedResource(), list[str]()
    shared.get(("a",), lambda: "a", closed.append)

    def failing() -> str:
        raise OSError("no memory")

    with pytest.raises(OSError, match="no memory"):
        shared.get(("b",), failing, closed.append)
    shared.close()
    assert closed == ["a"]
