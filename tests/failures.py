"""Assertions about errors: their type, code and place as fields; their wording against one table, `cases/messages.toml`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mixpo.errors import MixpoError

MESSAGES = Path(__file__).parent / "cases" / "messages.toml"


class Failure:
    """What `fails` caught; filled when its block ends. parts: the text that stands for each {} of the message."""

    error: MixpoError
    parts: tuple[str, ...]

    @property
    def message(self) -> str:
        return str(self.error)


@contextmanager
def fails(code: str, error_type: type[MixpoError], **fields: Any) -> Iterator[Failure]:
    """Assert that the block raises exactly this type of error with this code, these fields, and the wording of the table.

    fields: any of path, line, key and exit_code; paths are compared as strings. None asserts that a field is not set.

        with fails("unknown-key", RecipeError, path=recipe, key="train.bta") as failure:
            load(recipe)
        assert failure.parts[-1] == "beta"
    """
    failure = Failure()
    with pytest.raises(error_type) as caught:
        yield failure
    failure.error = caught.value
    assert type(failure.error) is error_type
    assert failure.error.code == code, f"code {failure.error.code!r} instead of {code!r}: {failure.error}"
    for name, expected in fields.items():
        actual = getattr(failure.error, name)
        same = str(actual) == str(expected) if isinstance(expected, Path) else actual == expected
        assert same, f"{name} is {actual!r} instead of {expected!r}: {failure.error}"
    failure.parts = parts_of(code, failure.message)


def parts_of(code: str, message: str) -> tuple[str, ...]:
    """Assert that a whole message has the wording of its code; returns the text that stands for each {}."""
    for template in _templates(code, message):
        if match := re.fullmatch(_pattern(template), message, re.DOTALL):
            return match.groups()
    raise AssertionError(f"the wording of {code} is another one in {MESSAGES.name}:\n{code} = {json.dumps(message, ensure_ascii=False)}")


def shows(code: str, text: str) -> tuple[str, ...]:
    """Assert that a text, such as standard error, has a message of this code as one of its lines; returns the text for each {}."""
    for template in _templates(code, text):
        if match := re.search(f"^(?:mixpo: )?{_pattern(template)}$", text, re.MULTILINE):
            return match.groups()
    raise AssertionError(f"no message {code} ({' or '.join(_templates(code, text))}) in:\n{text}")


@cache
def table() -> dict[str, list[str]]:
    """The wordings of each code."""
    rows = tomllib.loads(MESSAGES.read_text(encoding="utf-8"))
    return {code: [value] if isinstance(value, str) else value for code, value in rows.items()}


def _templates(code: str, message: str) -> list[str]:
    if code not in table():
        line = f"{code} = {json.dumps(message, ensure_ascii=False)}"
        raise AssertionError(f"add to tests/cases/{MESSAGES.name}, with {{}} for each part that varies:\n{line}")
    return table()[code]


def _pattern(template: str) -> str:
    return "(.*?)".join(re.escape(part) for part in template.split("{}"))
