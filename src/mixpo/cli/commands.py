"""The commands that work on a recipe. Each imports what it needs when called, so that `mixpo --help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixpo.cli.app import WORK, AsJson, DryRun, Folder, Force, Limit, RecipeFile, Settings, app, examples
from mixpo.cli.boundary import Terminal, boundary
from mixpo.cli.output import document, line
from mixpo.errors import UnfinishedError

if TYPE_CHECKING:
    from mixpo.stages.job import Context


def _open(recipe: Path, folder: Path | None, settings: list[str] | None, limit: int | None, terminal: Terminal) -> Context:
    from mixpo.pipeline import open_context
    from mixpo.recipe import load

    loaded = load(recipe, tuple(settings or ()))
    root = folder if folder is not None else Path("runs") / recipe.stem
    return open_context(loaded, recipe.parent.absolute(), root, terminal.progress, limit, terminal.ranks)


def _run_all(context: Context, force: Sequence[str] = ()) -> None:
    """Run every stage and print the results, also when a part of the evaluation failed."""
    from mixpo.cli.results import results
    from mixpo.pipeline import run_recipe

    try:
        run_recipe(context, force)
    except UnfinishedError:
        results(context.run.root)
        raise
    results(context.run.root)


def _dry_run(context: Context, force: Sequence[str], until: str = "") -> None:
    from mixpo.cli import show
    from mixpo.commands.plan import dry_run
    from mixpo.stages.names import kind_of, kinds_until

    kinds = {"source", *kinds_until(until or "report")}
    show.estimates([row for row in dry_run(context, force=force) if kind_of(row.stage) in kinds])


def _run_until(context: Context, until: str, force: Sequence[str]) -> None:
    from mixpo.pipeline import run_until
    from mixpo.stages.names import kinds_until

    run_until(context, until, force)
    _show_stages(context, kinds_until(until))


def _show_stages(context: Context, kinds: Sequence[str]) -> None:
    from mixpo.cli import show
    from mixpo.commands.status import status
    from mixpo.stages.names import kind_of

    state = status(context)
    show.status([row for row in state.stages if kind_of(row["stage"]) in kinds], state.models if "train" in kinds else None)


@app.command("run", epilog=examples("run"), rich_help_panel=WORK)
def run_command(
    recipe: RecipeFile,
    folder: Folder = None,
    settings: Settings = None,
    limit: Limit = None,
    force: Force = None,
    until: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage (sample, verify, pair, ...).")] = "",
    dry: DryRun = False,
) -> None:
    """Run all stages: sample, verify, pair, train, evaluate, report. Finished stages are reused."""
    with boundary(together=True) as terminal:
        context = _open(recipe, folder, settings, limit, terminal)
        if dry:
            _dry_run(context, force or (), until)
        elif until:
            _run_until(context, until, force or ())
        else:
            _run_all(context, force or ())


@app.command(epilog=examples("study"), rich_help_panel=WORK)
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study.")],
    folder: Annotated[Path | None, typer.Option("--dir", metavar="STUDY", help="Directory; default: studies/<name of the file>.")] = None,
    settings: Settings = None,
    limit: Limit = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Runs side by side, each in a process of its own.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Do only this variant, or this run; repeatable. Writes no tables.")
    ] = None,
    despite_failures: Annotated[
        bool, typer.Option("--despite-failures", help="Open the test sets although runs failed; their variants are never tested.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print all runs and which of their stages are shared; do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run variants of a recipe over seeds and compare them; equal stages run once."""
    with boundary() as terminal:
        from mixpo.cli import show
        from mixpo.study.execute import named, perform, run_study, unfinished
        from mixpo.study.render import write
        from mixpo.study.results import ranking, results
        from mixpo.study.schema import load_study

        loaded = load_study(file, tuple(settings or ()), limit)
        root = folder if folder is not None else Path("studies") / file.stem
        if dry:
            from mixpo.study.plan import plan_study

            show.study_plan(plan_study(loaded, root, terminal.progress))
            return
        if only:
            for run in named(loaded, only):
                perform(loaded, run, root, terminal.progress)
            return
        failures = run_study(loaded, root, terminal.progress, lambda: ranking(loaded, root), jobs=jobs, despite_failures=despite_failures)
        report = results(loaded, root, failures)
        paths = write(root, report)
        if as_json:
            document(report)
        else:
            show.study(report, paths)
        if failures:
            raise unfinished(loaded, failures)


@app.command(epilog=examples("demo"), rich_help_panel=WORK)
def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="RUN", help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed.")] = None,
    settings: Settings = None,
    limit: Limit = None,
) -> None:
    """Run all stages on handwritten digits with the bundled tiny model: minutes on a laptop CPU."""
    with boundary(together=True) as terminal:
        from mixpo.recipe.load import demo_recipe

        overrides = [*(settings or ()), *([f"seed={seed}"] if seed is not None else ())]
        _run_all(_open(demo_recipe(), folder, overrides, limit, terminal))


def _stage_command(name: str, kinds: tuple[str, ...], summary: str) -> None:
    def command(
        recipe: RecipeFile, folder: Folder = None, settings: Settings = None, limit: Limit = None, force: Force = None, dry: DryRun = False
    ) -> None:
        with boundary(together=True) as terminal:
            context = _open(recipe, folder, settings, limit, terminal)
            if dry:
                _dry_run(context, force or ())
            else:
                _run_stage(name, context, kinds, force or ())

    app.command(name, help=summary, epilog=examples(name), rich_help_panel=WORK)(command)


def _run_stage(name: str, context: Context, kinds: Sequence[str], force: Sequence[str]) -> None:
    from mixpo.cli import results
    from mixpo.pipeline import run_stage
    from mixpo.stages.names import kinds_until
    from mixpo.stages.report import current_report

    if name == "train" and context.recipe.source is None:
        kinds = kinds_until(name)  # ready-made pairs need no command of their own before
    plan = run_stage(context, kinds, force)
    if name == "report":
        results.results(context.run.root)
        return
    _show_stages(context, kinds)
    if name == "evaluate":
        results.scores(current_report(context, plan))


_stage_command("sample", ("sample", "continue"), "Only sample answers, and continuations without the image for open questions.")
_stage_command("verify", ("verify",), "Only verify the sampled answers.")
_stage_command("branch", ("branch", "value"), "Only continue cut responses, and verify (pairs.branches).")
_stage_command("pair", ("pair", "select"), "Only build preference pairs.")
_stage_command("reference", ("reference",), "Only compute log-probs under the reference policy.")
_stage_command("train", ("train",), "Only train; with [[preferences]] alone, also what training needs.")
_stage_command("evaluate", ("answer", "evaluate", "text"), "Only evaluate the models that are available.")
_stage_command("report", ("report",), "Only write the report of the finished stages.")


@app.command(epilog=examples("init"), rich_help_panel=WORK)
def init(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.toml|NAME", help="File to write; its folder is searched. Or the name of a shipped one to copy here."
        ),
    ] = Path("recipe.toml"),
    listed: Annotated[bool, typer.Option("--list", help="List the files that come with mixpo.")] = False,
) -> None:
    """Write a commented recipe for the data and models in a folder, or copy one that comes with mixpo."""
    with boundary():
        from mixpo.commands.init import FOLDERS, copy_shipped, describe, shipped
        from mixpo.commands.init import init as write_recipe

        if listed:
            from mixpo.cli.tables import table

            table(("recipe", ""), [*((name, describe(path)) for name, path in shipped().items()), *FOLDERS.items()])
            return
        if not target.suffix and target.name == str(target):
            copied = copy_shipped(target.name, Path.cwd())
            line(f"{copied.name} written" + ("" if copied.is_dir() else f"; next: mixpo check {copied.name}"))
            return
        for text in write_recipe(target.absolute().parent, target):
            line(text)
        line(f"{target} written; next: mixpo check {target}")


@app.command(epilog=examples("check"), rich_help_panel=WORK)
def check(recipe: RecipeFile, settings: Settings = None, limit: Limit = None, as_json: AsJson = False) -> None:
    """Validate a recipe before the run: files, rows, images, model, template, lengths. Exit status 3 if there are problems."""
    with boundary() as terminal:
        from mixpo.commands.check import check as examine
        from mixpo.recipe import load

        checked = examine(load(recipe, tuple(settings or ())), recipe.parent.absolute(), terminal.progress, limit)
        if as_json:
            lists = {
                "findings": checked.findings,
                "left_out": checked.left_out,
                "duplicates": checked.duplicates,
                "notices": checked.notices,
            }
            rows = {name: [asdict(finding) for finding in findings] for name, findings in lists.items()}
            counts: dict[str, int] = {**checked.counts, **checked.notes}
            document({**rows, "counts": counts})
        else:
            from mixpo.cli import show

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
        int | None, typer.Option("--questions", min=1, metavar="N", help="Plan for N questions, none of them done.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, metavar="X", help="Generated tokens per second and device.")] = None,
    train_rate: Annotated[
        float | None, typer.Option("--train-rate", min=0.001, metavar="X", help="Trained tokens per second and device.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, metavar="N", help="Number of GPUs or machines in parallel.")] = 1,
    memory: Annotated[bool, typer.Option("--memory", help="Also plan the memory of training, by part.")] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate a run before it starts: requests, tokens, device hours and disk of every stage.

    Rates are those measured by a small run in the same directory (`mixpo run RECIPE --limit 64`), or given, or assumed.
    """
    with boundary() as terminal:
        from mixpo.commands.plan import dry_run
        from mixpo.commands.rates import Assumed

        context = _open(recipe, folder, settings, limit, terminal)
        rows = dry_run(context, Assumed(questions=questions, rate=rate, train_rate=train_rate))
        planned = None
        if memory:
            from mixpo.commands.memory import training_memory

            planned = training_memory(context)
        if as_json:
            more = {} if planned is None else {"memory": asdict(planned)}
            document({"devices": devices, "stages": [asdict(row) for row in rows], **more})
            return
        from mixpo.cli import show

        show.estimates(rows, devices)
        if planned is not None:
            show.memory(planned, devices)


@app.command(epilog=examples("doctor"), rich_help_panel=WORK)
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, optional libraries, memory and disk. Exit status 1 if mixpo cannot run here."""
    with boundary():
        from mixpo.cli.tables import table
        from mixpo.commands.doctor import examine

        rows = examine(Path.cwd())
        if as_json:
            document([asdict(row) for row in rows])
        else:
            table(("", "", ""), [("!" if row.problem else "", row.topic, row.text) for row in rows])
        if any(row.problem for row in rows):
            raise typer.Exit(1)
