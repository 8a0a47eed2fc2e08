"""Python source as a tree, in tests that share their process with other threads."""

from __future__ import annotations

import ast


def parse(source: str) -> ast.Module:
    """`ast.parse`, tried again where another thread (such as one of Ray) parsed at the same time: CPython shares a depth counter."""
    for _ in range(20):
        try:
            return ast.parse(source)
        except SystemError as error:
            if "recursion depth mismatch" not in str(error):
                raise
    return ast.parse(source)
