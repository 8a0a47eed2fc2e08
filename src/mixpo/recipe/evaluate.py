"""[evaluate], [[evaluate.sets]], [evaluate.judge] and [report]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Table
from mixpo.recipe.sources import JUDGED_BENCHMARKS, BenchmarkSource, EvaluationSource


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    source: EvaluationSource


class JudgeTable(Table):
    """A language model behind an OpenAI-compatible endpoint that marks free answers."""

    model: str
    """Name of the model at the endpoint, with its date where it has one."""
    url: str = "https://api.openai.com/v1"
    """Base address of the endpoint, such as http://127.0.0.1:8000/v1."""
    key: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself stands nowhere."""
    prompts: str = ""
    """Folder, relative to the recipe, with judge prompts of your own (mmvet.txt, llava_bench.txt, mmhal.txt)."""
    temperature: float = Field(default=0.0, ge=0)
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
    decontaminate: Literal["similar", "image", "question", "off"] = "image"
    """Left out of training: "image", questions with an image of an evaluation set, or the same text and no image; "similar", also those
    with an image that looks like one, such as a re-encoded or resized copy; "question", only those with the same text and images."""
    similar_bits: int = Field(default=32, ge=0, le=96)
    """For "similar": so many of the 256 bits of two images' perceptual hashes may differ."""
    modes: tuple[Literal["cot", "direct"], ...] = ("cot", "direct")
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=128, ge=1)
    samples: int = Field(default=0, ge=0)
    """Also sample this many chain-of-thought answers per question, for the mean accuracy of sampled answers."""
    extractor: Literal["robust", "paper"] = "robust"
    """How benchmarks read a final answer: "paper" by the rules of the released scripts, "robust" without their known faults."""
    judge: JudgeTable | None = None
    """Needed by the benchmarks with free answers (mmvet, llava_bench, mmhal)."""
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
        if len(set(self.text_tasks)) != len(self.text_tasks):
            raise ValueError("text_tasks names a task twice")
        return self

    @model_validator(mode="after")
    def _has_judge(self) -> EvaluateTable:
        needy = [s.name for s in self.sets if isinstance(s.source, BenchmarkSource) and s.source.name in JUDGED_BENCHMARKS]
        if needy and self.judge is None:
            raise ValueError(
                f"the set {needy[0]!r} holds free answers that only a judge can mark; add a table [evaluate.judge] with model and url, "
                "or remove the set"
            )
        return self


class ReportTable(Table):
    """The report of the run."""

    title: str = "mixpo run"
    examples: int = Field(default=12, ge=0)
    """Pairs shown with their images."""
