"""[evaluate], [[evaluate.sets]] and [report]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Table
from mixpo.recipe.sources import Source


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    source: Source


class EvaluateTable(Table):
    """Greedy and sampled accuracy of every model on held-out questions."""

    sets: tuple[EvaluationSet, ...] = ()
    decontaminate: Literal["image", "question", "off"] = "image"
    """Left out of training: "image", questions with an image of an evaluation set, or the same text and no image; "question", only
    those with the same text and images."""
    modes: tuple[Literal["cot", "direct"], ...] = ("cot", "direct")
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=128, ge=1)
    samples: int = Field(default=0, ge=0)
    """Also sample this many chain-of-thought answers per question, for the mean accuracy of sampled answers."""

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateTable:
        if len({s.name for s in self.sets}) != len(self.sets):
            raise ValueError("two evaluation sets have the same name")
        return self


class ReportTable(Table):
    """The report of the run."""

    title: str = "mixpo run"
    examples: int = Field(default=12, ge=0)
    """Pairs shown with their images."""
