"""Tables of the commands on standard output. Presentation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo.cli.output import line
from mixpo.cli.tables import table
from mixpo.plural import amount
from mixpo.progress import duration
from mixpo.report.table import filled_table, sampled_table
from mixpo.report.words import describe_counts, moment

if TYPE_CHECKING:
    from mixpo.commands.audit import Audited
    from mixpo.commands.check import Checked, Finding
    from mixpo.commands.gradients import Measured
    from mixpo.commands.plan import Estimate
    from mixpo.commands.verify_run import RunPart
    from mixpo.study.plan import PlannedRun
    from mixpo.train.gradients import GradientAgreement
    from mixpo.train.memory_plan import MemoryPlan

DUPLICATES_SHOWN = 20
"""Duplicate rows that `mixpo check` lists."""
ALIKE_SHOWN = 3
"""Rows with the same problem that `mixpo check` lists."""
LONGEST = 200
"""Characters of an extracted answer that are shown: models may write anything after "Final answer:"."""


def shortened(text: str) -> str:
    """The text, truncated to LONGEST characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def status(rows: Sequence[Mapping[str, Any]], models: Mapping[str, str] | None = None, report: dict[str, Any] | None = None) -> None:
    """The state of each stage of a run, where its trained models are, and the scores of the last report."""
    cells = [
        (
            row["stage"],
            row["state"],
            f"{row['done']}/{row['total']}",
            duration(row["seconds"]) if row["seconds"] else "",
            ", ".join(describe_counts(row["counts"])),
            "; ".join(row["why"]),
        )
        for row in rows
    ]
    table(("stage", "state", "shards", "time", "made", "why"), cells)
    for name, folder in (models or {}).items():
        line(f"model: {folder} ({name})")
    if report and report["models"]:
        current = any(row["stage"] == "report" and row["state"] == "done" for row in rows)
        line(f"\nreport of {moment(report['created'])}{'' if current else ', older than the stages above'}")
        for name in (None, *report["sets"]):
            table(*filled_table(report, name), title=f"set {name or report['set']}")
        if (sampled := sampled_table(report))[1]:
            table(*sampled, title="sampled responses")


def verified(parts: Sequence[RunPart]) -> None:
    """The parts of a run with their files, and every damaged one with its remedy."""
    rows = [(part.part, f"{part.files:,}", _size(part.bytes), str(len(part.damaged)) if part.damaged else "") for part in parts]
    total = sum(len(part.damaged) for part in parts)
    whole = (f"{sum(part.files for part in parts):,}", _size(sum(part.bytes for part in parts)), str(total) if total else "")
    table(("part", "files", "size", "damaged"), [*rows, ("all", *whole)])
    for damage in (damage for part in parts for damage in part.damaged):
        line(f"! {damage.path}: {damage.problem}; {damage.remedy}")
    if not total:
        line("every file is as it was written")


def estimates(rows: Sequence[Estimate], devices: int = 1) -> None:
    """The stages of a run with their cost. devices: how many share the work; some stages cannot be shared, so the time is a lower bound."""
    from mixpo.commands.plan import totals

    all_stages = totals(rows)
    cells = [
        (
            row.stage,
            "" if row is all_stages else f"{row.todo:,} of {amount(row.total, row.unit[:-1])}",
            *(f"{number:,}" if number else "" for number in (row.requests, row.tokens)),
            f"{row.seconds / 3600:,.2f}" if row.seconds else "",
            duration(row.seconds / devices) if row.seconds else "",
            _size(row.bytes),
            row.basis,
            row.why,
        )
        for row in (*rows, all_stages)
    ]
    table(
        ("stage", "to do", "requests", "tokens", "device hours", f"time on {amount(devices, 'device')}", "disk", "rates", "why"),
        cells,
        title="nothing was done; requests, tokens, time and disk are estimates",
    )


def memory(plan: MemoryPlan, devices: int) -> None:
    """The planned memory of a training by part, on each of `devices` GPUs: with a copy of the model, and sharded."""
    cells = [(name, _size(size), _size(size // devices if name in plan.SHARDED else size)) for name, size in asdict(plan).items()]
    cells.append(("all", _size(plan.total), _size(plan.total - plan.sharded + plan.sharded // devices)))
    table(("training memory", "copy on each GPU", f"FSDP2 on {amount(devices, 'GPU')}"), cells)


def audited(result: Audited) -> None:
    """Doubtful verdicts and the reason for the doubt."""
    rows = [
        (f"{row.question}[{row.index}]", row.gold, shortened(row.extracted or ""), f"{row.outcome}: {row.reason}", row.why, row.ending)
        for row in result.rows
    ]
    if rows:
        table(("answer", "ground truth", "extracted", "verdict", "reason for review", "end of the response"), rows)
    doubtful, by = sum(result.doubtful.values()), ", ".join(f"{name} {count:,}" for name, count in result.doubtful.items())
    line(f"{doubtful:,} of {amount(result.verdicts, 'verdict')} {'needs' if doubtful == 1 else 'need'} review" + (f": {by}" if by else ""))


def gradients(measured: Measured) -> None:
    """The agreement of gradients by kind of pair."""
    columns = ("", "pairs", "questions", "agreement", "95 % interval", "noise scale", "with all pairs")
    rows = [(row.kind, f"{row.pairs:,}", f"{row.questions:,}", *_agreement_cells(row)) for row in measured.kinds]
    table(columns, rows, title=f"{measured.objective}, {measured.questions:,} of {amount(measured.of, 'question')} with pairs")
    line(f"agreement: expected cosine between the gradients of two batches of {amount(measured.batch_size, 'pair')} (train.batch_size)")
    line("noise scale: pairs in a batch whose noise is as large as its gradient")


def _agreement_cells(row: GradientAgreement) -> tuple[str, str, str, str]:
    if row.agreement is None:
        return "too few", "", "", ""
    scale = "none found" if row.noise_scale is None else f"{row.noise_scale:,.0f} pairs"
    return f"{row.agreement:.2f}", f"{row.low:.2f} to {row.high:.2f}", scale, "" if row.direction is None else f"{row.direction:.2f}"


def study_plan(runs: Sequence[PlannedRun]) -> None:
    """Every run of a study, and how often each kind of stage is made."""
    from mixpo.study.plan import kind_table, run_table

    table(*run_table(runs), title="nothing was done; runs and their stages before the test sets are opened")
    table(*kind_table(runs), title="\nstages by kind")


def study(report: dict[str, Any], paths: Sequence[Path]) -> None:
    """The tables of scores in the compared mode, what the test sets saw, and where the files are."""
    from mixpo.study import tables

    for scored in report["sets"]:
        if scored["mode"] == report["mode"]:
            table(*tables.score_table(report, scored), title=f"\n{tables.heading(report, scored)}")
    line()
    for text in (tables.opening_text(report), tables.statistics_text(report), tables.sharing_text(report), *map(str, paths)):
        line(text)


def _size(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def checked(result: Checked) -> None:
    """The findings of `mixpo check`."""
    for notice in result.notices:
        line(f"{notice.where}: {notice.problem}")
    alike: dict[str, list[Finding]] = {}
    for finding in result.findings:
        alike.setdefault(finding.problem, []).append(finding)
    for problem, findings in alike.items():
        for finding in findings[:ALIKE_SHOWN]:
            # A problem that begins with its own key already names the place.
            line(problem if problem.startswith(finding.where) else f"{finding.where}: {problem}")
        if len(findings) > ALIKE_SHOWN:
            line(f"... and {amount(len(findings) - ALIKE_SHOWN, 'further row')} with the same problem; --json lists all")
    for row in result.left_out:
        line(f"{row.where}: filtered from training: {row.problem}")
    if result.left_out:
        line(f"{amount(len(result.left_out), 'row')} filtered: in the evaluation sets")
    for row in result.duplicates[:DUPLICATES_SHOWN]:
        line(f"{row.where}: {row.problem}")
    if len(result.duplicates) > DUPLICATES_SHOWN:
        line(f"{len(result.duplicates) - DUPLICATES_SHOWN:,} further duplicates; --json lists all")
    counted: dict[str, list[str]] = {}
    for name, count in {**result.counts, **result.notes}.items():
        where, _, what = name.rpartition(": ")
        counted.setdefault(where, []).append(amount(count, what.removesuffix("s")))
    for where, counts in counted.items():
        line(f"{where}: {', '.join(counts)}")
    count = len(result.findings)
    line(f"{amount(count, 'problem')} found" if count else "no problems found")
