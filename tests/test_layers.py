"""The order of the layers, read from the source: a file imports from lower layers only, and heavy libraries stay in their places."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from parsing import parse

import mixpo
from mixpo import errors

SOURCE = Path(mixpo.__file__).parent

LAYERS = [
    {"masking"},
    {"errors", "signals", "prefetch"},
    {"types"},
    {"plural", "prompts", "objectives", "progress", "sealed"},
    {"recipe", "records", "cache", "integrity"},
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
    {"study"},
    {"cli"},
    {"api"},
]
"""From the bottom up. Files of one package may import each other; packages of one layer may not."""

RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}

TORCH = {"torch", "torchvision", "transformers", "accelerate", "peft", "safetensors"}
TORCH_HOMES = ("vlm/", "train/", "engines/transformers.py", "distributed.py")

FILES = sorted(SOURCE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file; shared, so leave it as it is."""
    return parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, type_checking: bool = True) -> Iterator[str]:
    """Dotted names of everything that is imported anywhere in a file, inside functions too; those of `if TYPE_CHECKING:` if wanted."""
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "relative imports hide the layer"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    elif type_checking or not (isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"):
        for node in ast.iter_child_nodes(tree):
            if not isinstance(node, ast.expr):  # no import is inside one
                yield from imports(node, type_checking)


def test_imports_go_downward_only() -> None:
    upward = []
    for path in FILES:
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        if own not in ("__init__", "__main__"):
            others = ((name.split(".")[1], name) for name in imports(tree_of(path)) if name.startswith("mixpo."))
            upward += [f"{path}: {own} must not import {name}" for other, name in others if other != own and RANK[other] >= RANK[own]]
    assert not upward, "\n".join(upward)


def test_torch_stays_in_its_places() -> None:
    others = [path for path in FILES if not relative(path).startswith(TORCH_HOMES)]
    heavy = {relative(path): {name.split(".")[0] for name in imports(tree_of(path), type_checking=False)} & TORCH for path in others}
    assert not {path: names for path, names in heavy.items() if names}


def test_every_module_has_a_layer() -> None:
    modules = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in FILES}
    assert modules - {"__init__", "__main__", "assets"} <= set(RANK)


def test_the_check_would_notice() -> None:
    tree = parse("def f():\n    from mixpo.cli import commands\n    import torch.nn\n")
    assert set(imports(tree)) == {"mixpo.cli.commands", "torch.nn"}
    tree = parse("if TYPE_CHECKING:\n    import torch\nelse:\n    import json")
    assert set(imports(tree)) == {"torch", "json"}
    assert set(imports(tree, type_checking=False)) == set()


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
        names = list(imports(tree_of(path), type_checking=False))
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

LONG: set[str] = set()
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
    names = Counter(node.name for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef))
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
        for number, code in codes(tree_of(path)):
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code), f"{path}:{number}: {code}"


def test_errors_without_code_are_noticed() -> None:
    source = (
        'raise RunError("x")\nraise errors.RunError("x", code="run-locked")\nraise ValueError("x")\nraise RunError("x", code=error.code)'
    )
    assert list(codes(parse(source))) == [(1, ""), (2, "run-locked")]
