"""The order of the layers, read from the source: a file imports from lower layers only, and heavy libraries stay in their places."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixpo

SOURCE = Path(mixpo.__file__).parent

LAYERS = [
    {"errors", "signals"},
    {"types"},
    {"plural", "prompts", "objectives", "progress"},
    {"recipe", "records"},
    {"run", "human_labels", "distributed"},
    {"vlm", "images"},
    {"engines", "verify"},
    {"sources"},
    {"pairs", "train", "evaluate"},
    {"report"},
    {"stages"},
    {"cluster"},
    {"pipeline"},
    {"commands", "export", "viewer"},
    {"cli"},
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


def test_file_sizes() -> None:
    """Nobody has to read more than 400 lines to know a file."""
    long = {path.name: count for path in FILES if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
