"""Pictures for pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{number}.png")
    return tmp_path
