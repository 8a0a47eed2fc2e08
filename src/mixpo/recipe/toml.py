"""Python values as TOML, for overrides that come from Python and for recipes that mixpo writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixpo.errors import RecipeError


def literal(value: object) -> str:
    """A value on one line of TOML. Raises RecipeError for what TOML has no word for, such as None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value)).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(str(key))} = {literal(inner)}' for key, inner in value.items())} }}"
    raise RecipeError(f"{value!r} cannot be a value of a recipe; leave the key out for its default", code="no-recipe-value")


def override(key: str, value: object) -> str:
    """The text of `--set`: "table.key=value"."""
    return f"{key}={literal(value)}"


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set "table.key" in nested tables; a mapping is merged into the table that is there. Raises RecipeError where a key is no table."""
    *tables, last = key.split(".")
    for name in tables:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise RecipeError(f"{key}: {name!r} is not a table", code="key-not-a-table", key=key)
    if isinstance(value, Mapping):
        inner = data.setdefault(last, {})
        for name, part in value.items():
            put(inner, str(name), part)
    else:
        data[last] = str(value) if isinstance(value, Path) else value
