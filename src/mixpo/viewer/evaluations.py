"""What the models answered on each evaluation set, read from the stages themselves, so that half an evaluation shows what it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixpo.evaluate.sampled import score_samples
from mixpo.evaluate.score import score
from mixpo.evaluate.statistics import cluster_of
from mixpo.records import Prediction, read_row, read_rows
from mixpo.run import Run
from mixpo.types import Question
from mixpo.viewer.layout import RunLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswers:
    """What one model said in one mode. outcomes: of each question, one for each sample. where: shard and first row of each question."""

    scores: Mapping[str, Any]
    outcomes: Mapping[str, tuple[str, ...]]
    where: Mapping[str, tuple[Path, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedQuestion:
    """One question of a set with the outcome of each column (None where a model has not answered it)."""

    question: Question
    outcomes: tuple[tuple[str, ...] | None, ...]


CHANGES = {
    "gained": "base model wrong, last model right",
    "lost": "base model right, last model wrong",
    "differ": "models differ",
    "all_right": "all right",
    "all_wrong": "none right",
}
"""Filters on the outcomes of several models."""


class Evaluations:
    """The evaluation sets of a run. What was read is kept until a shard is added or replaced."""

    def __init__(self, run: Run) -> None:
        self.layout = RunLayout(run)
        self._kept: dict[str, tuple[tuple[Path, ...], Any]] = {}

    def sets(self) -> list[str]:
        """The sets that have begun."""
        return self.layout.sets()

    def columns(self, name: str) -> list[tuple[str, str]]:
        """(model, mode) of every evaluation of a set that has begun, the base model first."""
        prefix = f"evaluate/{name}/"
        names = [stage.removeprefix(prefix).split("/") for stage in self.layout.stages() if stage.startswith(prefix)]
        return [(parts[0], parts[1]) for parts in names if len(parts) == 2]

    def questions(self, name: str) -> dict[str, Question]:
        """The questions of a set, in order."""

        def read(shards: Sequence[Path]) -> dict[str, Question]:
            return {question.id: question for shard in shards for question in read_rows(shard, Question)}

        result: dict[str, Question] = self._keep(f"evaluate/{name}/source", read)
        return result

    def answers(self, name: str, model: str, mode: str) -> ModelAnswers:
        """Answers of one model in one mode."""

        def read(shards: Sequence[Path]) -> ModelAnswers:
            return _answers(shards, mode, self.questions(name))

        result: ModelAnswers = self._keep(f"evaluate/{name}/{model}/{mode}", read)
        return result

    def scores(self, name: str) -> dict[str, dict[str, Any]]:
        """Scores by model and mode, as a report has them; those without responses are omitted."""
        result: dict[str, dict[str, Any]] = {}
        for model, mode in self.columns(name):
            if scores := self.answers(name, model, mode).scores:
                result.setdefault(model, {})[mode] = scores
        return result

    def asked(self, name: str, mode: str, domain: str = "", change: str = "") -> tuple[list[str], list[ComparedQuestion]]:
        """The models that were asked in a mode, and the questions that a filter leaves."""
        models = [model for model, its_mode in self.columns(name) if its_mode == mode]
        answers = [self.answers(name, model, mode) for model in models]
        rows = (
            ComparedQuestion(question=question, outcomes=tuple(of_model.outcomes.get(question.id) for of_model in answers))
            for question in self.questions(name).values()
            if not domain or question.domain == domain
        )
        return models, [row for row in rows if _changed(row, change)]

    def side_by_side(self, name: str, question: str) -> Iterator[tuple[str, str, list[Prediction]]]:
        """What every model said to one question: (model, mode, answers)."""
        for model, mode in self.columns(name):
            answers = self.answers(name, model, mode)
            if question in answers.where:
                path, row = answers.where[question]
                count = len(answers.outcomes[question])
                yield model, mode, [read_row(path, Prediction, number) for number in range(row, row + count)]

    def _keep(self, stage: str, read: Any) -> Any:
        shards = tuple(path for path in self.layout.shards(stage) if path is not None)
        if stage not in self._kept or self._kept[stage][0] != shards:
            self._kept[stage] = (shards, read(shards))
        return self._kept[stage][1]


def _answers(shards: Sequence[Path], mode: str, questions: Mapping[str, Question]) -> ModelAnswers:
    clusters = {question.id: cluster_of(question) for question in questions.values()}
    rows: list[Prediction] = []
    outcomes: dict[str, list[str]] = {}
    where: dict[str, tuple[Path, int]] = {}
    for shard in shards:
        for number, row in enumerate(read_rows(shard, Prediction)):
            where.setdefault(row.question, (shard, number))
            outcomes.setdefault(row.question, []).append(row.outcome)
            rows.append(row)
    scores = (asdict(score_samples(rows, clusters, questions)) if mode == "sampled" else asdict(score(rows, clusters))) if rows else {}
    return ModelAnswers(scores=scores, outcomes={question: tuple(of_question) for question, of_question in outcomes.items()}, where=where)


def _changed(row: ComparedQuestion, change: str) -> bool:
    right = [sum(outcome == "correct" for outcome in outcomes) * 2 > len(outcomes) for outcomes in row.outcomes if outcomes]
    if not change or not right:
        return not change
    return {
        "gained": right[-1] and not right[0],
        "lost": right[0] and not right[-1],
        "differ": len(set(right)) > 1,
        "all_right": all(right),
        "all_wrong": not any(right),
    }[change]
