"""A source of your own: a function that yields rows (dictionaries in the JSONL format) or finished Question values.

Such a source runs code that the recipe names; images may also be Pillow images or encoded bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixpo.errors import MixpoError, SourceError
from mixpo.plural import amount
from mixpo.recipe import PythonSource, did_you_mean
from mixpo.sources.build import SourceRow, identity, whole, with_tokens
from mixpo.sources.columns import ColumnUse
from mixpo.sources.images import Pictures
from mixpo.sources.jsonl import question_of
from mixpo.types import IMAGE_TOKEN, Message, Notice, Question, Skipped


def read(source: PythonSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """What the function yields, in order. Raises SourceError when it cannot be imported or called, or fails on the way."""
    root = recipe_folder / source.root
    if not root.is_dir():
        raise SourceError(f"source.root: {root} is not a folder", code="not-a-folder", path=root, key="source.root")
    function = _load(source.target, recipe_folder)
    pictures = Pictures(root, images)
    module = source.target.partition(":")[0]
    columns = ColumnUse(source.target, source.kind)
    for number, row in enumerate(_rows(source, function, recipe_folder)):
        where = f"{source.target}[{number}]"
        if isinstance(row, Mapping):
            columns.see({str(key): value for key, value in row.items()})
        try:
            yield SourceRow(where=where, question=_question(row, pictures, module))
        except SourceError as error:
            yield Skipped(where=where, reason=str(error))
    yield from columns.notices()


def _load(target: str, recipe_folder: Path) -> Callable[..., Any]:
    module, colon, name = target.partition(":")
    if not (module and colon and name.isidentifier()):
        raise SourceError(f'source.target = {target!r}: write it as "module:function"', code="target-syntax", key="source.target")
    with _importing_from(recipe_folder):
        try:
            imported = importlib.import_module(module)
        except Exception as error:  # the user's code: importing it may raise anything
            raise SourceError(
                f"source.target = {target!r}: {module} cannot be imported: {_describe(error, recipe_folder)}",
                code="target-not-importable",
                key="source.target",
            ) from error
    function = getattr(imported, name, None)
    if function is None:
        names = [known for known in vars(imported) if not known.startswith("_")]
        raise SourceError(
            f"source.target = {target!r}: {imported.__file__ or module} has no {name!r}{did_you_mean(name, names)}",
            code="target-missing",
            key="source.target",
        )
    if not callable(function):
        raise SourceError(
            f"source.target = {target!r}: {name} is {type(function).__name__}, not a function",
            code="target-not-a-function",
            key="source.target",
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def _importing_from(recipe_folder: Path) -> Iterator[None]:
    """The recipe's folder comes first on the import path while a module is imported."""
    folder = str(recipe_folder.resolve())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def _describe(error: Exception, recipe_folder: Path) -> str:
    """The error, and the last line of the user's own files that led to it; a SyntaxError has its line in its text."""
    frames = traceback.extract_tb(error.__traceback__)
    # Libraries may lie below the same folder, in an environment of its own.
    own = [f for f in frames if Path(f.filename).is_relative_to(recipe_folder.resolve()) and "site-packages" not in Path(f.filename).parts]
    return f"{type(error).__name__}: {error}" + (f" ({own[-1].filename}, line {own[-1].lineno})" if own else "")


def _rows(source: PythonSource, function: Callable[..., Any], recipe_folder: Path) -> Iterator[object]:
    done = 0
    try:
        for row in function(**source.arguments):
            yield row
            done += 1
    except MixpoError:
        raise
    except Exception as error:  # the user's code may raise anything; the traceback stays attached
        why = _describe(error, recipe_folder)
        raise SourceError(
            f"source.target = {source.target!r} failed after {amount(done, 'row')}: {why}", code="target-failed", key="source.target"
        ) from error


def _question(row: object, pictures: Pictures, module: str) -> Question:
    if isinstance(row, Question):
        return _checked(row, pictures)
    if isinstance(row, Mapping):
        return question_of({str(key): value for key, value in row.items()}, pictures, source=module)
    raise SourceError(f"must be a dictionary or a Question, not {type(row).__name__}", code="row-type")


def _checked(question: Question, pictures: Pictures) -> Question:
    """The question with images found below the root and the id that its content gives."""
    earlier = (message.text for message in question.history)
    for text in (question.text, question.answer or "", *question.answers, *question.choices, question.rationale, question.domain, *earlier):
        whole(text, "the question")
    turns = [*question.history, Message(role="user", text=question.text)]
    if with_tokens(turns, len(question.images)) != turns:
        raise SourceError(f"text has no {IMAGE_TOKEN} for its images", code="image-count-mismatch", key="text")
    if (question.answer is None) != (question.kind == "none"):
        raise SourceError(
            f'kind is {question.kind!r} with answer {question.answer!r}; open questions have kind "none" and no answer',
            code="answer-kind-mismatch",
            key="kind",
        )
    images = tuple(pictures.find(image.path) for image in question.images)
    name = identity(question.text, images, sorted(question.answers) or question.answer, question.choices, question.history)
    return dataclasses.replace(question, id=name, images=images)
