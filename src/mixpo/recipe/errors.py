"""Sentences about what is wrong in a recipe, with the nearest name that would be right. Knows no particular table."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"-]+)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([\w.\"-]+?)\s*=")


def did_you_mean(word: str, known: Any) -> str:
    """`, did you mean 'beta'?` when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def describe(root: type[BaseModel], name: str, text: str, overrides: Sequence[str], problem: Any) -> str:
    """One line for one error of pydantic. root: the whole recipe's model; name and text: of the file, for its line.

    overrides: "table.key=value" that took the place of what the file says.
    """
    # A value that may be text or a table is located by the names of both types as well.
    location = [str(part) for part in problem["loc"] if part != "str" and "[" not in str(part)]
    tables, key = location[:-1], location[-1] if location else ""
    while key.isdigit() and tables:  # one of a list of values
        key = tables.pop()
    written = [*tables, key]
    if location[:2] == ["source", "mixture"]:  # which the recipe writes as [[source]]
        written = ["source", *location[3:]]
        tables, key = ([], "source") if location[-1] == "mixture" or location[-1].isdigit() else (tables, key)
    shown = ".".join(tables).replace("source.mixture.parts", "source")
    where = f"{_place(name, text, overrides, written)}: " + (f"{shown}: " if tables else "")
    if not location:
        return f"{where}{problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key {key!r}{_nearest(root, key, tables)}"
    if problem["type"] == "union_tag_invalid":
        known = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = problem["ctx"]["tag"]
        return f"{where}{key}: unknown kind {tag!r}{did_you_mean(tag, known)}; known: {', '.join(known)}"
    if problem["type"] == "union_tag_not_found" and isinstance(problem["input"], dict):
        slip = next((given for given in problem["input"] if did_you_mean(given, ["kind"])), "")
        return f"{where}{key}: " + (f"unknown key {slip!r}, did you mean 'kind'?" if slip else "missing key 'kind'")
    if problem["type"] == "missing":
        return f"{where}missing key {key!r}"
    return f"{where}{key}: {_sentence(problem, '.'.join([*tables, key]))}"


_SENTENCES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list, in [brackets]",
    "list_type": "must be a list, in [brackets]",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
}
"""By the type of pydantic's error; others keep its own words."""
_TABLE_TYPES = ("dict_type", "model_type", "model_attributes_type", "union_tag_not_found")


def _sentence(problem: Any, path: str) -> str:
    """What is wrong with the value at this path, and what it is."""
    kind, value = problem["type"], problem["input"]
    if kind in _TABLE_TYPES:
        listed = isinstance(value, (list, tuple)) and value and isinstance(value[0], dict)
        sentence = f"is one table; write [{path}], not [[{path}]]" if listed else "must be a table"
    elif kind in ("tuple_type", "list_type") and isinstance(value, dict):
        sentence = f"is a list of tables; write [[{path}]], not [{path}]"
    elif kind in _SENTENCES:
        sentence = _SENTENCES[kind].format(**{name: _short(limit) for name, limit in problem.get("ctx", {}).items()})
    else:
        sentence = problem["msg"].removeprefix("Value error, ")
    holds_table = isinstance(value, (dict, BaseModel)) or (isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value))
    # A key that was put in place of its variable's name is not shown.
    secret = path.endswith("api_key_env")
    return sentence if holds_table or secret else f"{sentence} (got {_as_toml(value)})"


def _short(limit: Any) -> str:
    """2, where pydantic has 2.0."""
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _as_toml(value: Any) -> str:
    """As the recipe has it: true, not True."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _nearest(root: type[BaseModel], key: str, tables: list[str]) -> str:
    """Where the key may belong: the nearest name of its own table, else the nearest anywhere, with its table."""
    if tables and key in root.model_fields:  # nearer than another name of the same table
        return f", did you mean {key!r} at the top, above the first [table]?"
    here = did_you_mean(key, _known_keys(root, tables))
    if here:
        return here
    # A table of the same name that is of another kind has other keys, which do not belong here.
    paths = [path for path in _all_keys(root) if not tables or path.split(".")[-2:-1] not in (tables[-1:], tables[-2:-1])]
    names = difflib.get_close_matches(key, {path.rsplit(".", 1)[-1] for path in paths}, n=1, cutoff=0.75)
    # Of equal names the one that shares the most tables with the key is meant.
    owners = sorted((path for path in paths if names and path.rsplit(".", 1)[-1] == names[0]), key=lambda path: -_shared(path, tables))
    if not owners:
        known = _known_keys(root, tables)
        return f"; known: {', '.join(known)}" if known else ""
    inside = owners[0].removeprefix(".".join([*tables, ""]) if tables else "")
    return f", did you mean {inside!r}?"


def _shared(path: str, tables: list[str]) -> int:
    return sum(a == b for a, b in zip(path.split("."), tables, strict=False))


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the recipe with its tables; of tables that depend on `kind`, the keys of all kinds."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for table in _tables_in(field.annotation):
            keys += [path for path in _all_keys(table, f"{prefix}{name}.") if path not in keys]
    return keys


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for member in getattr(annotation, "__args__", ()) for table in _tables_in(member)]


def _known_keys(root: type[BaseModel], tables: list[str]) -> list[str]:
    """The keys of the table at this location; union members are named by their kind, list items by number."""
    model: Any = root
    for part in tables:
        fields = getattr(model, "model_fields", {})
        model = _resolve(fields[part].annotation if part in fields else model, part)
    return list(getattr(model, "model_fields", ()))


def _resolve(annotation: Any, part: str) -> Any:
    annotation = getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    members = [member for member in getattr(annotation, "__args__", ()) if member is not ...]
    for member in members:
        kind = getattr(member, "model_fields", {}).get("kind")
        if kind is not None and part in kind.annotation.__args__:
            return member
    if type(None) in members:  # an optional table
        return members[0]
    if part.isdigit() and members:
        lists = (member for member in members if getattr(member, "__origin__", None) in (tuple, list))  # among other forms of a value
        return next((member.__args__[0] for member in lists), members[0])
    return annotation if members else None


def _place(name: str, text: str, overrides: Sequence[str], location: list[str]) -> str:
    """The override that sets the key at this location, or the file with the line that does."""
    for override in overrides:
        rest = iter(location)  # in which names of kinds stand between
        if all(key in rest for key in override.partition("=")[0].strip().split(".")):
            return f"--set {override}"
    return f"{name}{_line_of(text, location)}"


def _line_of(text: str, location: list[str]) -> str:
    """ ":7" for the line that sets the key at this location, else for the one that begins the table it is in; nothing without either."""
    table: list[str] = []
    nearest, shared = "", 0
    seen: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = header[2].replace('"', "").split(".")
            if header[1] == "[[" and table != location:  # a table that should not be a list has no number
                table.append(str(seen[header[2]]))
                seen[header[2]] += 1
            keys = table
        elif assignment := _ASSIGNMENT.match(line):
            keys = [*table, *assignment[1].replace('"', "").split(".")]
        else:
            continue
        if not location or not keys or not _is_inside(keys, location):
            continue
        if keys[-1] == location[-1]:
            return f":{number}"
        if len(keys) > shared:
            nearest, shared = f":{number}", len(keys)
    return nearest


def _is_inside(path: list[str], location: list[str]) -> bool:
    """Whether a path leads to the location, in which names of kinds stand between."""
    rest = iter(location)
    return all(part in rest for part in path) and [part for part in path if part.isdigit()] == [p for p in location if p.isdigit()]
