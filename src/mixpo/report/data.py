"""Everything a report is made of, gathered by the caller. No files are read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixpo.records import Prediction
from mixpo.run import Manifest
from mixpo.types import Pair, Question, Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """The material of one report; everything but the first three fields may be empty.

    predictions: by (evaluation set, model, mode) with mode "cot", "direct" or "sampled"; the first set named is the main one.
    questions: evaluation questions by id. They give yes/no figures and the before-and-after examples; may be partial.
    main: the model whose gain over "base" is the headline; "" takes the last model of the main set that is none of `served`.
    served: names of the models that answered behind a server, for comparison.
    manifests: by stage name, in the order in which the stages ran.
    statistics: what `mixpo.pairs.statistics` says of the pairs.
    training: for each trained model the logged rows, one mapping of numbers per logged step ("step" names it).
    examples: pairs to show, each with its question.
    models: where the trained models are, relative to the run directory, by name.
    text: results of text-only tasks: model, task, metric, value, error, n.
    unfinished: stages that the recipe asks for and that are not in here.
    """

    title: str
    created: str
    seed: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str, str], Sequence[Prediction]] = field(default_factory=dict)
    questions: Mapping[str, Question] = field(default_factory=dict)
    main: str = ""
    served: Sequence[str] = ()
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    examples: Sequence[tuple[Question, Pair]] = ()
    skipped: Sequence[Skipped] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    text: Sequence[Mapping[str, Any]] = ()
    unfinished: Sequence[str] = ()
