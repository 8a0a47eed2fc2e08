"""The order of the layers, read from the source: a file imports from lower layers only, and heavy libraries stay in their places."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixpo
from mixpo import errors

SOURCE = Path(mixpo.__file__).parent

LAYERS = [
    {"masking"},
    {"errors", "signals"},
    {"types"},
    {"plural", "prompts", "objectives", "progress", "cache"},
    {"recipe", "records"},
    {"run", "human_labels", "distributed"},
    {"vlm", "images"},
    {"engines", "verify"},
    {"sources"},
    {"preferences"},
    {"pairs", "train", "evaluate"},
    {"report"},
    {"stages"},
    {"cluster"},
    {"pipeline"},
    {"commands", "export", "viewer"},
    {"cli"},
    {"api"},
]
"""From the bottom up. Files of one package may import each other; packages of one layer may not."""

RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}

TORCH = {"torch", "torchvision", "transformers", "accelerate", "peft", "safetensors"}
TORCH_HOMES = ("vlm/", "train/", "engines/transformers.py", "distributed.py")

FILES = sorted(SOURCE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported anywhere in a file, inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree without its `if TYPE_CHECKING:` blocks."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Remover().visit(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_downward_only(path: Path) -> None:
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if name.startswith("mixpo.") and (other := name.split(".")[1]) != own:
            assert RANK[other] < RANK[own], f"{path}: {own} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_torch_stays_in_its_places(path: Path) -> None:
    relative = path.relative_to(SOURCE).as_posix()
    if relative.startswith(TORCH_HOMES):
        return
    found = {name.split(".")[0] for name in imports(without_type_checking(ast.parse(path.read_text(encoding="utf-8"))))}
    assert not found & TORCH


def test_every_module_has_a_layer() -> None:
    modules = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in FILES}
    assert modules - {"__init__", "__main__", "assets"} <= set(RANK)


def test_the_check_would_notice(tmp_path: Path) -> None:
    tree = ast.parse("def f():\n    from mixpo.cli import commands\n    import torch.nn\n")
    assert set(imports(tree)) == {"mixpo.cli.commands", "torch.nn"}


def test_public_names() -> None:
    assert mixpo.__all__ == sorted(mixpo.__all__)
    for name in mixpo.__all__:
        assert getattr(mixpo, name) is not None
    assert not hasattr(mixpo, "no_such_name")


# --- import cycles -----------------------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def edges() -> dict[str, set[str]]:
    """From each module to those that it imports anywhere, type checking excepted."""
    modules = {module_of(path) for path in FILES}
    graph = {}
    for path in FILES:
        names = list(imports(without_type_checking(ast.parse(path.read_text(encoding="utf-8")))))
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module_of(path)] = (targets & modules) - {module_of(path)}
    return graph


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one module."""

    def reachable(start: str) -> set[str]:
        found, queue = set[str](), [start]
        while queue:
            for other in graph[queue.pop()] - found:
                found.add(other)
                queue.append(other)
        return found

    reach = {name: reachable(name) for name in graph}
    return {frozenset(o for o in reach[name] if name in reach[o]) for name in graph if name in reach[name]}


def test_no_import_cycles() -> None:
    assert not cycles(edges())


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset({"b", "c"})}


# --- sizes and names ---------------------------------------------------------------------------------------------------

SHORT = {
    "__main__.py": "`python -m mixpo`; installs the signal handlers before anything is imported",
    "plural.py": "used by every layer",
    "progress.py": "the protocol between stages and the command line",
    "verify/judgement.py": "values below all checks, so that none imports another",
    "vlm/transformers_fixes.py": "goes when transformers has fixed its bugs",
}
"""Files of less than 40 lines, and why each stands alone. Package files (`__init__`) are not counted."""

LONG: set[str] = {"verify/number.py"}
"""Files of more than 350 lines that are being split: remove a line with its file."""

DUPLICATES: set[str] = set()
"""Class names that stand twice: remove a line when one of them has another name."""


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_no_file_is_short_without_a_reason() -> None:
    assert {relative(path) for path in FILES if path.name != "__init__.py" and lines_of(path) < 40} <= set(SHORT)


def test_no_file_is_long() -> None:
    """Nobody has to read more than 350 lines to know a file."""
    assert {relative(path) for path in FILES if lines_of(path) > 350} <= LONG


def test_no_class_name_stands_twice() -> None:
    names = Counter(
        node.name for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} <= DUPLICATES


# --- errors ------------------------------------------------------------------------------------------------------------

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.MixpoError)}


def raised(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls in a file that make a MixpoError; MissingExtra brings its own code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS - {"MissingExtra"}:
            yield node


def codes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and code of each error that a file makes, "" where the code is not a literal; `code=error.code` is skipped."""
    for call in raised(tree):
        value = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
        if not (isinstance(value, ast.Attribute) and value.attr == "code"):
            yield call.lineno, str(value.value) if isinstance(value, ast.Constant) else ""


def test_errors_have_codes() -> None:
    """Each place that makes a MixpoError passes a literal code in kebab-case, or the code of the error that it translates."""
    for path in FILES:
        for number, code in codes(ast.parse(path.read_text(encoding="utf-8"))):
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code), f"{path}:{number}: {code}"


def test_errors_without_code_are_noticed() -> None:
    source = (
        'raise RunError("x")\nraise errors.RunError("x", code="run-locked")\nraise ValueError("x")\nraise RunError("x", code=error.code)'
    )
    assert list(codes(ast.parse(source))) == [(1, ""), (2, "run-locked")]
