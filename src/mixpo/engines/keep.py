"""Something costly that one stage opens and the next may need again: a server that was started, a model that vLLM has loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Keep:
    """Holds one thing at a time, since two models seldom fit beside each other."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._held: Any = None
        self._end: Callable[[Any], None] = lambda value: None

    def take(self, key: tuple[object, ...], open_it: Callable[[], Value], end: Callable[[Value], None]) -> Value:
        """What is held under `key`, opened now where something else is. end: how it is closed."""
        if self._held is None or self._key != key:
            self.close()
            self._held, self._key, self._end = open_it(), key, end
        held: Value = self._held
        return held

    def close(self) -> None:
        """Close what is held."""
        held, self._held = self._held, None
        if held is not None:
            self._end(held)
