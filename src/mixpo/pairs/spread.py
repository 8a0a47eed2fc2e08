"""Choose some of many combinations so that every member of both sides is used as evenly as possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def diagonals(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """All rows x columns combinations once, in an order of which every beginning uses each row (and each column) evenly.

    Within one least common multiple of the sizes both numbers run round; after it the columns shift by one, or the same
    combinations would come again.
    """
    period = math.lcm(rows, columns) if rows and columns else 1
    return ((step % rows, (step + step // period) % columns) for step in range(rows * columns))


def spread(edges: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """At most `limit` of the edges. Each step takes the first edge that touches the least used member, then the least used partner.

    Of all edges in the order of `diagonals` it takes the beginning.
    """
    if len(edges) <= limit:
        return list(edges)
    left = list(edges)
    used_rows = dict.fromkeys((row for row, _ in edges), 0)
    used_columns = dict.fromkeys((column for _, column in edges), 0)
    taken = []
    least = (0, 0)
    for _ in range(limit):
        position, least = _least_used(left, used_rows, used_columns, least)
        row, column = left.pop(position)
        used_rows[row] += 1
        used_columns[column] += 1
        taken.append((row, column))
    return taken


def _least_used(
    edges: Sequence[tuple[int, int]], used_rows: dict[int, int], used_columns: dict[int, int], least: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Position and use of the first edge that is used least. least: what the step before found; uses only grow, so none is below it."""
    position, best = 0, (len(edges) + 1, 0)
    for number, (row, column) in enumerate(edges):
        one, other = used_rows[row], used_columns[column]
        use = (one, other) if one < other else (other, one)
        if use < best:
            position, best = number, use
            if use <= least:
                break
    return position, best
