"""The Typer application: its help, the options that several commands share, and examples of each command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

WORK, INSPECT, USE = "Recipe commands", "Inspect a run", "Use a run"
"""Groups of commands in the help."""


class Commands(TyperGroup):
    """Lists the commands by group. Plain text: Typer's own panels load rich's Markdown, which takes longer than most commands."""

    def format_commands(self, ctx, formatter) -> None:  # type: ignore[no-untyped-def]
        for group in (WORK, INSPECT, USE):
            commands = [command for command in self.commands.values() if getattr(command, "rich_help_panel", None) == group]
            with formatter.section(group):
                formatter.write_dl([(command.name, command.get_short_help_str(limit=100)) for command in commands])


app = typer.Typer(
    cls=Commands,
    help="Preference data without human labels, and Mixed Preference Optimization, for vision-language models.",
    epilog="Exit status: 0 success; 1 failure; 2 usage or recipe error; 3 data error or problems found by check; 130 Ctrl+C; 143 SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe.")]
Folder = Annotated[Path | None, typer.Option("--dir", metavar="RUN", help="Run directory; default: runs/<name of the recipe>.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a recipe key; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use only the first N usable questions of each source.")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Redo this stage (sample, verify, pair, ...) and all after it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what each stage would do, with estimates of tokens, time and disk.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]

EXAMPLES = {
    "run": (
        "mixpo run recipe.toml --limit 64",
        "mixpo run recipe.toml --until pair",
        "mixpo run recipe.toml --set train.learning_rate=1e-6 --force train",
    ),
    "study": (
        "mixpo study study.toml --dry-run",
        "mixpo study recipes/studies/demo_steps.toml --jobs 2",
        "mixpo study study.toml --only small-steps",
    ),
    "demo": ("mixpo demo", "mixpo demo --dir runs/small --limit 128"),
    "sample": ("mixpo sample recipe.toml --set sample.n=16",),
    "verify": ("mixpo verify recipe.toml",),
    "branch": ("mixpo branch recipe.toml --set pairs.branches.continuations=8",),
    "pair": ("mixpo pair recipe.toml --set pairs.max_per_question=8",),
    "reference": ("mixpo reference recipe.toml",),
    "train": ("mixpo train recipe.toml", "torchrun --nproc_per_node 8 -m mixpo train recipe.toml"),
    "evaluate": ("mixpo evaluate recipe.toml",),
    "report": ("mixpo report recipe.toml",),
    "init": ("mixpo init", "mixpo init data/recipe.toml", "mixpo init --list", "mixpo init internvl3"),
    "check": ("mixpo check recipe.toml", "mixpo check recipe.toml --limit 100"),
    "plan": ("mixpo plan recipe.toml", "mixpo plan recipe.toml --questions 3000000 --rate 20000 --devices 8"),
    "doctor": ("mixpo doctor",),
    "status": ("mixpo status runs/recipe", "mixpo status runs/recipe --json"),
    "score": (
        "mixpo score runs/recipe --set evaluate.extractor=paper",
        "mixpo score --predictions output_gpt4.json --benchmark mathvista --extractor given",
    ),
    "compare": ("mixpo compare runs/a runs/b", "mixpo compare runs/a/evaluate/test/base/cot runs/a/evaluate/test/mpo/cot"),
    "view": ("mixpo view runs/recipe", "mixpo view runs/recipe --port 0"),
    "verify-run": ("mixpo verify-run runs/recipe", "mixpo verify-run runs/recipe --repair"),
    "retry": ("mixpo retry runs/recipe",),
    "audit": ("mixpo audit runs/recipe --count 50",),
    "gradients": ("mixpo gradients runs/recipe", "mixpo gradients runs/recipe --set train.batch_size=16"),
    "export": ("mixpo export runs/recipe --to pairs", "mixpo export runs/recipe --to pairs --format trl"),
    "push": ("mixpo push runs/recipe/models/mpo your-name/model --dry-run",),
}


def examples(command: str) -> str:
    """The text below the help of a command."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"mixpo {metadata.version('mixpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...
