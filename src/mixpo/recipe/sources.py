"""[source] and [[evaluate.sets]].source: one table per kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mixpo.recipe.base import Table
from mixpo.types import AnswerKind


class DigitsSource(Table):
    """Scenes of four handwritten digits (UCI, shipped with scikit-learn) with questions whose answers are exact."""

    kind: Literal["digits"]
    pool: Literal["start", "preference", "validation", "test"] = "preference"
    """The pools share no digit image."""
    count: int = Field(default=1000, ge=0)
    """Questions to make; each has a scene of its own."""
    open_share: float = Field(default=0.0, ge=0, le=1)
    """Share of open questions ("Describe the picture.") without an answer."""
    families: tuple[str, ...] = ()
    """Question families to use; empty means all."""
    seed: int = 0
    """Another seed composes other scenes from the same digits."""


class EasyVqaSource(Table):
    """easy-VQA: 5,000 images of shapes with 48,248 questions (PyPI package easy-vqa)."""

    kind: Literal["easy_vqa"]
    split: Literal["train", "test"] = "train"
    count: int = Field(default=0, ge=0)
    """Questions to take, spread evenly over the split; 0 takes all."""


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
    """Family of the questions whose rows name none."""


class MmprSource(Table):
    """An MMPR collection: meta.json that names JSONL annotations with root and repeat_time."""

    kind: Literal["mmpr"]
    path: str
    """meta.json, relative to the recipe."""
    root: str = "."
    """Folder that the roots and annotations of meta.json are relative to."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    datasets: tuple[str, ...] = ()
    """Names from meta.json to use; empty means all."""


class HubSource(Table):
    """A Hugging Face data set: an id on the hub or a local folder, through the `datasets` library."""

    kind: Literal["hub"]
    path: str
    """Hub id or local folder (relative to the recipe)."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
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
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    count: int = Field(default=0, ge=0)
    """Rows to take; 0 takes all."""


class PythonSource(Table):
    """Your own function: it returns an iterable of dictionaries in the MMPR prompt format."""

    kind: Literal["python"]
    target: str
    """"module:function"; running a recipe with such a source runs that code."""
    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments that the function is called with."""
    root: str = "."
    """Folder below which every image lies, relative to the recipe."""


Source = Annotated[
    DigitsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource,
    Field(discriminator="kind"),
]
