"""The Typer application, and the options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixpo.cli import show

app = typer.Typer(
    help="Preference data without human labels, and Mixed Preference Optimization, for vision-language models.",
    epilog="Exit status: 0 done; 1 stopped and why; 2 recipe or command line; 3 data, or what check found; 130 Ctrl+C; 143 SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WORK, LOOK, USE = "Work on a recipe", "Look at a run", "Use a run"
"""Groups of commands in the help."""

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe.")]
Folder = Annotated[Path | None, typer.Option("--dir", metavar="RUN", help="Run directory; by default runs/<name of the recipe>.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Another value for a recipe key; may be given several times.")
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="One JSON document on standard output.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use the first N usable questions of every source.")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Do this stage (sample, verify, pair, ...) and all after it again.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Only say what each stage would do, with an estimate of tokens, time and disk.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        show.line(f"mixpo {metadata.version('mixpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version.")] = False,
) -> None: ...
