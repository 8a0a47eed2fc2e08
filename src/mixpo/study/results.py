"""The numbers of a study as data: what is finished of each run, scored over seeds and questions. Makes nothing in the runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mixpo.errors import MixpoError
from mixpo.evaluate.score import credit, is_judged, no_answer_share
from mixpo.evaluate.statistics import Floats, cluster_of, crossed_mean, holm
from mixpo.pipeline import build_plan
from mixpo.progress import Silent
from mixpo.records import Prediction
from mixpo.report.build import plain
from mixpo.run import now
from mixpo.stages.answer import source_name
from mixpo.stages.job import Plan
from mixpo.stages.names import kind_of
from mixpo.study.execute import Failures, Opening, open_study_run, read_choice
from mixpo.study.schema import BASE, LoadedStudy, StudyRun
from mixpo.types import Question

VERSION = 1
"""Version of study.json; it rises when a key changes its meaning or goes away."""
MAKING = ("sample", "continue", "verify", "branch", "value", "pair", "select", "reference", "train")
"""Kinds of stages that make a model; their time and tokens are what a variant costs."""

Rows = list[Prediction]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What is there of a run. predictions: by (set, model, mode), finished ones. stages: finished ones, by (name, shards)."""

    run: StudyRun
    plan: Plan | None
    stages: Mapping[tuple[str, tuple[str, ...]], tuple[float, int]]

    def predictions(self, name: str, model: str, mode: str) -> Rows | None:
        """The rows of a finished evaluation, or None."""
        planned = self.plan.planned.get(f"evaluate/{name}/{model}/{mode}") if self.plan is not None else None
        return list(planned.stage.read_all(Prediction)) if planned is not None and planned.finished() else None

    def cost(self) -> tuple[float, int]:
        """Seconds and sampled tokens of the stages that make the model, shared or not."""
        making = [cost for (name, _), cost in self.stages.items() if kind_of(name) in MAKING]
        return sum(seconds for seconds, _ in making), sum(tokens for _, tokens in making)


def finished_runs(study: LoadedStudy, root: Path) -> list[FinishedRun]:
    """Every run with what is finished of it."""
    return [_finished(study, run, root) for run in study.runs]


def _finished(study: LoadedStudy, run: StudyRun, root: Path) -> FinishedRun:
    context = open_study_run(study, run, root, Silent())
    try:
        plan = build_plan(context)
    except MixpoError:
        return FinishedRun(run=run, plan=None, stages={})
    stages = {}
    for name, planned in plan.planned.items():
        manifest = planned.stage.manifest
        if manifest is not None and manifest.shards and planned.finished():
            tokens = manifest.counts.get("tokens", 0) if planned.job.kind in ("sample", "continue", "branch") else 0
            stages[name, tuple(manifest.shards)] = (manifest.seconds, tokens)
    return FinishedRun(run=run, plan=plan, stages=stages)


def ranking(study: LoadedStudy, root: Path) -> list[tuple[str, float]]:
    """The variants whose runs have all finished on the validation sets, with their mean accuracy over sets, questions and seeds."""
    runs, mode = finished_runs(study, root), study.table.compare.mode
    means: dict[str, list[float]] = defaultdict(list)
    for name in study.validation_names:
        for variant, answers in _answers(study, runs, name, mode).items():
            means[variant].append(answers.mean())
    return [
        (v.name, sum(means[v.name]) / len(means[v.name])) for v in study.table.variants if len(means[v.name]) == len(study.table.validation)
    ]


def results(study: LoadedStudy, root: Path, failures: Failures) -> dict[str, Any]:
    """Everything of study.json (see docs/studies.md)."""
    runs, choice, table = finished_runs(study, root), read_choice(study, root), study.table
    shown = [(name, "validation") for name in study.validation_names]
    shown += [(name, "test") for name in study.test_names] if choice is not None else []
    modes = [table.compare.mode, *(mode for mode in ("cot", "direct", "sampled") if mode != table.compare.mode)]
    report = {
        "version": VERSION,
        "title": study.title,
        "created": now(),
        "study": str(study.path),
        "recipe": table.recipe,
        "baseline": table.compare.baseline,
        "mode": table.compare.mode,
        "seeds": table.seeds,
        "limit": study.limit,
        "set": [*table.set, *study.settings],
        "variants": [_variant(study, variant.name, choice) for variant in table.variants],
        "opened": asdict(choice) if choice is not None else None,
        "tests": study.test_names,
        "sets": [scored for (name, role), mode in product(shown, modes) if (scored := _set(study, runs, name, role, mode)) is not None],
        "runs": [_run(finished, failures) for finished in runs],
        "sharing": _sharing(runs),
    }
    result: dict[str, Any] = plain(report)
    return result


def _variant(study: LoadedStudy, name: str, choice: Opening | None) -> dict[str, Any]:
    variant = study.runs_of(name)[0].variant
    known = choice is not None and name in {*choice.missing, *(row[0] for row in choice.ranking)}
    return {
        "name": name,
        "title": variant.title or name,
        "set": variant.set,
        "tested": choice is not None and name in choice.tested,
        "added_after_opening": choice is not None and not known,
        "missing_at_opening": choice is not None and name in choice.missing,
    }


def _run(finished: FinishedRun, failures: Failures) -> dict[str, Any]:
    seconds, tokens = finished.cost()
    return {
        "name": finished.run.name,
        "variant": finished.run.variant.name,
        "seed": finished.run.seed,
        "folder": f"runs/{finished.run.name}",
        "stages": len(finished.stages),
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "failed": failures.get(finished.run.name, ""),
    }


def _sharing(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Stages, sampled tokens and time: of all runs, and those really spent, because equal stages are made once."""
    each = [item for finished in runs for item in finished.stages.items()]
    once = dict(each)
    return {
        "stages": len(each),
        "stages_made": len(once),
        "tokens": sum(tokens for _, (_, tokens) in each),
        "tokens_made": sum(tokens for _, tokens in once.values()),
        "seconds": round(sum(seconds for _, (seconds, _) in each), 3),
        "seconds_made": round(sum(seconds for seconds, _ in once.values()), 3),
    }


# --- one set -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of one variant with all seeds. credits: (S, Q) by seed and question; rows: all predictions of each seed."""

    questions: tuple[str, ...]
    credits: Floats
    rows: tuple[Rows, ...]

    def mean(self) -> float:
        return float(self.credits.mean())

    def of(self, questions: Sequence[str]) -> Floats:
        """The credits of some questions."""
        position = {question: number for number, question in enumerate(self.questions)}
        return self.credits[:, [position[question] for question in questions]]


def _answers(study: LoadedStudy, runs: Sequence[FinishedRun], name: str, mode: str) -> dict[str, Answers]:
    """By variant, the base model first; only those that have every seed. Questions that a judge could not grade count nowhere."""
    rows: dict[str, list[Rows]] = {}
    # The base model as the baseline's recipe asks it; it answers in the runs of every variant.
    asked = study.table.compare.baseline if study.table.compare.baseline != BASE else study.table.variants[0].name
    models = {BASE: [(finished, BASE) for finished in runs if finished.run.variant.name == asked]}
    for variant in study.table.variants:
        models[variant.name] = [(finished, finished.run.model) for finished in runs if finished.run.variant.name == variant.name]
    for variant_name, of_seeds in models.items():
        each = [finished.predictions(name, model, mode) for finished, model in of_seeds]
        if len(known := [one for one in each if one]) == len(study.table.seeds):
            rows[variant_name] = known
    judged = any(is_judged(one) for of_seeds in rows.values() for one in of_seeds)
    credits = {variant: [_credits(one, judged) for one in of_seeds] for variant, of_seeds in rows.items()}
    every = [set(one) for of_seeds in credits.values() for one in of_seeds]
    questions = tuple(sorted(set.intersection(*every))) if every else ()
    if not questions:
        return {}
    return {
        variant: Answers(
            questions=questions, credits=np.array([[one[q] for q in questions] for one in of_seeds]), rows=tuple(rows[variant])
        )
        for variant, of_seeds in credits.items()
    }


def _credits(rows: Iterable[Prediction], judged: bool) -> dict[str, float]:
    """What each question counts: the mean over its answers."""
    values: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        values[row.question].append(credit(row, judged))
    known = {question: [value for value in each if value is not None] for question, each in values.items()}
    return {question: math.fsum(each) / len(each) for question, each in known.items() if each}


def _set(study: LoadedStudy, runs: Sequence[FinishedRun], name: str, role: str, mode: str) -> dict[str, Any] | None:
    """The scores of one set in one mode; None where no variant has them."""
    answers = _answers(study, runs, name, mode)
    if not answers:
        return None
    questions = next(iter(answers.values())).questions
    known = _questions(runs, name)
    clusters = [cluster_of(known[question]) if question in known else question for question in questions]
    domains = {row.question: row.domain for row in next(iter(answers.values())).rows[0]}
    baseline = study.table.compare.baseline
    scores = {
        variant: _scores(one, answers.get(baseline) if variant != baseline else None, clusters, domains) for variant, one in answers.items()
    }
    _adjust([s["difference"] for s in scores.values() if s["difference"]])
    _adjust([d["difference"] for s in scores.values() for d in s["domains"].values() if d["difference"]])
    return {"set": name, "mode": mode, "n": len(questions), "clusters": len(set(clusters)), "variants": scores, "role": role}


def _questions(runs: Sequence[FinishedRun], name: str) -> dict[str, Question]:
    for finished in runs:
        if finished.plan is not None and (stage := finished.plan.run.stage(source_name(name))).manifest is not None:
            return {question.id: question for question in stage.read_all(Question)}
    return {}


def _scores(answers: Answers, baseline: Answers | None, clusters: Sequence[str], domains: Mapping[str, str]) -> dict[str, Any]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(answers.questions):
        groups[domains[question]].append(number)
    every = [row for rows in answers.rows for row in rows]
    # The two of one seed share their samples and differ in one thing only: paired by seed and by question.
    gains = answers.credits - baseline.credits if baseline is not None else None
    return {
        "accuracy": asdict(crossed_mean(answers.credits, clusters)),
        "by_seed": [float(value) for value in answers.credits.mean(axis=1)],
        "difference": _difference(gains, clusters, [*range(len(clusters))]),
        "no_answer": no_answer_share(every),
        "truncated": sum(row.finish == "length" for row in every) / len(every),
        "tokens": sum(row.tokens for row in every) / len(every),
        "domains": {
            domain: {
                "n": len(chosen),
                "accuracy": asdict(crossed_mean(answers.credits[:, chosen], [clusters[number] for number in chosen])),
                "difference": _difference(gains, clusters, chosen),
            }
            for domain, chosen in sorted(groups.items())
            if len(groups) > 1
        },
    }


def _difference(gains: Floats | None, clusters: Sequence[str], chosen: Sequence[int]) -> dict[str, Any] | None:
    if gains is None:
        return None
    return asdict(crossed_mean(gains[:, chosen], [clusters[number] for number in chosen], difference=True))


def _adjust(differences: Sequence[dict[str, Any]]) -> None:
    """Add the p values adjusted for all comparisons of a table."""
    for difference, p in zip(differences, holm([difference["p"] for difference in differences]), strict=True):
        difference["p_adjusted"] = p
