"""Counts in sentences: one answer, two answers."""

from __future__ import annotations

from collections.abc import Sequence


def amount(count: int, one: str, several: str = "") -> str:
    """ "1 answer", "1,234 answers". several: the plural, where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def are(count: int) -> str:
    """The verb behind an amount."""
    return "is" if count == 1 else "are"


def first_few(names: Sequence[str], limit: int) -> str:
    """ "a, b, c, ...": the first names, and whether there are more."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
