"""[source] and [[evaluate.sets]].source: one table per kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Table
from mixpo.recipe.errors import did_you_mean
from mixpo.types import AnswerKind

BENCHMARK_NAMES = ("mathvista", "mathvision", "m3cot", "mmvet", "llava_bench", "pope", "crpe", "mmhal")
JUDGED_BENCHMARKS = ("mmvet", "llava_bench", "mmhal")
"""Those whose free answers only a judge can score."""
EXTRACTED_BENCHMARKS = ("mathvista", "mathvision")
"""Those whose authors let a judge find the short answer, as extractor = "judge" does."""


class DigitsSource(Table):
    """Scenes of four handwritten digits (UCI) with questions that have exact answers."""

    kind: Literal["digits"]
    pool: Literal["start", "preference", "validation", "test"] = "preference"
    """The pools share no digit image."""
    count: int = Field(default=1000, ge=0)
    """Number of questions, each with its own scene."""
    open_share: float = Field(default=0.0, ge=0, le=1)
    """Share of open questions ("Describe the picture.")."""
    families: tuple[str, ...] = ()
    """Question families to use; empty means all."""
    seed: int = 0
    """Seed of the scenes; the digits stay the same."""


class EasyVqaSource(Table):
    """easy-VQA: 5,000 images of shapes with 48,248 questions (PyPI package easy-vqa)."""

    kind: Literal["easy_vqa"]
    split: Literal["train", "test"] = "train"
    """Which split."""
    count: int = Field(default=0, ge=0)
    """Number of questions, evenly spaced over the split; 0 means all."""


class JsonlSource(Table):
    """A JSONL file in the MMPR prompt format: image (path, list or absent), question, answer (or none)."""

    kind: Literal["jsonl"]
    path: str
    """The file, relative to the recipe."""
    root: str = "."
    """Folder below which every image lies, relative to the recipe. Paths that leave it are refused."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    """How answers are compared; "auto" decides from each answer."""
    domain: str = ""
    """Domain of the questions whose rows name none."""


class MmprSource(Table):
    """An MMPR collection: meta.json that names JSONL annotations with root and repeat_time."""

    kind: Literal["mmpr"]
    path: str
    """meta.json, relative to the recipe."""
    root: str = "."
    """Folder that the roots and annotations of meta.json are relative to."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    """As in `jsonl`."""
    datasets: tuple[str, ...] = ()
    """Names from meta.json to use; empty means all."""


class HubSource(Table):
    """A Hugging Face dataset: a Hub id or a local folder, through the `datasets` library."""

    kind: Literal["hub"]
    path: str
    """Hub id or local folder (relative to the recipe)."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str = "train"
    """Split of the dataset."""
    question: str = "question"
    """Column of the question."""
    answer: str | None = "answer"
    """Column of the answer; "" for open questions."""
    image: str | None = "image"
    """Column of the image or list of images; "" for none."""
    choices: str | None = None
    """Column with the list of options of a multiple-choice question."""
    rationale: str | None = None
    """Column with a reference answer and its reasoning, for `pairs.rationales`."""
    domain: str = ""
    """As in `jsonl`."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    """As in `jsonl`."""
    count: int = Field(default=0, ge=0)
    """Number of rows; 0 means all."""


class PythonSource(Table):
    """Your own function: it returns an iterable of dictionaries in the MMPR prompt format."""

    kind: Literal["python"]
    target: str
    """"module:function"; running a recipe with such a source runs that code."""
    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments of the function."""
    root: str = "."
    """Folder below which every image lies, relative to the recipe."""


class BenchmarkSource(Table):
    """A published benchmark, for evaluation sets only: its own prompts, its own scoring."""

    kind: Literal["benchmark"]
    name: str
    """One of mathvista, mathvision, m3cot, mmvet, llava_bench, pope, crpe, mmhal."""
    path: str
    """Its file or folder, relative to the recipe: Parquet, a VLMEvalKit TSV, or the official JSON or JSONL."""
    split: str = ""
    """Split, such as "testmini"; empty means the one that is usually reported."""
    root: str = ""
    """Folder below which image files lie, relative to the recipe; empty means the folder of `path`."""
    answers: str = ""
    """A second file, relative to the recipe, if answers are separate from the questions (POPE labels, LLaVA-Bench references)."""
    partial: bool = False
    """Skip rows that cannot be used instead of stopping. The score is then not comparable with published ones."""

    @model_validator(mode="after")
    def _known(self) -> BenchmarkSource:
        if self.name not in BENCHMARK_NAMES:
            hint = did_you_mean(self.name, BENCHMARK_NAMES)
            raise ValueError(f"unknown benchmark {self.name!r}{hint}; known: {', '.join(BENCHMARK_NAMES)}")
        return self


Source = Annotated[
    DigitsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource,
    Field(discriminator="kind"),
]

EvaluationSource = Annotated[
    DigitsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource | BenchmarkSource,
    Field(discriminator="kind"),
]
"""What an evaluation set may be: any source, or a benchmark. A benchmark is never a [source], so that nobody trains on one."""
