"""Tables of a study as text cells: for the page, the terminal, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixpo.plural import amount
from mixpo.progress import duration
from mixpo.report.table import TextTable
from mixpo.report.words import MODES, UNIT, count, domain_name, interval, model_name, moment, p_cell, percent, points
from mixpo.report.words import markdown as escaped
from mixpo.study.schema import BASE

ALPHA = 0.05
"""A difference is marked where its adjusted p is below this."""
GAIN, LOSS = "▲", "▼"


def title_of(report: Mapping[str, Any], variant: str) -> str:
    """What a variant is called in tables."""
    titles = {row["name"]: str(row["title"]) for row in report["variants"]}
    return titles.get(variant, model_name(BASE))


def heading(report: Mapping[str, Any], scored: Mapping[str, Any]) -> str:
    """What a table of scores is about."""
    role = "Test set" if scored["role"] == "test" else "Validation set"
    seeds = amount(len(report["seeds"]), "seed")
    return f"{role} {scored['set']}, {MODES[scored['mode']]}: {amount(scored['n'], 'question')}, {seeds}"


def score_table(report: Mapping[str, Any], scored: Mapping[str, Any]) -> TextTable:
    """One row for each variant."""
    headings = ("variant", "accuracy", "95 % interval", "by seed", "Δ", "95 % interval of Δ", "p (Holm)", "no final answer", "tokens")
    rows = []
    for name, scores in scored["variants"].items():
        difference = scores["difference"]
        against = (_marked(difference), _ends(difference), p_cell(difference["p_adjusted"])) if difference else ("", "", "")
        rows.append(
            (
                title_of(report, name),
                percent(scores["accuracy"]["mean"]),
                interval(scores["accuracy"]),
                ", ".join(f"{100 * value:.1f}" for value in scores["by_seed"]),
                *against,
                "" if scores["no_answer"] is None else percent(scores["no_answer"]),
                f"{scores['tokens']:.1f}",
            )
        )
    return headings, rows


def _marked(difference: Mapping[str, Any]) -> str:
    sign = "" if difference["p_adjusted"] >= ALPHA else f" {GAIN if difference['mean'] > 0 else LOSS}"
    return points(difference["mean"]) + sign


def _ends(difference: Mapping[str, Any]) -> str:
    return f"{points(difference['low'])} to {points(difference['high'])}"


def domain_table(report: Mapping[str, Any], scored: Mapping[str, Any]) -> TextTable | None:
    """One row for each domain, one column for each variant; None where there are no domains."""
    variants = scored["variants"]
    domains = next(iter(variants.values()))["domains"]
    if not domains:
        return None
    headings = ("domain", "questions", *(title_of(report, name) for name in variants))
    rows = [
        (domain_name(domain), count(domains[domain]["n"]), *(_domain_cell(scores["domains"][domain]) for scores in variants.values()))
        for domain in domains
    ]
    return headings, rows


def _domain_cell(scores: Mapping[str, Any]) -> str:
    share = percent(scores["accuracy"]["mean"])
    return f"{share} ({_marked(scores['difference'])})" if scores["difference"] else share


def run_table(report: Mapping[str, Any]) -> TextTable:
    """One row for each run, with what its model costs alone."""
    complete = _complete(report)
    rows = [
        (
            title_of(report, run["variant"]),
            str(run["seed"]),
            run["folder"],
            count(run["tokens"]),
            duration(run["seconds"]),
            run["failed"] or ("finished" if run["variant"] in complete else "unfinished"),
        )
        for run in report["runs"]
    ]
    return ("variant", "seed", "run", "sampled tokens", "time", "state"), rows


def _complete(report: Mapping[str, Any]) -> set[str]:
    """The variants that have results with every seed on all validation sets."""
    sets = [set(s["variants"]) for s in report["sets"] if s["role"] == "validation" and s["mode"] == report["mode"]]
    return set.intersection(*sets) if sets else set()


def variant_table(report: Mapping[str, Any]) -> TextTable:
    """What each variant sets."""
    rows = [(row["title"], row["name"], "; ".join(row["set"]) or "nothing") for row in report["variants"]]
    return ("variant", "name", "sets"), rows


def sharing_text(report: Mapping[str, Any]) -> str:
    """How much was made once instead of several times."""
    sharing = report["sharing"]
    return (
        f"{amount(sharing['stages_made'], 'stage')} made for {count(sharing['stages'])} in all runs: "
        f"{amount(sharing['tokens_made'], 'sampled token')} of {count(sharing['tokens'])}, "
        f"{duration(sharing['seconds_made'])} of {duration(sharing['seconds'])}. Equal stages are made once and linked."
    )


def opening_text(report: Mapping[str, Any]) -> str:
    """What the numbers mean: whether test sets were opened, when, and for whom."""
    opened = report["opened"]
    if not report["tests"]:
        return "This study has no test set. The best of many variants is better on the sets that chose it than it will be elsewhere."
    names = ", ".join(report["tests"])
    if opened is None:
        return f"The test sets ({names}) are closed: they are opened once, when every run has its validation results."
    tested = ", ".join(title_of(report, name) for name in opened["tested"])
    text = (
        f"The test sets ({names}) were opened once, on {moment(opened['opened'])}, after the validation results of "
        f"{amount(len(opened['ranking']), 'variant')}, for the variants that these chose and the baseline: {tested}. "
        "No model of this study had answered them before, and no other variant is evaluated on them."
    )
    added = [row["title"] for row in report["variants"] if row["added_after_opening"]]
    missing = [row["title"] for row in report["variants"] if row["missing_at_opening"]]
    text += f" Without results at that time: {', '.join(missing)}." if missing else ""
    return text + (f" Added to the study afterwards: {', '.join(added)}." if added else "")


def statistics_text(report: Mapping[str, Any]) -> str:
    """How intervals and p values are computed."""
    seeds = len(report["seeds"])
    over = (
        "Intervals (95 %) cover other seeds and other questions: seeds and images are random effects of a crossed layout."
        if seeds > 1
        else "With one seed, intervals (95 %) cover other questions only; another seed may differ by more."
    )
    return (
        f"Δ is the difference to {title_of(report, report['baseline'])} in points, paired by seed and question. {over} "
        f"p is adjusted for all comparisons of a table (Holm); {GAIN} or {LOSS} marks those below {ALPHA:g}."
    )


# --- Markdown and LaTeX --------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """All tables of scores as a Markdown document."""
    parts = [f"# {escaped(report['title'])}", opening_text(report), statistics_text(report)]
    for scored in report["sets"]:
        parts += [f"## {heading(report, scored)}", _markdown_table(score_table(report, scored))]
        if (domains := domain_table(report, scored)) is not None:
            parts.append(_markdown_table(domains))
    parts += ["## Runs", _markdown_table(run_table(report)), sharing_text(report), "## Variants", _markdown_table(variant_table(report))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: TextTable) -> str:
    headings, rows = table
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "−": r"$-$", "Δ": r"$\Delta$", GAIN: r"$\uparrow$", LOSS: r"$\downarrow$", UNIT[0]: "~",
}  # fmt: skip
"""What LaTeX reads otherwise than it is written."""


def latex(report: Mapping[str, Any]) -> str:
    """The tables of scores in the compared mode, for \\input; they need the package booktabs."""
    parts = [f"% {' '.join(report['title'].split())}; made by mixpo study, needs \\usepackage{{booktabs}}"]
    for scored in report["sets"]:
        if scored["mode"] != report["mode"]:
            continue
        parts.append(_latex_table(score_table(report, scored), heading(report, scored)))
        if (domains := domain_table(report, scored)) is not None:
            parts.append(_latex_table(domains, f"{heading(report, scored)}, by domain"))
    return "\n\n".join(parts) + "\n"


def _latex_table(table: TextTable, caption: str) -> str:
    headings, rows = table
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join(
        (
            r"\begin{table}",
            rf"\caption{{{_tex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(map(_tex, headings)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        )
    )


def _tex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
