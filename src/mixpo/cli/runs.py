"""The commands that work on a run directory. Each imports what it needs when called, so that `mixpo --help` is fast."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixpo.cli.app import INSPECT, USE, AsJson, RunFolder, Settings, app, examples
from mixpo.cli.boundary import boundary
from mixpo.cli.output import document, line
from mixpo.errors import RecipeError
from mixpo.plural import amount


@app.command(epilog=examples("status"), rich_help_panel=INSPECT)
def status(folder: RunFolder, as_json: AsJson = False) -> None:
    """Show the state of each stage: shards done, what is stale and why, counts, times."""
    with boundary():
        from mixpo.commands.status import status as read_status
        from mixpo.pipeline import open_run

        context = open_run(folder)
        state = read_status(context)
        if as_json:
            scores = {key: state.report[key] for key in ("created", "set", "models", "sets")} if state.report else None
            document({"run": str(folder), "stages": state.stages, "models": state.models, "scores": scores, "problem": context.models.gone})
            return
        from mixpo.cli import show

        show.status(state.stages, state.models, state.report)
        if context.models.gone:
            line(f"! the base model of this run is missing: {context.models.gone}")


@app.command("verify-run", epilog=examples("verify-run"), rich_help_panel=INSPECT)
def verify_run(
    folder: RunFolder,
    fix: Annotated[bool, typer.Option("--repair", help="Remove damaged files that `mixpo run` rebuilds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of a run against its recorded size and digest. Exit status 3 if one is damaged."""
    with boundary() as terminal:
        from mixpo.commands.verify_run import repair
        from mixpo.commands.verify_run import verify_run as verify_files

        parts = verify_files(folder, terminal.progress)
        damaged = [damage for part in parts for damage in part.damaged]
        left = repair(parts, folder) if fix else damaged
        if as_json:
            document({"run": str(folder), "parts": [asdict(part) for part in parts], "left": [asdict(damage) for damage in left]})
        else:
            from mixpo.cli import show

            show.verified(parts)
            if fix and len(left) < len(damaged):
                line(f"{amount(len(damaged) - len(left), 'damaged file')} removed; `mixpo run` makes what is missing")
        if left:
            raise typer.Exit(3)


@app.command(epilog=examples("score"), rich_help_panel=USE)
def score(
    folder: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory; not with --predictions.")] = None,
    settings: Settings = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Grade the responses of another tool; no model is needed.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option("--benchmark", metavar="NAME", help="The benchmark that FILE answers.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="File or folder of the benchmark; default: FILE itself."),
    ] = None,
    extractor: Annotated[str, typer.Option("--extractor", metavar="NAME", help="robust, paper, official, judge or given.")] = "robust",
    direct: Annotated[bool, typer.Option("--direct", help="The responses are direct answers, not chains of thought.")] = False,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split of the benchmark; default: the one usually reported.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Grade only the questions that FILE answers.")] = False,
    run: Annotated[Path | None, typer.Option("--dir", metavar="RUN", help="Run directory for the result; default: runs/<FILE>.")] = None,
) -> None:
    """Grade the saved answers of a run again under other settings, or those in a file of another tool. Samples nothing."""
    with boundary() as terminal:
        from mixpo.cli import results
        from mixpo.pipeline import open_context, open_run, rescore, run_recipe

        if (folder is None) == (predictions is None):
            message = "give a run directory, or --predictions FILE with --benchmark NAME"
            raise RecipeError(message, code="score-what", key="--predictions")
        if folder is not None:
            context = open_run(folder, tuple(settings or ()), terminal.progress)
            rescore(context)
        elif predictions is not None:
            from mixpo.commands.score import model_name, predictions_recipe

            if benchmark is None:
                message = "--predictions needs --benchmark NAME"
                raise RecipeError(message, code="score-benchmark-missing", key="--benchmark")
            recipe = predictions_recipe(
                predictions, benchmark, data, extractor=extractor, mode="direct" if direct else "cot", split=split, partial=partial,
                overrides=tuple(settings or ()),
            )  # fmt: skip
            root = run if run is not None else Path("runs") / model_name(predictions)
            context = open_context(recipe, Path.cwd(), root, terminal.progress)
            run_recipe(context)
        results.results(context.run.root)


@app.command(epilog=examples("compare"), rich_help_panel=INSPECT)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run directory, or one evaluation in it (RUN/evaluate/SET/MODEL/MODE).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What to compare it with.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare evaluations with different settings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations question by question. Refused where prompts, extractor, judge or data differ.

    Exit status 1 also where a set cannot be compared because its judge was unreadable; the other sets are still shown.
    """
    with boundary():
        from mixpo.cli.tables import table
        from mixpo.commands.compare import accuracy_table, compare_evaluations, figure_table

        comparisons = compare_evaluations(first, second, anyway)
        if as_json:
            document(comparisons)
        else:
            table(*accuracy_table(comparisons))
            if (figures := figure_table(comparisons))[1]:
                table(*figures, title="\nbenchmark metrics")
            for row in comparisons:
                for note in (*filter(None, [row["problem"]]), *row["differences"], *row["notes"]):
                    line(f"! {row['set']}, {row['mode']}: {note}")
        if any(row["problem"] for row in comparisons):
            raise typer.Exit(1)


@app.command(epilog=examples("view"), rich_help_panel=INSPECT)
def view(
    folder: RunFolder,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="Local port; 0 picks a free one.")] = 8765,
) -> None:
    """Browse a run: pairs, questions, verifier audit, training, evaluation. Serves this machine only."""
    with boundary() as terminal, suppress(KeyboardInterrupt):  # the usual way to stop it
        from mixpo.pipeline import open_run
        from mixpo.viewer.app import serve

        serve(open_run(folder), port, terminal.progress, lambda address: line(f"{folder}: {address} (Ctrl+C to stop)"))


@app.command(epilog=examples("retry"), rich_help_panel=USE)
def retry(folder: RunFolder) -> None:
    """Retry failed questions, and judge calls that were unreadable; `mixpo run` then updates the rest."""
    with boundary() as terminal:
        from mixpo.commands.retry import retry as retry_failed
        from mixpo.pipeline import open_run

        rows = retry_failed(open_run(folder, progress=terminal.progress))
        for row in rows:
            line(f"{row.stage}: {amount(row.asked, 'failed question')} retried, {row.failed:,} failed again")
        line("run the recipe again to use the new answers" if rows else "no failed questions; nothing to retry")


@app.command(epilog=examples("audit"), rich_help_panel=INSPECT)
def audit(
    folder: RunFolder,
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="Rows to show.")] = 20,
    number: Annotated[int, typer.Option("--round", min=1, metavar="N", help="The round whose verdicts are audited.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show doubtful verdicts for review: those that a second, independent check disagrees with."""
    with boundary() as terminal:
        from mixpo.commands.audit import audit as find_doubtful
        from mixpo.pipeline import open_run

        audited = find_doubtful(open_run(folder, progress=terminal.progress), count, number)
        if as_json:
            document(asdict(audited))
            return
        from mixpo.cli import show

        show.audited(audited)


@app.command(epilog=examples("gradients"), rich_help_panel=INSPECT)
def gradients(
    folder: RunFolder,
    questions: Annotated[int, typer.Option("--questions", min=2, metavar="N", help="Questions to measure, evenly spaced.")] = 256,
    number: Annotated[int, typer.Option("--round", min=1, metavar="N", help="The round whose pairs are measured.")] = 1,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure before training how far the gradients of pairs agree, by kind of pair."""
    with boundary() as terminal:
        from mixpo.commands.gradients import gradients as measure
        from mixpo.pipeline import open_run

        measured = measure(open_run(folder, tuple(settings or ()), terminal.progress), questions, number)
        if as_json:
            document(asdict(measured))
            return
        from mixpo.cli import show

        show.gradients(measured)


@app.command(epilog=examples("export"), rich_help_panel=USE)
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write.")],
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="mmpr, trl, ms-swift, llama-factory, datasets or trl-steps.")
    ] = "mmpr",
    number: Annotated[int, typer.Option("--round", min=1, metavar="N", help="The round whose pairs are exported.")] = 1,
    hub: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="With --format datasets: also upload to the Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make the dataset public.")] = False,
) -> None:
    """Export preference pairs, or step values, for other tools."""
    with boundary() as terminal:
        from mixpo.export.datasets import push as push_dataset
        from mixpo.export.run import STEPS
        from mixpo.export.run import export as export_pairs
        from mixpo.pipeline import open_run

        if hub is not None and form != "datasets":
            raise RecipeError("--push requires --format datasets", code="push-without-datasets", key="--push")
        context = open_run(folder, progress=terminal.progress)
        count, skipped = export_pairs(context, to, form, number)
        line(f"{amount(count, 'response' if form == STEPS else 'pair')} written to {to}")
        if skipped:
            turns = "they have earlier turns or a system message, which the format cannot hold"
            placeholder = f"their text contains a placeholder such as <image>, which {form} would replace with an image"
            undecided = "their text contains <image>, they have no decided verdict, or their question has earlier turns or a system message"
            reason = {"mmpr": turns, STEPS: undecided}.get(form, placeholder)
            line(f"{skipped:,} skipped: {reason}")
        if hub is not None:
            line(f"uploaded to {push_dataset(to, hub, private=not public)}")


@app.command(epilog=examples("push"), rich_help_panel=USE)
def push(
    model: Annotated[Path, typer.Argument(metavar="RUN/models/NAME", help="A trained model.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hugging Face Hub.")],
    licence: Annotated[
        str, typer.Option("--license", metavar="ID", help="License of the weights, such as apache-2.0; default: that of the base model.")
    ] = "",
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of the repository.")] = True,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only print the model card and the names of the files.")] = False,
) -> None:
    """Upload a trained model with a model card of its data, recipe and results."""
    with boundary():
        from mixpo.export.push import prepare
        from mixpo.export.push import push as upload_to_hub

        upload = prepare(model, repository, licence)
        if dry:
            line(upload.card)
            line("files: " + ", ".join(upload.files))
        else:
            line(upload_to_hub(upload, private))
