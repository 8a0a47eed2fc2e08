"""The command line. The only part of mixpo that prints, reads the environment, or ends the process."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from mixpo.cli import commands, runs  # each adds its commands to the application
from mixpo.cli.app import app

__all__ = ["app", "commands", "main", "runs"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # The tokenizers library warns (and falls back) when a process with live threads forks, as the formula workers do.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # pydantic looks for plugins in the metadata of every installed package, which takes longer than reading a recipe.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # escape what the terminal's encoding lacks
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="mixpo")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0
