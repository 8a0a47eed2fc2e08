"""Compares two evaluations: a paired test on the same questions; refused where settings other than the model differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mixpo.errors import EvaluateError
from mixpo.evaluate.benchmarks import BENCHMARKS
from mixpo.evaluate.benchmarks.metrics import FigureDifference
from mixpo.evaluate.benchmarks.metrics import differences as figure_differences
from mixpo.evaluate.grading import graded_row
from mixpo.evaluate.predictions import NO_ROW
from mixpo.evaluate.sampled import SampledDifference, compare_samples, sample_differences, score_samples
from mixpo.evaluate.score import UNREADABLE, Clusters, Comparison, comparable, compare, score
from mixpo.evaluate.statistics import cluster_of
from mixpo.plural import amount
from mixpo.records import Prediction
from mixpo.report.benchmarks import difference_cells, value_cell
from mixpo.report.table import TextTable
from mixpo.report.words import MODES, UNIT, accuracy, model_name, p_cell, points
from mixpo.run import Manifest, Run, Stage, changed_settings
from mixpo.stages.answer import source_name
from mixpo.stages.models import SERVED
from mixpo.types import Question

OWN = ("model", "seed", "data", "questions")
"""What may differ: the model is what is compared, and greedy answers do not use the seed. The data are compared question by question,
because their digest also tells how they lie in files."""


def compare_evaluations(first: Path, second: Path, anyway: bool = False) -> list[dict[str, Any]]:
    """One comparison for each set and mode that both have. `first` and `second`: run directories or single evaluations in them.

    Of two runs the main model of each is taken, the last that was evaluated. Where no question counts on both sides, because the judge
    could not be read, `problem` says so and the comparison's figures are None. Raises EvaluateError when there is nothing to compare,
    or when anything but the model differs and `anyway` is False.
    """
    left, right = dict(_evaluations(first)), dict(_evaluations(second))
    alone = len(left) == len(right) == 1 and _is_evaluation(first) and _is_evaluation(second)
    pairs = [(next(iter(left)), next(iter(right)))] if alone else [(key, key) for key in left if key in right]
    if not pairs:
        names = "; ".join(
            f"{path} has {', '.join('/'.join(key) for key in keys) or 'none'}" for path, keys in ((first, left), (second, right))
        )
        raise EvaluateError(f"no evaluation of the same set and mode is in both: {names}", code="nothing-to-compare")
    return [_compared(a, left[a], right[b], anyway) for a, b in pairs]


def _is_evaluation(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _evaluations(path: Path) -> Iterator[tuple[tuple[str, str], Stage]]:
    """The finished evaluations of a run by (set, mode), those of its last model; or the one that `path` is."""
    path = path.absolute()
    if _is_evaluation(path):
        if len(path.parts) < 5 or path.parts[-4] != "evaluate":
            raise EvaluateError(
                f"{path}: not an evaluation; give RUN/evaluate/SET/MODEL/MODE, or a run directory", code="not-an-evaluation", path=path
            )
        yield (path.parts[-3], path.name), Run(path.parents[3]).stage("/".join(path.parts[-4:]))
        return
    root = path / "evaluate"
    if not root.is_dir():
        raise EvaluateError(
            f"{path}: holds no evaluations; give a run directory in which `mixpo evaluate` has run", code="no-evaluations", path=path
        )
    for folder in sorted(root.glob("*")):
        stages = [Run(path).stage(file.parent.relative_to(path).as_posix()) for file in sorted(folder.glob("*/*/manifest.json"))]
        finished = [(stage, stage.manifest) for stage in stages if stage.manifest and stage.manifest.finished]
        for mode in dict.fromkeys(stage.name.rpartition("/")[2] for stage, _ in finished):
            # The main model is evaluated last; a run that trained nothing has the base model only.
            last = max((item for item in finished if item[0].name.endswith(f"/{mode}")), key=lambda item: (_rank(*item), item[1].started))
            yield (folder.name, mode), last[0]


def _rank(stage: Stage, manifest: Manifest) -> int:
    """Models of the run before those that a server lent."""
    return -1 if str(manifest.settings.get("model", "")).startswith(SERVED) else int(stage.name.split("/")[2] != "base")


def _compared(key: tuple[str, str], left: Stage, right: Stage, anyway: bool) -> dict[str, Any]:
    differences = differing(_manifest(left), _manifest(right))
    a, b = list(left.read_all(Prediction)), list(right.read_all(Prediction))
    differences += _other_questions({row.question for row in a}, {row.question for row in b})
    if differences and not anyway:
        raise EvaluateError(
            f"{left.folder} and {right.folder} were evaluated with different settings: {'; '.join(differences)}; "
            "evaluate both with the same settings, or compare anyway with --anyway",
            code="settings-differ",
            path=right.folder,
        )
    if anyway:
        shared = {row.question for row in a} & {row.question for row in b}
        a, b = [row for row in a if row.question in shared], [row for row in b if row.question in shared]
        if not shared:
            raise EvaluateError(f"{left.folder} and {right.folder} have no question in common", code="no-common-question")
    known = [_questions(stage) for stage in (left, right)]
    clusters = {question.id: cluster_of(question) for questions in known for question in questions.values()}
    sampled = key[1] == "sampled"
    sides = {
        side: asdict(score_samples(rows, clusters, known[0]) if sampled else score(rows, clusters))
        | {"model": stage.name.split("/")[2], "name": name}
        for side, rows, stage, name in zip("ab", (a, b), (left, right), _names(left, right), strict=True)
    }
    for side in sides.values():
        side.pop("domains", None)
    sure = comparable(a, b)
    test = compare_samples if sampled else compare
    return {
        "set": key[0],
        "mode": key[1],
        **sides,
        **(asdict(test(a, b, clusters)) if sure else dict.fromkeys(field.name for field in fields(Comparison)) | {"n": 0}),
        "problem": "" if sure else UNREADABLE,
        "figures": [asdict(figure) for figure in figures_of((left, right), (a, b), known, clusters)],
        "differences": differences,
        "notes": [_missing(side, rows) for side, rows in zip(sides.values(), (a, b), strict=True) if side["failed"]],
    }


def _names(left: Stage, right: Stage) -> list[str]:
    """What tells the two sides apart: the models' names, with those of their runs where they are the same."""
    runs, models = zip(*((stage.folder.parents[3], stage.name.split("/")[2]) for stage in (left, right)), strict=True)
    if models[0] != models[1] or runs[0] == runs[1]:
        return list(models)
    same = runs[0].name == runs[1].name
    return [f"{run if same else run.name}/{model}" for run, model in zip(runs, models, strict=True)]


def _questions(stage: Stage) -> dict[str, Question]:
    """The questions of an evaluation's set by id; none where the run no longer has them."""
    source = Run(stage.folder.parents[3]).stage(source_name(stage.name.split("/")[1]))
    return {question.id: question for question in source.read_all(Question)} if source.manifest is not None else {}


def _missing(side: Mapping[str, Any], rows: Sequence[Prediction]) -> str:
    never = f"{side['failed']} of {amount(side.get('samples', side['n']), 'answer')} of {side['name']} never came"
    how = "nowhere" if side["excluded"] > side["unread"] else "as not correct"
    counts = "counts" if side["failed"] == 1 else "count"
    absent = any(row.reason == NO_ROW for row in rows)
    remedy = "add them to the predictions file" if absent else "`mixpo retry` retries them"
    return f"{never} and {counts} {how}; {remedy}"


def _other_questions(a: set[str], b: set[str]) -> list[str]:
    """How many questions only one side was asked. A question is known by its content: text, images, answer and choices."""
    return [f"questions: {len(a - b)} are only in the first, {len(b - a)} only in the second"] if a != b else []


def figures_of(
    stages: Sequence[Stage], answers: Sequence[Sequence[Prediction]], known: Sequence[Mapping[str, Question]], clusters: Clusters
) -> Sequence[FigureDifference | SampledDifference]:
    """The published figures of a benchmark for the answers of both; none for other sets, and where questions are missing.

    Of sampled responses of any set: mean@n, pass@k and maj@k.
    """
    if stages[0].name.endswith("/sampled"):
        return sample_differences(answers[0], answers[1], clusters, known[0])
    names = {_manifest(stage).settings.get("benchmark") for stage in stages}
    if len(names) != 1 or (name := names.pop()) is None:
        return []
    if any(questions.keys() != {row.question for row in rows} for rows, questions in zip(answers, known, strict=True)):
        return []  # figures over a part of a benchmark would not be its figures
    a, b = ([graded_row(row, questions[row.question]) for row in rows] for rows, questions in zip(answers, known, strict=True))
    return figure_differences(BENCHMARKS[name], a, b)


def _manifest(stage: Stage) -> Manifest:
    manifest = stage.manifest
    if manifest is None or not manifest.finished:
        raise EvaluateError(
            f"{stage.folder}: this evaluation has not finished; run it first", code="evaluation-unfinished", path=stage.folder
        )
    return manifest


def differing(left: Manifest, right: Manifest) -> list[str]:
    """What differs between two evaluations other than their models, as text."""
    a, b = ({key: value for key, value in one.settings.items() if key not in OWN} for one in (left, right))
    return changed_settings(a, b)


def figure_table(comparisons: Sequence[Mapping[str, Any]]) -> TextTable:
    """The published figures of both sides."""
    rows = []
    for row in comparisons:
        for figure in row["figures"]:
            sides = [cell for side in ("a", "b") for cell in (model_name(row[side]["name"]), value_cell(figure[side], figure["unit"]))]
            rows.append((*_named(row), figure["name"], *sides, *difference_cells(figure)))
    return ("set", "answers", "figure", "A", "of A", "B", "of B", "B minus A", "95 % interval", "p", "n"), rows


def _named(row: Mapping[str, Any]) -> tuple[str, str]:
    """Set and kind of answers, as the other tables call them."""
    return row["set"], MODES.get(row["mode"], row["mode"])


def _test_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{points(row['low'])} to {points(row['high'])}"
    shares = [row[side]["no_answer"] for side in "ab"]
    unparsed = "" if None in shares else " / ".join(f"{100 * share:.1f}" for share in shares) + UNIT
    counts = [f"{row[name]:,}" for name in ("only_a", "only_b")]
    return points(row["difference"]), interval, p_cell(row["p"]), *counts, unparsed, f"{row['n']:,}"


def accuracy_table(comparisons: Sequence[Mapping[str, Any]]) -> TextTable:
    """The accuracies of both sides."""
    rows = []
    for row in comparisons:
        sides = [cell for side in (row["a"], row["b"]) for cell in (model_name(side["name"]), accuracy(side))]
        rows.append((*_named(row), *sides, *(("none", "", "", "", "", "", "0") if row["problem"] else _test_cells(row))))
    headings = ("set", "answers", "A", "accuracy", "B", "accuracy", "points", "95 % interval", "p", "only A right", "only B right")
    return (*headings, "no answer, A / B", "n"), rows
