from collections.abc import Iterator

import pytest

from mixpo.verify.pool import FormulaPool


@pytest.fixture(scope="session")
def pool() -> Iterator[FormulaPool]:
    """One worker for all tests that need computer algebra: loading sympy takes about a second."""
    with FormulaPool(timeout_s=20, workers=1) as shared:
        yield shared
