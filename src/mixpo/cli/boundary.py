"""The boundary of a command: opens the progress display; turns errors into one message and an exit status, across all ranks."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from mixpo.cli.output import Lines, printable
from mixpo.distributed import Ranks, ranks_from_env
from mixpo.errors import MixpoError, refused
from mixpo.progress import Progress, Silent
from mixpo.signals import HANDLER, MESSAGE

if TYPE_CHECKING:
    from mixpo.cli.bars import Bars, NotebookBars


@dataclass(frozen=True)
class Terminal:
    """What a command gets: the progress display, and this process's rank in the launch."""

    progress: Progress
    ranks: Ranks


@contextmanager
def boundary(together: bool = False) -> Iterator[Terminal]:
    """A MixpoError becomes one message on standard error and an exit status; bugs keep their traceback.

    together: all ranks run the command; otherwise only rank 0 does. Only rank 0 prints, except that the first rank to fail reports
    its error.
    """
    ranks = Ranks()
    try:
        with HANDLER.interrupts():
            ranks = ranks_from_env(os.environ)
            if ranks.main:
                with closing(open_progress()) as progress:
                    yield Terminal(progress, ranks)
            elif not together:
                raise typer.Exit(0)
            else:
                with redirect_stdout(io.StringIO()):
                    yield Terminal(Silent(), ranks)
            ranks.close()
    except typer.Exit:
        raise
    except MixpoError as error:
        _fail(ranks, printable(f"mixpo: {error}"), error.exit_code)
    except KeyboardInterrupt:
        HANDLER.message_printed = True
        _fail(ranks, f"\n{MESSAGE}", HANDLER.exit_status)
    except BrokenPipeError:
        # The reader closed the pipe (`mixpo status RUN | head`); write nothing more, not even at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        raise typer.Exit(0) from None
    except Exception as error:
        if isinstance(error, OSError) and (known := refused(error)):
            _fail(ranks, printable(f"mixpo: {known}"), known.exit_code)
        if ranks.world_size == 1:
            raise
        # When one rank ends, the connections of all others break: only the first traceback is of use.
        _fail(ranks, traceback.format_exc(), 1)


def open_progress() -> Bars | NotebookBars | Lines:
    """Bars in a terminal or notebook, log lines elsewhere. Close it, or the terminal keeps a half-drawn bar."""
    if "ipykernel" in sys.modules:
        from mixpo.cli.bars import NotebookBars

        return NotebookBars()
    if not sys.stderr.isatty():
        return Lines(sys.stderr)
    from mixpo.cli.bars import Bars

    return Bars()


def _fail(ranks: Ranks, text: str, status: int) -> None:
    if ranks.is_first_failure():
        print(text, file=sys.stderr, flush=True)
        ranks.failure_reported()
    else:
        ranks.wait_for_failure_report()
    raise typer.Exit(status) from None
