"""The commands that work on a run directory. Each opens the run, calls one function of the library and shows what it gave."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from mixpo.cli import show
from mixpo.cli.app import LOOK, USE, AsJson, RunFolder, Settings, app
from mixpo.cli.boundary import boundary
from mixpo.cli.examples import examples
from mixpo.errors import RecipeError
from mixpo.plural import amount


@app.command(epilog=examples("status"), rich_help_panel=LOOK)
def status(folder: RunFolder, as_json: AsJson = False) -> None:
    """How far a run is: shards done, what is stale and why, counts, times."""
    from mixpo.commands.status import models
    from mixpo.commands.status import status as read_status
    from mixpo.pipeline import open_run

    with boundary():
        context = open_run(folder)
        rows, trained = read_status(context), models(context)
        if as_json:
            found = {"run": str(folder), "stages": rows, "models": trained, "problem": context.models.gone}
            show.document(found)
        else:
            show.status(rows, trained)
            if context.models.gone:
                show.line(f"! the model that this run started from is gone: {context.models.gone}")


@app.command(epilog=examples("score"), rich_help_panel=USE)
def score(folder: RunFolder, settings: Settings = None) -> None:
    """Mark the saved answers of a run again (--set evaluate.extractor=paper, another judge) and write its report. Samples nothing."""
    from mixpo.pipeline import known_sources, open_run, rescore

    with boundary() as terminal:
        context = replace(open_run(folder, tuple(settings or ())), progress=terminal.progress)
        rescore(context, known_sources(context.run, context.recipe))
        show.results(context.run.root)


@app.command(epilog=examples("compare"), rich_help_panel=LOOK)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run directory, or one evaluation in it (RUN/evaluate/SET/MODEL/MODE).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    anyway: Annotated[bool, typer.Option("--anyway", metavar="", help="Compare evaluations that were not made in the same way.")] = False,
    as_json: AsJson = False,
) -> None:
    """Paired comparison of two evaluations question by question. Refused where prompts, extractor, judge or data differ.

    Status 1 also where a set cannot be compared because its judge could not be read; the others are shown all the same.
    """
    from mixpo.commands.compare import COLUMNS, FIGURE_COLUMNS, cells, compare_evaluations, figure_cells

    with boundary():
        found = compare_evaluations(first, second, anyway)
        if as_json:
            show.document(found)
        else:
            show.table(COLUMNS, cells(found))
            if figures := figure_cells(found):
                show.table(FIGURE_COLUMNS, figures, title="\nfigures of benchmarks")
            for row in found:
                for note in (*filter(None, [row["problem"]]), *row["differences"], *row["notes"]):
                    show.line(f"! {row['set']}, {row['mode']}: {note}")
        if any(row["problem"] for row in found):
            raise typer.Exit(1)


@app.command(epilog=examples("view"), rich_help_panel=LOOK)
def view(
    folder: RunFolder,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port on this machine; 0 takes one that is free.")
    ] = 8765,
) -> None:
    """Look at a run in the browser: pairs, questions, audit of the verifier, training, evaluation. This machine only."""
    from mixpo.pipeline import open_run
    from mixpo.viewer.app import serve

    with boundary() as terminal, suppress(KeyboardInterrupt):  # its ordinary end
        serve(open_run(folder), port, terminal.progress, lambda address: show.line(f"{folder}: {address} (Ctrl+C ends)"))


@app.command(epilog=examples("retry"), rich_help_panel=USE)
def retry(folder: RunFolder) -> None:
    """Ask the failed questions of a run again, and the judge where it could not be read; `mixpo run` then does what follows."""
    from mixpo.commands.retry import retry as ask_again
    from mixpo.pipeline import open_run

    with boundary() as terminal:
        rows = ask_again(replace(open_run(folder), progress=terminal.progress))
        for row in rows:
            show.line(f"{row.stage}: {amount(row.asked, 'failed question')} asked again, {row.failed:,} failed once more")
        show.line("run the recipe again to go on with their answers" if rows else "no question failed; nothing to ask again")


@app.command(epilog=examples("audit"), rich_help_panel=LOOK)
def audit(
    folder: RunFolder,
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="Rows to show.")] = 20,
    number: Annotated[int, typer.Option("--round", min=1, metavar="N", help="The round whose verdicts are looked at.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show doubtful verdicts, which a second, independent check speaks against: the rows that are worth a look by a person."""
    from mixpo.commands.audit import audit as compare
    from mixpo.pipeline import open_run

    with boundary() as terminal:
        audited = compare(replace(open_run(folder), progress=terminal.progress), count, number)
        if as_json:
            show.document(asdict(audited))
        else:
            show.audited(audited)


@app.command(epilog=examples("export"), rich_help_panel=USE)
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.")],
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="mmpr, trl, ms-swift, llama-factory or datasets.")] = "mmpr",
    number: Annotated[int, typer.Option("--round", min=1, metavar="N", help="The round whose pairs are written.")] = 1,
    hub: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="With --format datasets: also upload to the Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", metavar="", help="With --push: everybody may see the data set.")] = False,
) -> None:
    """Write the preference pairs of a run for other tools."""
    from mixpo.export.datasets import push
    from mixpo.export.run import export as write
    from mixpo.pipeline import open_run

    with boundary() as terminal:
        if hub is not None and form != "datasets":
            raise RecipeError("--push requires --format datasets", code="push-without-datasets", key="--push")
        context = replace(open_run(folder), progress=terminal.progress)
        count, left_out = write(context, to, form, number)
        show.line(f"{amount(count, 'pair')} written to {to}")
        if left_out:
            show.line(f"{left_out:,} left out: their text holds a placeholder such as <image>, for which {form} would look for a picture")
        if hub is not None:
            show.line(f"uploaded to {push(to, hub, private=not public)}")


@app.command(epilog=examples("push"), rich_help_panel=USE)
def push(
    model: Annotated[Path, typer.Argument(metavar="RUN/models/NAME", help="A trained model.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where it goes on the Hugging Face Hub.")],
    licence: Annotated[
        str, typer.Option("--license", metavar="ID", help="Of the weights, such as apache-2.0; by default what the base model's card says.")
    ] = "",
    private: Annotated[bool, typer.Option("--private/--public", metavar="", help="Who can see it.")] = True,
    dry: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only show the card and name the files.")] = False,
) -> None:
    """Upload a trained model with a card that tells of data, recipe and results."""
    from mixpo.export.push import prepare
    from mixpo.export.push import push as upload_to_hub

    with boundary():
        upload = prepare(model, repository, licence)
        if dry:
            show.line(upload.card)
            show.line("files: " + ", ".join(upload.files))
        else:
            show.line(upload_to_hub(upload, private))
