"""The program inside a worker of `verify.custom`: one JSON request per line in, one JSON reply per line out. Run as a file, never imported.

Arguments: the recipe's folder, which comes first on the import path, and "module:function". Runs the user's code; imports nothing of
mixpo, so that a hang, a crash or a changed global of that code harms one verdict.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from typing import Any

ARGUMENTS = ("answer", "response", "ground_truth", "question")


def main() -> None:
    folder, target = sys.argv[1:3]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the function prints must not look like a reply
    sys.path.insert(0, folder)
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except BaseException as error:  # the user's code may raise anything, and even leave
        _reply(replies, "failed", f"{type(error).__name__}: {error}")
        return
    if problem := _unusable(function):
        _reply(replies, "failed", f"{name} {problem}")
        return
    _reply(replies, "ready", "")
    for line in sys.stdin:
        _reply(replies, *_outcome(function, json.loads(line)))


def _unusable(function: Any) -> str:
    """Why no call of this can give a verdict, or ""."""
    if not callable(function):
        return "is no function"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "must return its verdict: it is asynchronous or a generator"
    try:
        inspect.signature(function).bind(*ARGUMENTS)
    except TypeError:
        return f"must take four arguments by position: {', '.join(ARGUMENTS)}"
    except ValueError:  # built-in functions without a signature
        return ""
    return ""


def _outcome(function: Any, request: dict[str, Any]) -> tuple[str, str, float | None]:
    """(outcome, reason, score) of one call."""
    try:
        value = function(request["answer"], request["response"], request["ground_truth"], request["question"])
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        place = f" in {os.path.basename(frames[0].filename)}, line {frames[0].lineno}" if frames else ""
        return "undecided", f"custom check raised {type(error).__name__}{place}", None
    if getattr(value, "shape", None) == ():  # a scalar of NumPy or torch
        value = value.item()
    if isinstance(value, bool):
        return "correct" if value else "wrong", "custom check", None
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return "correct" if value >= 0.5 else "wrong", "custom score", float(value)
    if isinstance(value, str) and value in ("correct", "wrong", "malformed", "undecided"):
        return value, "custom check", None
    if isinstance(value, str):
        what = "a text other than correct, wrong, malformed and undecided"
    elif isinstance(value, (int, float)):
        what = "a number that is no score from 0 to 1"
    else:
        what = f"{type(value).__name__}, no outcome, no True or False, no score from 0 to 1"
    return "undecided", f"custom check returned {what}", None


def _reply(stream: Any, outcome: str, reason: str, score: float | None = None) -> None:
    stream.write(json.dumps({"outcome": outcome, "reason": reason, "score": score}) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
