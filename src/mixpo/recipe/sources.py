"""[source] and [[evaluate.sets]].source: one table per kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Decides, Table, first_repeated
from mixpo.recipe.errors import did_you_mean
from mixpo.types import AnswerKind

PAPER_BENCHMARKS = ("mathvista", "mathvision", "m3cot", "mmvet", "llava_bench", "pope", "crpe", "mmhal")
BENCHMARK_NAMES = (*PAPER_BENCHMARKS, "mmmu", "mathverse", "we_math", "logicvista")
JUDGED_BENCHMARKS = ("mmvet", "llava_bench", "mmhal")
"""Those whose free answers only a judge can score."""
EXTRACTED_BENCHMARKS = ("mathvista", "mathvision", "mathverse", "logicvista")
"""Those whose authors let a judge find the short answer, as extractor = "judge" does."""

OFFICIAL_BENCHMARKS = ("mathvision", "m3cot", "mmmu", "we_math")
"""Those whose own script reads a response otherwise than the paper's, as extractor = "official" does."""


class DigitsSource(Table):
    """Scenes of four handwritten digits (UCI) with questions that have exact answers."""

    kind: Annotated[Literal["digits"], Decides("source")]
    pool: Annotated[Literal["start", "preference", "validation", "test"], Decides("source")] = "preference"
    """The pools share no digit image."""
    count: Annotated[int, Decides("source")] = Field(default=1000, ge=0)
    """Number of questions, each with its own scene."""
    open_share: Annotated[float, Decides("source")] = Field(default=0.0, ge=0, le=1)
    """Share of open questions ("Describe the picture.")."""
    families: Annotated[tuple[str, ...], Decides("source")] = ()
    """Question families to use; empty means all."""
    seed: Annotated[int, Decides("source")] = 0
    """Seed of the scenes; the digits stay the same."""


class ChartsSource(Table):
    """Small bar, line and pie charts with questions that have exact answers."""

    kind: Annotated[Literal["charts"], Decides("source")]
    pool: Annotated[Literal["start", "preference", "validation", "test"], Decides("source")] = "preference"
    """The pools share no chart."""
    count: Annotated[int, Decides("source")] = Field(default=1000, ge=0)
    """Number of questions, each with its own chart."""
    open_share: Annotated[float, Decides("source")] = Field(default=0.0, ge=0, le=1)
    """Share of open questions ("Describe the chart.")."""
    families: Annotated[tuple[str, ...], Decides("source")] = ()
    """Question families to use; empty means all."""
    seed: Annotated[int, Decides("source")] = 0
    """Seed of the charts."""


class EasyVqaSource(Table):
    """easy-VQA: 5,000 images of shapes with 48,248 questions (PyPI package easy-vqa)."""

    kind: Annotated[Literal["easy_vqa"], Decides("source")]
    split: Annotated[Literal["train", "test"], Decides("source")] = "train"
    """Which split."""
    count: Annotated[int, Decides("source")] = Field(default=0, ge=0)
    """Number of questions, evenly spaced over the split; 0 means all."""


class JsonlSource(Table):
    """A JSONL file in the MMPR prompt format: image (path, list or absent), question, answer (or none)."""

    kind: Annotated[Literal["jsonl"], Decides("source")]
    path: Annotated[str, Decides("source")]
    """The file, relative to the recipe."""
    root: Annotated[str, Decides("source")] = "."
    """Folder below which every image lies, relative to the recipe. Paths that leave it are refused."""
    answer_kind: Annotated[AnswerKind | Literal["auto"], Decides("source")] = "auto"
    """How answers are compared; "auto" decides from each answer."""
    domain: Annotated[str, Decides("source")] = ""
    """Domain of the questions whose rows name none."""


class MmprSource(Table):
    """An MMPR collection: meta.json that names JSONL annotations with root and repeat_time."""

    kind: Annotated[Literal["mmpr"], Decides("source")]
    path: Annotated[str, Decides("source")]
    """meta.json, relative to the recipe."""
    root: Annotated[str, Decides("source")] = "."
    """Folder that the roots and annotations of meta.json are relative to."""
    answer_kind: Annotated[AnswerKind | Literal["auto"], Decides("source")] = "auto"
    """As in `jsonl`."""
    datasets: Annotated[tuple[str, ...], Decides("source")] = ()
    """Names from meta.json to use; empty means all."""


class HubSource(Table):
    """A Hugging Face dataset: a Hub id or a local folder, through the `datasets` library."""

    kind: Annotated[Literal["hub"], Decides("source")]
    path: Annotated[str, Decides("source")]
    """Hub id or local folder (relative to the recipe)."""
    name: Annotated[str | None, Decides("source")] = None
    """Configuration of the dataset, if it has several."""
    split: Annotated[str, Decides("source")] = "train"
    """Split of the dataset."""
    question: Annotated[str, Decides("source")] = "question"
    """Column of the question."""
    messages: Annotated[str | None, Decides("source")] = None
    """Column of a conversation (a list of messages) whose last user turn is the question, or that stands before the question."""
    answer: Annotated[str | None, Decides("source")] = "answer"
    """Column of the answer; "" for open questions."""
    image: Annotated[str | None, Decides("source")] = "image"
    """Column of the image or list of images; "" for none."""
    choices: Annotated[str | None, Decides("source")] = None
    """Column with the list of options of a multiple-choice question."""
    rationale: Annotated[str | None, Decides("source")] = None
    """Column with a reference answer and its reasoning, for `pairs.rationales`."""
    domain: Annotated[str, Decides("source")] = ""
    """As in `jsonl`."""
    answer_kind: Annotated[AnswerKind | Literal["auto"], Decides("source")] = "auto"
    """As in `jsonl`."""
    count: Annotated[int, Decides("source")] = Field(default=0, ge=0)
    """Number of rows; 0 means all."""


class PythonSource(Table):
    """Your own function: it returns an iterable of dictionaries in the MMPR prompt format."""

    kind: Annotated[Literal["python"], Decides("source")]
    target: Annotated[str, Decides("source")]
    """"module:function"; running a recipe with such a source runs that code."""
    arguments: Annotated[dict[str, Any], Decides("source")] = Field(default={})
    """Keyword arguments of the function."""
    root: Annotated[str, Decides("source")] = "."
    """Folder below which every image lies, relative to the recipe."""


class BenchmarkSource(Table):
    """A published benchmark, for evaluation sets only: its own prompts, its own scoring."""

    kind: Annotated[Literal["benchmark"], Decides("source")]
    name: Annotated[str, Decides("source")]
    """One of mathvista, mathvision, m3cot, mmvet, llava_bench, pope, crpe, mmhal, mmmu, mathverse, we_math, logicvista."""
    path: Annotated[str, Decides("source")]
    """Its file or folder, relative to the recipe: Parquet, a VLMEvalKit TSV, or the official JSON or JSONL."""
    split: Annotated[str, Decides("source")] = ""
    """Split, such as "testmini"; empty means the one that is usually reported."""
    root: Annotated[str, Decides("source")] = ""
    """Folder below which image files lie, relative to the recipe; empty means the folder of `path`."""
    answers: Annotated[str, Decides("source")] = ""
    """A second file, relative to the recipe, if answers are separate from the questions (POPE labels, LLaVA-Bench references)."""
    partial: Annotated[bool, Decides("source")] = False
    """Skip rows that cannot be used instead of stopping. The score is then not comparable with published ones."""
    images: Annotated[Literal["required", "optional"], Decides("source")] = "required"
    """"optional": image files may be missing, because only `evaluate.predictions` are graded and no model is asked."""

    @model_validator(mode="after")
    def _known(self) -> BenchmarkSource:
        if self.name not in BENCHMARK_NAMES:
            hint = did_you_mean(self.name, BENCHMARK_NAMES)
            raise ValueError(f"unknown benchmark {self.name!r}{hint}; known: {', '.join(BENCHMARK_NAMES)}")
        return self


Source = Annotated[
    DigitsSource | ChartsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource,
    Field(discriminator="kind"),
]


class MixturePart(Table):
    """One source of several."""

    name: Annotated[str, Decides("source")] = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Its name in reports, statistics and rules, as the source of its questions; `mmpr` keeps the names of its data sets."""
    source: Annotated[Source, Decides("source")]
    """The source itself, as in [source]."""
    weight: Annotated[float, Decides("source")] = Field(default=1.0, gt=0, le=1)
    """Share of its questions that are used. Which ones follows from the questions alone."""
    count: Annotated[int, Decides("source")] = Field(default=0, ge=0)
    """Maximum number of its questions; 0 means all."""
    domain: Annotated[str, Decides("source")] = ""
    """Domain of its questions that have none."""

    @model_validator(mode="before")
    @classmethod
    def _has_inner_table(cls, data: Any) -> Any:
        if isinstance(data, dict) and "kind" in data and "source" not in data:
            example = 'name = "...", source = { kind = "...", ... }'
            raise ValueError(f"in [[source]] the source is a table of its own: {example}; write [source] for a single one")
        return data


class MixtureSource(Table):
    """Several sources in turn: what a recipe writes as [[source]]."""

    kind: Annotated[Literal["mixture"], Decides("source")]
    parts: Annotated[tuple[MixturePart, ...], Decides("source")]
    """The sources, each with a name of its own."""

    @model_validator(mode="after")
    def _distinct(self) -> MixtureSource:
        if not self.parts:
            raise ValueError("[[source]] is an empty list; add a source, or remove it")
        if twice := first_repeated([part.name for part in self.parts]):
            raise ValueError(f"two sources have the name {twice!r}; reports and rules count by name, so give each its own")
        return self


TrainingSource = Annotated[
    DigitsSource | ChartsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource | MixtureSource,
    Field(discriminator="kind"),
]
"""What [source] may be, and [[source]] becomes."""

EvaluationSource = Annotated[
    DigitsSource | ChartsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource | BenchmarkSource,
    Field(discriminator="kind"),
]
"""What an evaluation set may be: any source, or a benchmark. A benchmark is never a [source], so that nobody trains on one."""

AnySource = EvaluationSource | TrainingSource
"""Whatever questions are read from."""
