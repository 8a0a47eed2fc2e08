"""What every table of a recipe shares."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Table(BaseModel):
    """Base of every recipe table: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Python takes true for 1; as the text that stands in the recipe it is refused like any other text."""
        if not isinstance(data, dict):
            return data
        return {key: str(value).lower() if isinstance(value, bool) and cls._is_number(key) else value for key, value in data.items()}

    @classmethod
    def _is_number(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        types = {field.annotation, *get_args(field.annotation)} if field else set()
        return bool not in types and not types.isdisjoint({int, float})
