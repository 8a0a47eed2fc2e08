"""Watches calls of a function, or replaces one for a single module."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def spy(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, note: Callable[..., object]) -> None:
    """From now on `note` gets the arguments of each call of `owner.name`, before the real function does."""
    real = getattr(owner, name)

    def noted(*args: object, **options: object) -> object:
        note(*args, **options)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, noted)


def replace_in(monkeypatch: pytest.MonkeyPatch, module: ModuleType, library: str, **functions: Callable[..., object]) -> None:
    """`module` sees these functions in `library`, which it imports; other modules and threads keep the real ones."""
    monkeypatch.setattr(module, library, SimpleNamespace(**vars(getattr(module, library)) | functions))
