"""Long tables of cases, of which a few rows are enough for `make test`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(rows: Iterable[Any], *fast: Any) -> list[Any]:
    """The rows of a table for `parametrize`, all but the `fast` ones marked slow. A row of several parameters is a tuple."""
    table = list(rows)
    assert all(row in table for row in fast), "a fast row is not in the table"

    def slow(row: Any) -> Any:
        return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.slow)

    return [row if row in fast else slow(row) for row in table]
