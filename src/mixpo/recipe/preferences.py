"""[[preferences]]: pairs that somebody has already, in the format in which they lie there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Decides, Table
from mixpo.recipe.errors import did_you_mean

PreferenceKind = Literal["auto", "mmpr", "trl", "ms-swift", "llama-factory", "rlaif-v", "rlhf-v", "vlfeedback", "jsonl", "hub"]

COLUMNS = ("prompt", "chosen", "rejected", "images", "system", "answer", "domain")
"""What `columns` can map."""


class PreferencesTable(Table):
    """One collection of preference pairs. They are trained on as they are, without sampling and without a prompt around them."""

    kind: Annotated[PreferenceKind, Decides("source")] = "auto"
    """Format of the rows; "auto" recognises it from the file and names it. "jsonl" and "hub" read any columns that `columns` names."""
    path: Annotated[str, Decides("source")]
    """File or folder relative to the recipe (JSONL, JSON, Parquet, meta.json, dataset_info.json, a saved dataset), or a Hub id."""
    root: Annotated[str, Decides("source")] = ""
    """Folder below which every image file lies, relative to the recipe; empty means the folder of `path`."""
    name: Annotated[str | None, Decides("source")] = None
    """Configuration of a Hub dataset, if it has several."""
    split: Annotated[str, Decides("source")] = "train"
    """Split of a dataset."""
    datasets: Annotated[tuple[str, ...], Decides("source")] = ()
    """Names from meta.json or dataset_info.json to use; empty means all that hold pairs."""
    columns: Annotated[dict[str, str], Decides("source")] = Field(default={})
    """For "jsonl" and "hub": the columns that hold prompt, chosen, rejected, images, system, answer and domain, if named otherwise."""
    domain: Annotated[str, Decides("source")] = ""
    """Domain of the questions whose rows name none."""
    count: Annotated[int, Decides("source")] = Field(default=0, ge=0)
    """Number of rows to read; 0 means all."""

    @model_validator(mode="after")
    def _known_columns(self) -> PreferencesTable:
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"columns: unknown name {name!r}{did_you_mean(name, COLUMNS)}; known: {', '.join(COLUMNS)}")
        if self.columns and self.kind not in ("jsonl", "hub"):
            raise ValueError('columns go with kind = "jsonl" or "hub"; the other formats have columns of their own')
        return self
