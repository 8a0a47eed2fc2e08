"""docs/families.md against the installed transformers: a third of all architectures each day, so that all come up in three days."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import transformers
from train.zoo import NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
LISTED = dict(re.findall(r"^\| `(.+?)` \| ([a-z ]+?) \|", PAGE, re.MULTILINE))
TODAY = int(os.environ["MIXPO_TEST_DAY"]) % 3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES)[TODAY::3])
def test_the_page_is_true(name: str) -> None:
    """None is wrong without a word; with the release of the page, each that it has tried is what the page says."""
    spec = importlib.util.spec_from_file_location("families_tool", ROOT / "tools" / "families.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    result = tool.try_family(name)
    assert result.status != "wrong", result.reason
    same_release = f"transformers {transformers.__version__}," in PAGE
    if same_release and LISTED[name] != "not tried" and "not built within" not in result.reason:
        assert result.status == LISTED[name], result.reason


def test_enough_families_are_exact() -> None:
    statuses = list(LISTED.values())
    assert statuses.count("exact") >= 45
    assert "wrong" not in statuses
