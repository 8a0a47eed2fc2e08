"""Where a command begins and ends: progress on the screen, one message for an error, one exit status, also with several ranks."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass

import typer

from mixpo.cli.bars import open_progress, printable
from mixpo.distributed import Ranks, ranks_of
from mixpo.errors import MixpoError, refused
from mixpo.progress import Progress, Silent
from mixpo.signals import SAID, STOPPING


@dataclass(frozen=True)
class Terminal:
    """What a command gets: where to say how far it is, and its place among the processes of the launch."""

    progress: Progress
    ranks: Ranks


@contextmanager
def boundary(together: bool = False) -> Iterator[Terminal]:
    """Errors for the user become one message on standard error and an exit status; bugs keep their traceback.

    together: for a command that several ranks work on; of any other one the main rank does all. Only the main rank prints, but the
    first one that fails says why, whichever it is.
    """
    ranks = Ranks()
    try:
        with STOPPING.work():
            ranks = ranks_of(os.environ)
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
        STOPPING.said = True
        _fail(ranks, f"\n{SAID}", STOPPING.status)
    except BrokenPipeError:
        # Whoever read the output has gone (`mixpo status RUN | head`); say nothing more, not even at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        raise typer.Exit(0) from None
    except Exception as error:
        if isinstance(error, OSError) and (said := refused(error)):
            _fail(ranks, printable(f"mixpo: {said}"), said.exit_code)
        if ranks.count == 1:
            raise
        # The end of one rank tears the connections of all others: only what came first is worth a traceback.
        _fail(ranks, traceback.format_exc(), 1)


def _fail(ranks: Ranks, text: str, status: int) -> None:
    if ranks.first_to_fail():
        print(text, file=sys.stderr, flush=True)
        ranks.told()
    else:
        ranks.wait_until_told()
    raise typer.Exit(status) from None
