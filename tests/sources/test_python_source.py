"""A user's own function as a source: what it may yield, and every way in which it can go wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mixpo.errors import SourceError

NUMBERS = count()


@pytest.fixture
def own(folder: Path, collect: Callable[..., Any]) -> Callable[..., Any]:
    """Write a module with a function `rows` and read it as a source. Each has a name of its own: Python caches modules."""

    def run(code: str, **table: object) -> object:
        name = f"own_source_{next(NUMBERS)}"
        (folder / f"{name}.py").write_text(code)
        return collect(**{"kind": "python", "target": f"{name}:rows", **table})

    return run


def test_dictionaries_questions_and_pixels(own: Callable[..., Any], folder: Path) -> None:
    before = list(sys.path)
    questions, skipped = own(
        """
from PIL import Image
from mixpo.types import ImageRef, Question

def rows(n, word="red"):
    for i in range(n):
        yield {"image": f"{i}.png", "question": "What color?", "answer": word}
    yield {"image": Image.new("RGB", (4, 4), "red"), "question": "Small?", "answer": "yes"}
    ref = ImageRef(path="0.png", digest="not yet known")
    yield Question(id="anything", text="<image>\\nHow many?", images=(ref,), answer="1", kind="number", domain="own")
    yield Question(id="0", text="no mark", images=(ref,))
    yield Question(id="0", text="What?", answer="5", kind="none")
    yield {"image": "../out.png", "question": "a"}
    yield 5
""",
        arguments={"n": 2},
    )
    assert [(q.text, q.answer, q.kind, q.domain) for q in questions] == [
        ("<image>\nWhat color?", "red", "text", ""),
        ("<image>\nWhat color?", "red", "text", ""),
        ("<image>\nSmall?", "yes", "yes_no", ""),
        ("<image>\nHow many?", "1", "number", "own"),
    ]
    assert questions[3].images == questions[0].images
    assert Path(questions[2].images[0].path).is_relative_to(folder / "run" / "images")
    assert [s.where.partition("[")[2] for s in skipped] == ["4]", "5]", "6]", "7]"]
    for row, reason in zip(skipped, ["no <image> for its images", "open questions", "lies outside", "not int"], strict=True):
        assert reason in row.reason
    assert sys.path == before


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def row(): ...", "has no 'rows', did you mean 'row'"),
        ("rows = 5", "rows is int, not a function"),
        ("def rows(: pass", "cannot be imported: SyntaxError"),
        ("import no_such_module_at_all", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def rows(n): yield {}", "failed after 0 rows: TypeError: rows.. missing 1 required positional argument: 'n'"),
        ("def rows(): return 5", "failed after 0 rows: TypeError"),
        (
            "def rows():\n    yield {'question': 'a'}\n    raise KeyError('b')",
            r"failed after 1 row: KeyError: 'b' \(.*own\w*\.py, line 3\)$",
        ),
        ("import json\ndef rows():\n    yield json.loads('{')", r"JSONDecodeError: .*own\w*\.py, line 3\)$"),
        ("a = 1\n1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(.*own\w*\.py, line 2\)$"),
    ],
)
def test_errors_of_the_users_code(own: Callable[..., Any], code: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        own(code)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nothing", 'write it as "module:function"'),
        ("a:b:c", "write it as"),
        (":f", "write it as"),
        ("no_such_module_xyz:f", "cannot be imported"),
    ],
)
def test_bad_targets(collect: Callable[..., Any], target: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        collect(kind="python", target=target)
