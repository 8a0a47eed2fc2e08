"""[evaluate], [[evaluate.sets]], [evaluate.judge] and [report]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Table
from mixpo.recipe.server import ServedModel
from mixpo.recipe.sources import EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, BenchmarkSource, EvaluationSource


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """What folders and tables call it."""
    source: EvaluationSource
    """Where its questions are; those without an answer are left out."""


class JudgeTable(Table):
    """A language model behind an OpenAI-compatible endpoint that marks free answers."""

    model: str
    """Name of the model at the endpoint, with its date where it has one."""
    url: str = "https://api.openai.com/v1"
    """Base address of the endpoint, such as http://127.0.0.1:8000/v1."""
    key: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself stands nowhere."""
    prompts: str = ""
    """Folder, relative to the recipe, with judge prompts of your own (mmvet.txt, llava_bench.txt, mmhal.txt, and for extractor = "judge"
    mathvista.txt, mathvision.txt); a system message in a file such as llava_bench.system.txt."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge; 0 lets it say the same again."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length limit of a reply."""
    attempts: int = Field(default=3, ge=1)
    """How often one answer is put before the judge until its reply can be read; the temperature rises by 0.5 each time."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Wall-clock limit of one request."""
    retries: int = Field(default=6, ge=0)
    """Further tries after a lost connection, a time-out or a busy server, with growing pauses."""
    workers: int = Field(default=4, ge=1)
    """Requests at a time."""


class EvaluateTable(Table):
    """Greedy and sampled accuracy of every model on held-out questions."""

    sets: tuple[EvaluationSet, ...] = ()
    """What is measured on; the first one is the main set of the report."""
    served: tuple[ServedModel, ...] = ()
    """Other models to ask the same questions, each behind a server."""
    decontaminate: Literal["similar", "image", "question", "off"] = "image"
    """Left out of training: "image", questions with an image of an evaluation set, or the same text and no image; "similar", also those
    with an image that looks like one, such as a re-encoded or resized copy; "question", only those with the same text and images."""
    similar_bits: int = Field(default=32, ge=0, le=96)
    """For "similar": so many of the 256 bits of two images' perceptual hashes may differ."""
    modes: tuple[Literal["cot", "direct"], ...] = ("cot", "direct")
    """How the questions are asked: for a chain of thought, for the answer alone."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of an answer at most."""
    batch_size: int = Field(default=128, ge=1)
    """Answers written together; fewer in the same way as while sampling."""
    samples: int = Field(default=0, ge=0)
    """Also sample this many chain-of-thought answers per question, for the mean accuracy of sampled answers."""
    extractor: Literal["robust", "paper", "judge"] = "robust"
    """How benchmarks read a final answer: "paper" by the rules of the released scripts, "robust" without their known faults, "judge" as
    the authors do it: the judge finds the answer for mathvista and mathvision, the others are read as by "paper"."""
    judge: JudgeTable | None = None
    """Needed by the benchmarks with free answers (mmvet, llava_bench, mmhal), and by extractor = "judge"."""
    text_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness to run on the language model alone, such as "mmlu" or "gsm8k"."""
    text_shots: int | None = Field(default=None, ge=0)
    """Worked examples in the prompt of every text task; unset leaves each task its own number."""
    text_limit: int | None = Field(default=None, ge=1)
    """Only this many questions of each text task."""
    text_include: str = ""
    """Folder, relative to the recipe, with task files of your own."""

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

    title: str = "mixpo run"
    """Heading of the report and of the viewer."""
    examples: int = Field(default=12, ge=0)
    """Pairs shown with their images."""
