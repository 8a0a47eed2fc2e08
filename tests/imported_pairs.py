"""Reads pairs back by the door for ready-made pairs, for tests of exports and of the door itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mixpo.preferences import Imported, read
from mixpo.recipe import PreferencesTable
from mixpo.types import Notice, Pair, Question, Skipped


def imported(path: Path, **table: Any) -> tuple[list[tuple[Question, Pair]], list[Skipped], list[Notice]]:
    """Everything that a table gives. The copies of images lie beside the file."""
    items = list(read([PreferencesTable(path=path.name, **table)], path.parent, path.parent / "run-images"))
    pairs = [(item.question, item.pair) for item in items if isinstance(item, Imported)]
    return pairs, [i for i in items if isinstance(i, Skipped)], [i for i in items if isinstance(i, Notice)]


def read_pairs(path: Path, **table: Any) -> list[tuple[Question, Pair]]:
    """The pairs of a table of which no row is skipped."""
    pairs, skipped, _ = imported(path, **table)
    assert not skipped
    return pairs


def canonical(text: str) -> str:
    """A user message as it is imported: a line break after each `<image>`."""
    return re.sub("<image>\n?", "<image>\n", text)


def content(question: Question, pair: Pair) -> tuple[object, ...]:
    """What every format carries: the conversation, the bytes of the images, both texts."""
    history = tuple((message.role, canonical(message.text)) for message in question.history)
    return history, canonical(question.text), tuple(image.digest for image in question.images), pair.chosen, pair.rejected
