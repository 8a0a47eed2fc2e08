"""What every table of a recipe shares, and the marker that says which stages a field decides.

Every field is marked where it is declared:

    learning_rate: Annotated[float, Decides("train")] = Field(default=5e-6, gt=0)

From the marker follow the settings of stages (so the names of their shards, and what `stale because` says) and what must be equal
when a training resumes. A field that decides nothing says so with `NOTHING` or `CHOOSES_STAGES`; one that holds another table has no
marker, the fields of that table have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator

StageKind = Literal[
    "source",
    "sample",
    "continue",
    "verify",
    "branch",
    "value",
    "pair",
    "select",
    "reference",
    "train",
    "answer",
    "evaluate",
    "text",
    "report",
]
STAGES: tuple[StageKind, ...] = get_args(StageKind)
"""Kinds of stages in the order of the flow."""
Value = TypeVar("Value")


class Decides:
    """The stages whose records a field decides directly. What is made from those records becomes stale with them.

    by_content: the stages' settings hold what the value stands for (the digest of a file, the text of a named prompt), not the value.
    switches: stages that depend only on whether the field is used at all, so that one value of it is as good as another.
    """

    def __init__(self, *stages: StageKind, switches: tuple[StageKind, ...] = (), by_content: bool = False) -> None:
        self.stages = (*switches, *stages)
        self.switches = switches
        self.by_content = by_content


NOTHING = Decides()
"""Decides no record: speed, devices, addresses, limits of time and tries, what is logged or kept."""
CHOOSES_STAGES = Decides()
"""Decides which stages there are, or what they are called; the records of each follow from other fields."""


def first_repeated(values: Sequence[Value]) -> Value | None:
    """The first value that equals an earlier one."""
    return next((value for place, value in enumerate(values) if value in values[:place]), None)


class Table(BaseModel):
    """Base of every recipe table: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def deciding(self, stage: StageKind) -> dict[str, Any]:
        """The fields that decide a stage by their value, as JSON; those of inner tables under the name of the table."""
        return self._deciding(stage, self.model_dump(mode="json"))

    def _deciding(self, stage: StageKind, plain: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, marker in _markers(type(self)).items():
            if isinstance(inner := getattr(self, name), Table):
                if of_inner := inner._deciding(stage, plain[name]):
                    values[name] = of_inner
            elif marker is not None and stage in marker.switches:
                values |= {name: True} if plain[name] else {}
            elif marker is not None and stage in marker.stages and not marker.by_content:
                values[name] = plain[name]
        return values

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Python takes true for 1; as text in the recipe it is refused like any other text."""
        if not isinstance(data, dict):
            return data
        return {key: str(value).lower() if isinstance(value, bool) and cls._is_number(key) else value for key, value in data.items()}

    @classmethod
    def _is_number(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        types = {field.annotation, *get_args(field.annotation)} if field else set()
        return bool not in types and not types.isdisjoint({int, float})


@cache
def _markers(kind: type[Table]) -> dict[str, Decides | None]:
    """The marker of each field; None where it holds another table."""
    return {name: next((m for m in field.metadata if isinstance(m, Decides)), None) for name, field in kind.model_fields.items()}
