"""What stages share: opened once for those that ask the same model, and never beside another one."""

from __future__ import annotations

import pytest

from mixpo.engines.base import Keep


def test_one_thing_at_a_time() -> None:
    events: list[str] = []

    def take(keep: Keep, name: str) -> str:
        def opened() -> str:
            events.append(f"open {name}")
            return name

        return keep.take(("server", name), opened, lambda held: events.append(f"close {held}"))

    keep = Keep()
    assert [take(keep, name) for name in ("a", "a", "b", "a")] == ["a", "a", "b", "a"]
    keep.close()
    keep.close()
    take(keep, "a")
    assert events == ["open a", "close a", "open b", "close b", "open a", "close a", "open a"]


def test_what_does_not_open_is_not_kept() -> None:
    keep, closed = Keep(), list[str]()
    keep.take(("a",), lambda: "a", closed.append)

    def failing() -> str:
        raise OSError("no memory")

    with pytest.raises(OSError, match="no memory"):
        keep.take(("b",), failing, closed.append)
    keep.close()
    assert closed == ["a"]
