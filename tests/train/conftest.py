"""Training data that many files share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mixpo.types import Group
    from mixpo.vlm.load import Vlm


@pytest.fixture(scope="session")
def scored_groups(tiny_vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Group, ...]:
    """12 pairs of 6 questions with reference log-probs, scored once in a session."""
    from train.cases import groups, scored

    return tuple(scored(tiny_vlm, groups(tiny_vlm, tmp_path_factory.mktemp("scored"))))


@pytest.fixture
def data(scored_groups: tuple[Group, ...]) -> list[Group]:
    """The same groups, in a list of the test's own."""
    return list(scored_groups)


@pytest.fixture
def unchecked_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models are not loaded again, a third of a short training; tests/vlm/test_load.py has the tests of that check."""
    monkeypatch.setattr("mixpo.vlm.save._reload_check", lambda *_: None)
