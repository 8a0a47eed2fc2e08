"""[evaluate], [[evaluate.sets]], [evaluate.judge] and [report]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import CHOOSES_STAGES, NOTHING, Decides, Table
from mixpo.recipe.server import JudgeTable, ServedModel
from mixpo.recipe.sources import EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, BenchmarkSource, EvaluationSource


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: Annotated[str, CHOOSES_STAGES] = Field(pattern=r"^[a-z0-9_-]+$")
    """Its name in folders and tables."""
    source: EvaluationSource
    """Where its questions come from; open questions are skipped."""


class EvaluateTable(Table):
    """Greedy and sampled accuracy of every model on held-out questions."""

    sets: tuple[EvaluationSet, ...] = ()
    """Evaluation sets; the first is the main set of the report."""
    engine: Annotated[Literal["transformers", "openai", "vllm", "scripted"] | None, Decides("answer", by_content=True)] = None
    """What generates responses in evaluation, and continuations of saved responses. Unset: the engine of [sample], or "transformers" if
    that is "file"."""
    served: tuple[ServedModel, ...] = ()
    """Other models to evaluate, each behind a server."""
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
    """Also sample this many chain-of-thought responses per question, for sampled accuracy."""
    extractor: Annotated[Literal["robust", "paper", "judge"], Decides("evaluate")] = "robust"
    """How benchmarks extract final answers: "paper" by the rules of the released scripts, "robust" without their known faults, "judge"
    as the authors do it: the judge extracts answers for mathvista and mathvision; the others use "paper"."""
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
        if len(set(self.text_tasks)) != len(self.text_tasks):
            raise ValueError("text_tasks names a task twice")
        return self

    def extractor_of(self, benchmark: str) -> str:
        """How a benchmark with rules is read."""
        if self.extractor == "judge" and benchmark not in EXTRACTED_BENCHMARKS:
            return "paper"
        return self.extractor

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
