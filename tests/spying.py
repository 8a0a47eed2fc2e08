"""Watches calls of a function that is left as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def spy(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, note: Callable[..., object]) -> None:
    """From now on `note` gets the arguments of each call of `owner.name`, before the real function does."""
    real = getattr(owner, name)

    def noted(*args: object, **options: object) -> object:
        note(*args, **options)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, noted)
