"""The commands. Each opens its context, calls one function of the library and shows what it gave."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from mixpo.cli import show
from mixpo.cli.boundary import Terminal, boundary
from mixpo.errors import RecipeError
from mixpo.pipeline import open_context, run_recipe, run_stage
from mixpo.recipe import load
from mixpo.stages.base import Context
from mixpo.stages.report import current_report

app = typer.Typer(
    help="Preference data without human labels, and Mixed Preference Optimization, for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe.")]
Folder = Annotated[Path | None, typer.Option("--dir", metavar="RUN", help="Run directory; by default runs/<name of the recipe>.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Another value for a recipe key.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use the first N usable questions of every source.")]
Force = Annotated[list[str] | None, typer.Option("--force", metavar="STAGE", help="Do this stage and all after it again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what each stage would do, with an estimate of tokens, time and disk.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]


def _open(recipe: Path, folder: Path | None, settings: list[str] | None, limit: int | None, terminal: Terminal) -> Context:
    loaded = load(recipe, tuple(settings or ()))
    root = folder if folder is not None else Path("runs") / recipe.stem
    return open_context(loaded, recipe.parent.absolute(), root, terminal.progress, limit, terminal.ranks)


def _dry(context: Context) -> None:
    from mixpo.dryrun import dry_run

    show.estimates(dry_run(context))


@app.command("run")
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
        run_recipe(context, force or ())
        show.results(context.run.root)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="RUN", help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed.")] = None,
    settings: Settings = None,
    limit: Limit = None,
) -> None:
    """The whole loop on handwritten digits with the bundled tiny model: minutes on a laptop's CPU."""
    from importlib import resources

    with boundary(together=True) as terminal:
        changed = [*(settings or ()), *([f"seed={seed}"] if seed is not None else ())]
        context = _open(Path(str(resources.files("mixpo"))) / "assets" / "demo.toml", folder, changed, limit, terminal)
        run_recipe(context)
        show.results(context.run.root)


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

    app.command(name, help=summary)(command)


_stage_command("sample", ("sample", "continue"), "Only sample answers, and continuations without the image for open questions.")
_stage_command("verify", ("verify",), "Only judge the sampled answers.")
_stage_command("pair", ("pair", "select"), "Only build preference pairs.")
_stage_command("reference", ("reference",), "Only compute log-probs under the reference policy.")
_stage_command("train", ("train",), "Only train.")
_stage_command("evaluate", ("answer", "evaluate", "text"), "Only evaluate the models that are there.")
_stage_command("report", ("report",), "Only write the report of what is there.")


@app.command()
def check(recipe: RecipeFile, settings: Settings = None, limit: Limit = None) -> None:
    """Find what can be found wrong before the work: files, rows, images, model, template, lengths. Exit status 3 if anything is."""
    from mixpo.check import check as examine

    with boundary() as terminal:
        checked = examine(load(recipe, tuple(settings or ())), recipe.parent.absolute(), terminal.progress, limit)
        show.checked(checked)
        if checked.findings:
            raise typer.Exit(3)


@app.command()
def plan(
    recipe: RecipeFile,
    folder: Folder = None,
    settings: Settings = None,
    limit: Limit = None,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Plan for so many questions, none of them done.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Tokens that one device writes each second.")] = None,
    train_rate: Annotated[
        float | None, typer.Option("--train-rate", min=0.001, help="Tokens that one device trains on each second.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs (or machines) that work side by side.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """What a run will take before it runs: requests, tokens, device hours and disk of every stage.

    Rates are those measured by a small run in the same directory (`mixpo run RECIPE --limit 64`), or given, or assumed.
    """
    from mixpo.dryrun import Assumed, dry_run

    with boundary() as terminal:
        context = _open(recipe, folder, settings, limit, terminal)
        rows = dry_run(context, Assumed(questions=questions, rate=rate, train_rate=train_rate))
        if as_json:
            show.line(json.dumps({"devices": devices, "stages": [asdict(row) for row in rows]}, ensure_ascii=False, indent=2))
        else:
            show.planned(rows, devices)


@app.command()
def doctor() -> None:
    """Versions, devices, optional libraries, memory and disk. Exit status 1 if mixpo cannot work like this."""
    from mixpo.doctor import examine

    with boundary():
        lines = examine(Path.cwd())
        show.table(("", "", ""), [("!" if line.problem else "", line.topic, line.text) for line in lines])
        if any(line.problem for line in lines):
            raise typer.Exit(1)


@app.command()
def status(
    folder: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False
) -> None:
    """How far a run is: shards done, what is stale and why, counts, times."""
    from mixpo.pipeline import open_run
    from mixpo.status import models
    from mixpo.status import status as read_status

    with boundary():
        context = open_run(folder)
        rows, trained = read_status(context), models(context)
        if as_json:
            show.line(json.dumps({"run": str(folder), "stages": rows, "models": trained}, ensure_ascii=False, indent=2))
        else:
            show.status(rows, trained)


@app.command()
def score(folder: RunFolder, settings: Settings = None) -> None:
    """Mark the saved answers of a run again (--set evaluate.extractor=paper, another judge) and write its report. Samples nothing."""
    from mixpo.pipeline import known_sources, open_run, rescore

    with boundary() as terminal:
        context = replace(open_run(folder, tuple(settings or ())), progress=terminal.progress)
        rescore(context, known_sources(context.run, context.recipe))
        show.results(context.run.root)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run directory, or one evaluation in it (RUN/evaluate/SET/MODEL/MODE).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare evaluations that were not made in the same way.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Paired comparison of two evaluations question by question. Refused where prompts, extractor, judge or data differ."""
    from mixpo.compare import COLUMNS, FIGURE_COLUMNS, cells, compare_evaluations, figure_cells

    with boundary():
        found = compare_evaluations(first, second, anyway)
        if as_json:
            show.line(json.dumps(found, ensure_ascii=False, indent=2))
            return
        show.table(COLUMNS, cells(found))
        if figures := figure_cells(found):
            show.table(FIGURE_COLUMNS, figures, title="\nfigures of benchmarks")
        for row in found:
            for note in (*row["differences"], *row["notes"]):
                show.line(f"! {row['set']}, {row['mode']}: {note}")


@app.command()
def view(
    folder: RunFolder,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0 takes one that is free.")] = 8765,
) -> None:
    """Look at a run in the browser: pairs, questions, audit of the verifier, training, evaluation. This machine only."""
    from mixpo.pipeline import open_run
    from mixpo.viewer.serve import serve

    with boundary() as terminal:
        serve(open_run(folder), port, terminal.progress, lambda address: show.line(f"{folder}: {address} (Ctrl+C ends)"))


@app.command()
def retry(folder: RunFolder) -> None:
    """Ask the failed questions of a run again, of sampling and of evaluation, and only them; `mixpo run` then does what follows."""
    from mixpo.pipeline import open_run
    from mixpo.retry import retry as ask_again

    with boundary() as terminal:
        rows = ask_again(replace(open_run(folder), progress=terminal.progress))
        for row in rows:
            show.line(f"{row.stage}: {row.asked:,} failed questions asked again, {row.failed:,} failed once more")
        show.line("run the recipe again to go on with their answers" if rows else "no question failed; nothing to ask again")


@app.command()
def audit(
    folder: RunFolder,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Rows to show.")] = 20,
    number: Annotated[int, typer.Option("--round", min=1, help="The round whose verdicts are looked at.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Show doubtful verdicts, which a second, independent check speaks against: the rows that are worth a look by a person."""
    from dataclasses import asdict

    from mixpo.audit import audit as compare
    from mixpo.pipeline import open_run

    with boundary() as terminal:
        audited = compare(replace(open_run(folder), progress=terminal.progress), count, number)
        if as_json:
            show.line(json.dumps(asdict(audited), ensure_ascii=False, indent=2))
        else:
            show.audited(audited)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.")],
    form: Annotated[str, typer.Option("--format", help="mmpr, trl, ms-swift, llama-factory or datasets.")] = "mmpr",
    number: Annotated[int, typer.Option("--round", min=1, help="The round whose pairs are written.")] = 1,
    hub: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="With --format datasets: also upload to the Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may see the data set.")] = False,
) -> None:
    """Write the preference pairs of a run for other tools."""
    from mixpo.export import export as write
    from mixpo.pairs.hub import push
    from mixpo.pipeline import open_run

    with boundary() as terminal:
        if hub is not None and form != "datasets":
            raise RecipeError("--push uploads what --format datasets writes; give both")
        context = replace(open_run(folder), progress=terminal.progress)
        count = write(context, to, form, number)
        show.line(f"{count:,} pairs written to {to}")
        if hub is not None:
            show.line(f"uploaded to {push(to, hub, private=not public)}")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(metavar="RUN/models/NAME", help="A trained model.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where it goes on the Hugging Face Hub.")],
    licence: Annotated[str, typer.Option("--license", help="Of the weights; by default what the base model's card says.")] = "",
    private: Annotated[bool, typer.Option("--private/--public", help="Who can see it.")] = True,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only show the card and name the files.")] = False,
) -> None:
    """Upload a trained model with a card that tells of data, recipe and results."""
    from mixpo.push import prepare
    from mixpo.push import push as upload_to_hub

    with boundary():
        upload = prepare(model, repository, licence)
        if dry:
            show.line(upload.card)
            show.line("files: " + ", ".join(upload.files))
        else:
            show.line(upload_to_hub(upload, private))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        show.line(f"mixpo {metadata.version('mixpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...
