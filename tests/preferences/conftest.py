"""Pictures for pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from preference_files import pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures."""
    return pictures(tmp_path)
