"""docs/architecture.md names files and functions that exist, and draws the layers that tests/test_layers.py enforces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
from parsing import parse
from test_layers import LAYERS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "mixpo"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")


def rules() -> Iterator[tuple[str, str, str]]:
    """(rule, file, name) for every name in the table of the paper's rules. One file holds all names, or the n-th the n-th."""
    table = PAGE[PAGE.index("## Where each rule") :]
    for rule, files, names in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE):
        paths = CODE.findall(files)
        for path, name in zip_longest(paths, CODE.findall(names), fillvalue=paths[0] if paths else ""):
            yield rule, path, name


def defined(tree: ast.Module, prefix: str = "") -> Iterator[str]:
    """Names of the functions, classes, methods and constants of a module."""
    body: list[ast.stmt] = tree.body
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from defined(ast.Module(node.body, []), f"{node.name}.")
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def test_the_table_is_found() -> None:
    assert len([*rules()]) > 50


@pytest.mark.parametrize(("rule", "path", "name"), [*rules()])
def test_rules_of_the_paper_are_where_the_page_says(rule: str, path: str, name: str) -> None:
    file = SOURCE / path
    assert file.is_file(), f"docs/architecture.md, {rule!r}: no file src/mixpo/{path}"
    names = {*defined(parse(file.read_text(encoding="utf-8")))}
    assert name in names, f"docs/architecture.md, {rule!r}: src/mixpo/{path} defines no {name}"


def test_named_files_exist() -> None:
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        assert any((root / path).exists() for root in (SOURCE, SOURCE / "evaluate", ROOT)), f"docs/architecture.md: no src/mixpo/{path}"


def test_the_picture_shows_the_layers() -> None:
    (picture,) = [block for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if "errors" in block]
    assert [{*line[:41].split()} for line in picture.splitlines()] == LAYERS[::-1]


def test_every_package_is_described() -> None:
    table = PAGE[PAGE.index("## Packages") : PAGE.index("## Where each rule")]
    for path in SOURCE.iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in table, f"docs/architecture.md does not describe src/mixpo/{path.name}"
