"""The commands that work on a recipe. Each opens its context, calls one function of the library and shows what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixpo.cli import show
from mixpo.cli.app import WORK, AsJson, DryRun, Folder, Force, Limit, RecipeFile, Settings, app
from mixpo.cli.boundary import Terminal, boundary
from mixpo.cli.examples import examples
from mixpo.errors import UnfinishedError
from mixpo.pipeline import open_context, run_recipe, run_stage
from mixpo.recipe import load
from mixpo.stages.job import Context
from mixpo.stages.report import current_report


def _open(recipe: Path, folder: Path | None, settings: list[str] | None, limit: int | None, terminal: Terminal) -> Context:
    loaded = load(recipe, tuple(settings or ()))
    root = folder if folder is not None else Path("runs") / recipe.stem
    return open_context(loaded, recipe.parent.absolute(), root, terminal.progress, limit, terminal.ranks)


def _whole(context: Context, force: Sequence[str] = ()) -> None:
    """Run everything and show the results; also those of a run whose evaluation is not whole."""
    try:
        run_recipe(context, force)
    except UnfinishedError:
        show.results(context.run.root)
        raise
    show.results(context.run.root)


def _dry(context: Context) -> None:
    from mixpo.commands.plan import dry_run

    show.estimates(dry_run(context))


@app.command("run", epilog=examples("run"), rich_help_panel=WORK)
def run_command(
    recipe: RecipeFile,
    folder: Folder = None,
    settings: Settings = None,
    limit: Limit = None,
    force: Force = None,
    dry: DryRun = False,
) -> None:
    """Do everything: questions, answers, verdicts, pairs, training, evaluation, report. What is done is not done again."""
    with boundary(together=True) as terminal:
        context = _open(recipe, folder, settings, limit, terminal)
        if dry:
            _dry(context)
            return
        _whole(context, force or ())


@app.command(epilog=examples("demo"), rich_help_panel=WORK)
def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="RUN", help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Another seed.")] = None,
    settings: Settings = None,
    limit: Limit = None,
) -> None:
    """The whole loop on handwritten digits with the bundled tiny model: minutes on a laptop's CPU."""
    from importlib import resources

    with boundary(together=True) as terminal:
        changed = [*(settings or ()), *([f"seed={seed}"] if seed is not None else ())]
        context = _open(Path(str(resources.files("mixpo"))) / "assets" / "demo.toml", folder, changed, limit, terminal)
        _whole(context)


def _stage_command(name: str, kinds: tuple[str, ...], summary: str) -> None:
    def command(
        recipe: RecipeFile, folder: Folder = None, settings: Settings = None, limit: Limit = None, force: Force = None, dry: DryRun = False
    ) -> None:
        with boundary(together=True) as terminal:
            context = _open(recipe, folder, settings, limit, terminal)
            if dry:
                _dry(context)
                return
            plan = run_stage(context, kinds, force or ())
            if name == "report":
                show.results(context.run.root)
            elif name == "evaluate":
                show.stages(context, kinds)
                show.scores(current_report(context, plan))
            else:
                show.stages(context, kinds)

    app.command(name, help=summary, epilog=examples(name), rich_help_panel=WORK)(command)


_stage_command("sample", ("sample", "continue"), "Only sample answers, and continuations without the image for open questions.")
_stage_command("verify", ("verify",), "Only judge the sampled answers.")
_stage_command("pair", ("pair", "select"), "Only build preference pairs.")
_stage_command("reference", ("reference",), "Only compute log-probs under the reference policy.")
_stage_command("train", ("train",), "Only train.")
_stage_command("evaluate", ("answer", "evaluate", "text"), "Only evaluate the models that are there.")
_stage_command("report", ("report",), "Only write the report of what is there.")


@app.command(epilog=examples("check"), rich_help_panel=WORK)
def check(recipe: RecipeFile, settings: Settings = None, limit: Limit = None, as_json: AsJson = False) -> None:
    """Find what can be found wrong before the work: files, rows, images, model, template, lengths. Exit status 3 if anything is."""
    from mixpo.commands.check import check as examine

    with boundary() as terminal:
        checked = examine(load(recipe, tuple(settings or ())), recipe.parent.absolute(), terminal.progress, limit)
        if as_json:
            lists = {"findings": checked.findings, "left_out": checked.left_out}
            found = {name: [asdict(finding) for finding in rows] for name, rows in lists.items()}
            counts: dict[str, int] = {**checked.counts, **checked.notes}
            show.document({**found, "counts": counts})
        else:
            show.checked(checked)
        if checked.findings:
            raise typer.Exit(3)


@app.command(epilog=examples("plan"), rich_help_panel=WORK)
def plan(
    recipe: RecipeFile,
    folder: Folder = None,
    settings: Settings = None,
    limit: Limit = None,
    questions: Annotated[
        int | None, typer.Option("--questions", min=1, metavar="N", help="Plan for so many questions, none of them done.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, metavar="X", help="Tokens that one device writes each second.")] = None,
    train_rate: Annotated[
        float | None, typer.Option("--train-rate", min=0.001, metavar="X", help="Tokens that one device trains on each second.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, metavar="N", help="GPUs (or machines) that work side by side.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What a run will take before it runs: requests, tokens, device hours and disk of every stage.

    Rates are those measured by a small run in the same directory (`mixpo run RECIPE --limit 64`), or given, or assumed.
    """
    from mixpo.commands.plan import Assumed, dry_run

    with boundary() as terminal:
        context = _open(recipe, folder, settings, limit, terminal)
        rows = dry_run(context, Assumed(questions=questions, rate=rate, train_rate=train_rate))
        if as_json:
            show.document({"devices": devices, "stages": [asdict(row) for row in rows]})
        else:
            show.planned(rows, devices)


@app.command(epilog=examples("doctor"), rich_help_panel=WORK)
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, optional libraries, memory and disk. Exit status 1 if mixpo cannot work like this."""
    from mixpo.commands.doctor import examine

    with boundary():
        lines = examine(Path.cwd())
        if as_json:
            show.document([asdict(line) for line in lines])
        else:
            show.table(("", "", ""), [("!" if line.problem else "", line.topic, line.text) for line in lines])
        if any(line.problem for line in lines):
            raise typer.Exit(1)
