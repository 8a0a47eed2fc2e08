"""[evaluate], [[evaluate.sets]], [evaluate.judge] and [report]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixpo.objectives import OBJECTIVES
from mixpo.recipe.base import CHOOSES_STAGES, NOTHING, Decides, Table
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.server import JudgeTable, ServedModel
from mixpo.recipe.sources import EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, OFFICIAL_BENCHMARKS, BenchmarkSource, EvaluationSource


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: Annotated[str, CHOOSES_STAGES] = Field(pattern=r"^[a-z0-9_-]+$")
    """Its name in folders and tables."""
    source: EvaluationSource
    """Where its questions come from; open questions are skipped."""


class PredictionsTable(Table):
    """Responses of another tool to an evaluation set, as an additional row of the results. They are graded as they are."""

    name: Annotated[str, CHOOSES_STAGES] = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Its name in the results."""
    set: Annotated[str, CHOOSES_STAGES] = ""
    """The evaluation set that was answered; empty means the first."""
    path: Annotated[str, Decides("answer", by_content=True)]
    """The file, relative to the recipe: an output file of MathVista or MATH-V, a result table of VLMEvalKit (xlsx, tsv), a samples file
    of lmms-eval, or JSONL with id and response."""
    mode: Annotated[Literal["cot", "direct"], CHOOSES_STAGES] = "cot"
    """How the model was asked: chain of thought, or a direct answer, which may be nothing but the answer."""
    partial: Annotated[bool, Decides("answer")] = False
    """Grade only the questions that the file answers. The score is then not comparable with published ones."""

    @model_validator(mode="after")
    def _own_name(self) -> PredictionsTable:
        if self.name.partition("-round-")[0] in ("base", *OBJECTIVES):
            raise ValueError(f"{self.name!r} is the name of a model of this run; take another")
        return self


class EvaluateTable(Table):
    """Greedy and sampled accuracy of every model on held-out questions."""

    sets: tuple[EvaluationSet, ...] = ()
    """Evaluation sets; the first is the main set of the report."""
    engine: Annotated[Literal["transformers", "openai", "vllm", "scripted"] | None, Decides("answer", by_content=True)] = None
    """What generates responses in evaluation, and continuations of saved responses. Unset: the engine of [sample], or "transformers" if
    that is "file"."""
    served: tuple[ServedModel, ...] = ()
    """Other models to evaluate, each behind a server."""
    predictions: tuple[PredictionsTable, ...] = ()
    """Files with responses of other tools."""
    own_models: Annotated[bool, CHOOSES_STAGES] = True
    """Evaluate the run's own models. If false, only `served` and `predictions` are graded; without [source] no model is then needed."""
    decontaminate: Annotated[Literal["similar", "image", "question", "off"], Decides("source", by_content=True)] = "image"
    """Training questions to filter: "image", those with an image of an evaluation set, or the same text and no image; "similar", also
    those with a near-duplicate image, such as a re-encoded or resized copy; "question", only those with the same text and images."""
    similar_bits: Annotated[int, Decides("source", by_content=True)] = Field(default=32, ge=0, le=96)
    """For "similar": how many of the 256 bits of two perceptual hashes may differ."""
    modes: Annotated[tuple[Literal["cot", "direct"], ...], CHOOSES_STAGES] = ("cot", "direct")
    """Prompt modes: chain of thought, direct answer."""
    max_new_tokens: Annotated[int, Decides("answer")] = Field(default=512, ge=1)
    """Maximum tokens of a response."""
    batch_size: Annotated[int, NOTHING] = Field(default=128, ge=1)
    """Responses generated together; fewer if memory is short, as in sampling."""
    samples: Annotated[int, Decides("answer")] = Field(default=0, ge=0)
    """Also sample this many chain-of-thought responses per question, for mean@k, pass@k and maj@k."""
    extractor: Annotated[Literal["robust", "paper", "official", "judge", "given"], Decides("evaluate")] = "robust"
    """How benchmarks extract final answers: "paper" by the scripts that the paper used, "robust" without their known faults, "official"
    by the benchmark's own script where it is another one (mathvision, m3cot), "judge" as the authors do it: the judge extracts answers
    for mathvista and mathvision; the others use "paper". "given" takes the short answers in `predictions`, graded by the authors' rule."""
    judge: JudgeTable | None = None
    """Required by benchmarks with free-form answers (mmvet, llava_bench, mmhal), and by extractor = "judge"."""
    text_tasks: Annotated[tuple[str, ...], Decides("text")] = ()
    """Tasks of lm-evaluation-harness to run on the language model alone, such as "mmlu" or "gsm8k"."""
    text_shots: Annotated[int | None, Decides("text")] = Field(default=None, ge=0)
    """Few-shot examples of every text task; unset uses the task's own number."""
    text_limit: Annotated[int | None, Decides("text")] = Field(default=None, ge=1)
    """Maximum questions per text task."""
    text_include: Annotated[str, Decides("text", by_content=True)] = ""
    """Folder, relative to the recipe, with your own task files."""

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateTable:
        if len({s.name for s in self.sets}) != len(self.sets):
            raise ValueError("two evaluation sets have the same name")
        if len({s.name for s in self.served}) != len(self.served):
            raise ValueError("two served models have the same name")
        if len({(p.name, p.set, p.mode) for p in self.predictions}) != len(self.predictions):
            raise ValueError("two predictions have the same name, set and mode")
        if len(set(self.text_tasks)) != len(self.text_tasks):
            raise ValueError("text_tasks names a task twice")
        return self

    def extractor_of(self, benchmark: str) -> str:
        """How a benchmark with rules is read."""
        if self.extractor == "judge" and benchmark not in EXTRACTED_BENCHMARKS:
            return "paper"
        if self.extractor == "official" and benchmark not in OFFICIAL_BENCHMARKS:
            return "paper"
        return self.extractor

    def set_of(self, predictions: PredictionsTable) -> str:
        """The name of the evaluation set that predictions answer."""
        return predictions.set or next((s.name for s in self.sets), "")

    @model_validator(mode="after")
    def _has_answers(self) -> EvaluateTable:
        names = [s.name for s in self.sets]
        for predictions in self.predictions:
            if self.set_of(predictions) not in names:
                hint = did_you_mean(predictions.set, names) if predictions.set else "; add a table [[evaluate.sets]]"
                raise ValueError(
                    f"the predictions {predictions.name!r} need an evaluation set: there is no {predictions.set or 'set'!r}{hint}"
                )
        if not self.own_models and not self.predictions and not self.served:
            raise ValueError("own_models = false leaves nothing to evaluate; add [[evaluate.predictions]] or [[evaluate.served]]")
        if self.extractor == "given" and (self.own_models or self.served or not self.predictions):
            raise ValueError('extractor = "given" grades the short answers of [[evaluate.predictions]] only; set own_models = false')
        asked = next((s for s in self.sets if isinstance(s.source, BenchmarkSource) and s.source.images == "optional"), None)
        if asked is not None and (self.own_models or self.served):
            raise ValueError(f'the set {asked.name!r} has images = "optional", which is for predictions only; set own_models = false')
        return self

    def asks_judge(self, source: EvaluationSource) -> bool:
        """Whether a judge is needed for a set's answers."""
        if not isinstance(source, BenchmarkSource):
            return False
        return source.name in JUDGED_BENCHMARKS or self.extractor_of(source.name) == "judge"

    @model_validator(mode="after")
    def _has_judge(self) -> EvaluateTable:
        needy = next((s for s in self.sets if self.asks_judge(s.source)), None)
        if needy is not None and self.judge is None:
            free = getattr(needy.source, "name", "") in JUDGED_BENCHMARKS
            why, other = (
                ("holds free answers that only a judge can mark", "remove the set")
                if free
                else ('is read by a judge (evaluate.extractor = "judge")', 'take extractor = "robust" or "paper"')
            )
            raise ValueError(f"the set {needy.name!r} {why}; add a table [evaluate.judge] with model and url, or {other}")
        return self


class ReportTable(Table):
    """The report of the run."""

    title: Annotated[str, Decides("report")] = ""
    """Heading of the report and of the viewer; by default the name of the run directory, which is that of the recipe."""
    examples: Annotated[int, Decides("report")] = Field(default=12, ge=0)
    """Pairs shown with their images."""
