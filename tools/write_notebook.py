"""Builds and executes examples/pairs.ipynb: from images to a look at the pairs, with the bundled model and digits.

    python tools/write_notebook.py          # execute the cells and write the notebook

Cells run in this process, in a temporary folder; no Jupyter is needed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "pairs.ipynb"

CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        """# From images to preference pairs

This notebook samples responses to questions about images, verifies their final answers, and looks at the preference pairs. It uses the
small model and the handwritten digits that come with mixpo, and runs on a CPU in about a minute. For your own data, change `source` and
`model`, or call `mixpo.pairs` with a list of dictionaries.""",
    ),
    (
        "code",
        '''from pathlib import Path

import mixpo

Path("digits.toml").write_text("""
[source]
kind = "digits"
count = 48
open_share = 0.1            # "Describe the picture.": DropoutNTP pairs

[prompt]
cot = "brief"

[sample]
n = 8
max_new_tokens = 64

[pairs]
max_per_question = 3
entailment = false          # "1" inside "10" means nothing here
""")
run = mixpo.run("digits.toml", until="pair", quiet=True)
pairs = run.pairs()
len(pairs)''',
    ),
    ("markdown", "Where do the pairs come from? Correctness pairs join a right and a wrong response; DropoutNTP pairs need no answer."),
    (
        "code",
        """from collections import Counter

Counter(pair["origin"] for pair in pairs)""",
    ),
    ("markdown", "A pair: the image, the prompt, and both responses with their final answers."),
    (
        "code",
        """from PIL import Image

pair = next(pair for pair in pairs if pair["origin"] == "correctness")
Image.open(pair["images"][0]).resize((168, 168))""",
    ),
    (
        "code",
        """print(pair["prompt"])
print("answer:  ", pair["answer"])
print("chosen:  ", pair["chosen"])
print("rejected:", pair["rejected"])""",
    ),
    ("markdown", "Was the verifier right? `mixpo.verify` can be asked about any response."),
    (
        "code",
        """answer = mixpo.verify.extract(pair["rejected"])
mixpo.verify.check(answer, pair["answer"]) if answer else "no clear final answer\"""",
    ),
    (
        "markdown",
        "Next: `mixpo.train(pairs, model=...)` trains on them, `mixpo view runs/digits` shows them in the browser. See docs/python.md.",
    ),
]


def execute(cells: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The cells of the notebook with their outputs. Raises what a cell raises."""
    names: dict[str, Any] = {}
    made: list[dict[str, Any]] = []
    for number, (kind, source) in enumerate(cells):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        if kind == "code":
            count = 1 + sum(one["cell_type"] == "code" for one in made)
            cell |= {"execution_count": count, "outputs": _run(source, names, count)}
        made.append(cell)
    return made


def _run(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run one cell; its printed text, and the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102 - the cells above
        value = eval(compile(last, "cell", "eval"), names) if last is not None else None  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": _shown(value)})
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    plain = {"text/plain": repr(value).partition(" at 0x")[0]}
    if not hasattr(value, "save"):
        return plain
    buffer = io.BytesIO()
    value.save(buffer, "PNG")
    return {"image/png": base64.b64encode(buffer.getvalue()).decode(), **plain}


def build() -> dict[str, Any]:
    """The executed notebook."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            cells = execute(CELLS)
        finally:
            os.chdir(before)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def main() -> int:
    """Write the notebook."""
    NOTEBOOK.parent.mkdir(exist_ok=True)
    NOTEBOOK.write_text(json.dumps(build(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
