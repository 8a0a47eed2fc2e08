"""Small files in the formats in which benchmarks come, written by tests, and what an evaluation makes of given answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mixpo.evaluate.benchmarks import BENCHMARKS, Figure, facts_of, read
from mixpo.evaluate.benchmarks.metrics import table
from mixpo.evaluate.grading import by_rule, graded_row
from mixpo.recipe import BenchmarkSource
from mixpo.types import Question, Response, Skipped
from mixpo.verify import Verifier


def png(number: int = 0) -> bytes:
    """A small picture of its own colour."""
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (number * 37 % 256, number * 91 % 256, 60)).save(stream, "PNG")
    return stream.getvalue()


def b64(number: int = 0) -> str:
    return base64.b64encode(png(number)).decode()


def save_png(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def load(name: str, base: Path, path: str | Path = ".", **more: Any) -> list[Question | Skipped]:
    source = BenchmarkSource(kind="benchmark", name=name, path=str(path), **more)
    return [item if isinstance(item, Skipped) else item.question for item in read(source, base, base / "copies")]


def questions(name: str, base: Path, path: str | Path = ".", **more: Any) -> list[Question]:
    found = load(name, base, path, **more)
    assert not [item for item in found if isinstance(item, Skipped)], found
    return [item for item in found if isinstance(item, Question)]


def reason(row: Question | Skipped) -> str:
    """Why a row was skipped."""
    assert isinstance(row, Skipped)
    return row.reason


def outcomes(name: str, asked: Sequence[Question], answers: Sequence[str], extractor: str = "robust", mode: str = "direct") -> str:
    """One letter for each answer: c(orrect), w(rong), m(alformed), u(ndecided)."""
    return "".join(row.outcome[0] for row in predictions(name, asked, answers, extractor, mode))


def predictions(name: str, asked: Sequence[Question], answers: Sequence[str], extractor: str = "robust", mode: str = "direct") -> list[Any]:
    with Verifier() as verifier:
        return [
            by_rule(BENCHMARKS[name], q, Response(question=q.id, index=0, text=text), mode, mode, extractor, verifier.options(q.choices))
            for q, text in zip(asked, answers, strict=True)
        ]


def figures(name: str, asked: Sequence[Question], answers: Sequence[str], extractor: str = "robust", mode: str = "direct") -> list[Figure]:
    rows = predictions(name, asked, answers, extractor, mode)
    return table(BENCHMARKS[name], [graded_row(row, q) for row, q in zip(rows, asked, strict=True)])


def value(found: Sequence[Figure], name: str, group: str = "") -> float:
    (figure,) = [f for f in found if f.name == name and f.group == group]
    return figure.value


def fact(question: Question, name: str) -> Any:
    return facts_of(question)[name]
