"""Where questions come from. `read` turns the [source] table of a recipe into questions, whatever its kind.

Each kind is a module with one `read`; nothing after this package knows where a question came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixpo.recipe import MixturePart, MixtureSource, TrainingSource
from mixpo.sources import charts, digits, easy_vqa, hub, jsonl, mmpr, python
from mixpo.sources.build import SourceRow, without_duplicates
from mixpo.sources.puzzles import World
from mixpo.types import Notice, Question, Skipped, content_id

__all__ = ["DUPLICATE", "READERS", "read", "read_rows"]

DUPLICATE = "duplicate of an earlier row (same text, images, answer and choices)"

Reader = Callable[[Any, Path, Path], Iterator[SourceRow | Skipped | Notice]]
"""From (source table, folder of the recipe, folder for image copies) to its rows, in order."""


def _bundled(source: Any, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    world: World[Any] = digits.WORLD if source.kind == "digits" else charts.WORLD
    for number, question in enumerate(world.read(source, images)):
        yield SourceRow(where=f"{question.source}[{number}]", question=question)


def _mixture(source: MixtureSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """One question of each part in turn, so that the beginning of the mixture holds all of them; a part that ends is passed over."""
    waiting = deque(_part(part, recipe_folder, images) for part in source.parts)
    while waiting:
        rows = waiting.popleft()
        for item in rows:
            yield item
            if isinstance(item, SourceRow):
                waiting.append(rows)
                break


def _part(part: MixturePart, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """The rows of one part that its weight and count keep, under its name and domain."""
    kept = 0
    for item in READERS[part.source.kind](part.source, recipe_folder, images):
        if not isinstance(item, SourceRow):
            yield item
            continue
        question = item.question
        if part.weight < 1 and int(content_id("mixture", question.id), 16) / 2.0**64 >= part.weight:
            continue
        name = question.source if part.source.kind == "mmpr" else part.name
        yield replace(item, question=replace(question, source=name, domain=question.domain or part.domain))
        kept += 1
        if kept == part.count:
            return


READERS: dict[str, Reader] = {
    "digits": _bundled,
    "charts": _bundled,
    "easy_vqa": easy_vqa.read,
    "jsonl": jsonl.read,
    "mmpr": mmpr.read,
    "hub": hub.read,
    "python": python.read,
    "mixture": _mixture,
}


def read_rows(source: TrainingSource, *, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """As `read`, with the location of each question (file:line or row)."""
    items = READERS[source.kind](source, recipe_folder, images)
    return without_duplicates(items, lambda item: item.question.id if isinstance(item, SourceRow) else "", DUPLICATE)


def read(source: TrainingSource, *, recipe_folder: Path, images: Path) -> Iterator[Question | Skipped]:
    """The questions of a source in order, no two with the same id, and every skipped row with its location and the reason.

    recipe_folder: folder of the recipe, which paths are relative to. images: folder for images that have no file of their own.
    Errors (SourceError, MissingExtra, RecipeError) come while iterating, when the source as a whole cannot be used.
    """
    items = read_rows(source, recipe_folder=recipe_folder, images=images)
    return (item.question if isinstance(item, SourceRow) else item for item in items if not isinstance(item, Notice))
