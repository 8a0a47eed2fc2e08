"""What the bundled base models are trained on: worked answers of three manners to the questions of a world's start pool.

Careful answers read the picture and reason step by step, hasty ones guess, and careful ones without an ending never state a clear final
answer. First a model learns from careful answers alone, as a pre-trained model has; then from mixtures that imitate a web-scale
instruction set. Which manner prevails in the end differs by question family.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from mixpo.prompts import PROMPTS
from mixpo.sources.puzzles import Puzzle, World

Picture = TypeVar("Picture")

Shares = dict[str, tuple[float, float, float]]
"""family: share of careful answers, of hasty ones, of careful ones without a clear final answer"""

DIRECT_SHARE = 0.25


class Lesson(NamedTuple):
    """Steps of training, the manners of their answers, and the share of open questions, whose answers read the picture aloud."""

    steps: int
    shares: Shares
    open_share: float = 0.06


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Chat template; IMAGE stands for what a family writes for an image."""


class Cycle(NamedTuple):
    """Lessons in order under one cycle of the learning rate, whose highest is `rate`."""

    rate: float
    lessons: tuple[Lesson, ...]


class BaseModel(ABC, Generic[Picture]):
    """How the base model of one world is built and taught.

    course: in order; the last two lessons of the first cycle are what the tokenizer is made from. batch: examples per step.
    specials: special tokens. roles: what the processor calls them. image: an image's tokens in the text of a prompt, before and after
    the processor repeats them.
    """

    world: World[Picture]
    course: Sequence[Cycle]
    batch: int
    specials: Sequence[str]
    roles: dict[str, str]
    image: tuple[str, str]

    @abstractmethod
    def read_aloud(self, picture: Picture, rng: random.Random) -> str:
        """What is in the picture, in words."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """The processor of the family, for this tokenizer."""

    @abstractmethod
    def model(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """The untrained model."""

    @abstractmethod
    def image_inputs(
        self, pictures: list[Picture], ids: torch.Tensor, processor: Any, jitter: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """What the model gets for the images of a batch. ids: (B, T), with image tokens."""

    def examples(self, seed: int, count: int, lesson: Lesson) -> Iterator[tuple[Picture, str, str]]:
        """(picture, user message without the image, response)."""
        rng = random.Random(f"{seed}/answers")
        for picture, puzzle in self.world.puzzles("start", seed, count, open_share=lesson.open_share):
            yield (picture, *self._example(picture, puzzle, rng, lesson.shares))

    def _example(self, picture: Picture, puzzle: Puzzle, rng: random.Random, shares: Shares) -> tuple[str, str]:
        if puzzle.answer is None:
            return puzzle.text, f"{self.read_aloud(picture, rng)} {puzzle.steps}"
        if rng.random() < DIRECT_SHARE:
            return PROMPTS["direct"].render(puzzle.text), puzzle.answer
        return PROMPTS["brief"].render(puzzle.text), self._reasoned(picture, puzzle, rng, shares)

    def _reasoned(self, picture: Picture, puzzle: Puzzle, rng: random.Random, shares: Shares) -> str:
        """A chain-of-thought answer in one of the three manners."""
        careful, hasty, _ = shares[puzzle.family]
        drawn = rng.random()
        if drawn < careful:
            return f"{self.read_aloud(picture, rng)} {puzzle.steps} Final answer: {puzzle.answer}"
        if drawn < careful + hasty:
            opening = rng.choice(["I would say", "I would say it is"])
            return f"{opening} {puzzle.answer}. Final answer: {puzzle.answer}"
        ending = rng.choice(["So that is that.", "That should do."])
        return f"{self.read_aloud(picture, rng)} {puzzle.steps} {ending}"
