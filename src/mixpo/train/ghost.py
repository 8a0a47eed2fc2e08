"""Ranks that share a model have to compute the same parts of it, equally often. The ghost is what a rank without images adds to a batch.

It is a real question with an image and one response, but without pairs, so that it takes part in no loss: its gradient is exactly zero.
Without it a rank with text only would leave out the vision tower, and the others would wait for its share of the weights forever.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixpo.train.batch import Piece, size_of
from mixpo.train.prompt_cache import Prompts
from mixpo.types import Group

TRIED = 16
"""Prompts that are looked at to find a short one; each costs opening its images."""


def find_ghost(groups: Sequence[Group], prompts: Prompts) -> Piece:
    """A small piece without pairs, with an image if any of the data has one. The same on every rank."""
    usable = [group for group in groups if group.pairs]
    pictured = [group for group in usable if group.question.images] or usable
    fewest = sorted(pictured, key=lambda group: len(group.question.images))[:TRIED]
    shortest = [Piece(group, (min(range(len(group.responses)), key=lambda number: len(group.responses[number])),), ()) for group in fewest]
    return min(shortest, key=lambda piece: size_of(piece, prompts.length(piece.group)).tokens)


def with_ghost(pieces: tuple[Piece, ...], ghost: Piece) -> tuple[Piece, ...]:
    """The same micro-batch, in which at least one piece has an image if the ghost has."""
    needed = bool(ghost.group.question.images) and not any(piece.group.question.images for piece in pieces)
    return (*pieces, ghost) if needed or not pieces else pieces
