"""Made-up questions with exact answers about made-up pictures: what the bundled worlds, `digits` and `charts`, share.

A picture, its question and its answer depend only on (world, pool, seed, number of the question), so any count is a prefix of any
larger one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from mixpo.errors import RecipeError
from mixpo.images import save_content
from mixpo.recipe import ChartsSource, DigitsSource, did_you_mean
from mixpo.types import IMAGE_TOKEN, AnswerKind, Question, content_id

Picture = TypeVar("Picture")


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A question about a picture. `steps` is the reasoning between reading the picture and the answer, for the start pool."""

    family: str
    text: str
    answer: str | None
    kind: AnswerKind
    steps: str
    choices: tuple[str, ...] = ()


Family = Callable[[Picture, random.Random], Puzzle | None]
"""Makes a question about a picture; None where the picture does not suit it."""


@dataclass(frozen=True, kw_only=True)
class World(Generic[Picture]):
    """Pictures and the questions about them.

    compose: a random picture of a pool. draw: its image. open_family: its open question.
    """

    name: str
    compose: Callable[[random.Random, str], Picture]
    draw: Callable[[Picture], Image.Image]
    families: Mapping[str, Family[Picture]]
    open_family: Callable[[Picture, random.Random], Puzzle]

    def puzzles(
        self, pool: str, seed: int, count: int, families: tuple[str, ...] = (), open_share: float = 0.0
    ) -> Iterator[tuple[Picture, Puzzle]]:
        """`count` pictures with a question each, families at random with equal shares. Raises RecipeError for an unknown family."""
        for name in families:
            if name not in self.families:
                hint, known = did_you_mean(name, self.families), ", ".join(self.families)
                message = f"source.families: unknown family {name!r}{hint}; known: {known}"
                raise RecipeError(message, code="unknown-family", key="source.families")
        names = families or tuple(self.families)
        for number in range(count):
            rng = random.Random(f"{seed}/{self.name}/{pool}/{number}")
            is_open = rng.random() < open_share
            puzzle = None
            while puzzle is None:
                picture = self.compose(rng, pool)
                puzzle = self.open_family(picture, rng) if is_open else self.families[rng.choice(names)](picture, rng)
            yield picture, puzzle

    def read(self, source: DigitsSource | ChartsSource, images: Path) -> Iterator[Question]:
        """The questions of a pool; pictures are saved as PNG files under `images`."""
        for picture, puzzle in self.puzzles(source.pool, source.seed, source.count, source.families, source.open_share):
            image = save_content(self.draw(picture), images)
            text = f"{IMAGE_TOKEN}\n{puzzle.text}"
            yield Question(
                id=content_id(text, [image.digest], puzzle.answer, list(puzzle.choices)),
                text=text,
                images=(image,),
                answer=puzzle.answer,
                kind=puzzle.kind,
                choices=puzzle.choices,
                domain=puzzle.family,
                source=f"{self.name}/{source.pool}",
            )
