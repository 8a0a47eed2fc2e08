"""Scenes of digits: the answers against a second way of working them out, and what the pools promise."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from failures import fails
from PIL import Image

from mixpo.errors import RecipeError
from mixpo.recipe import DigitsSource
from mixpo.sources.digits import POOLS, POSITIONS, WORLD, Scene, compose, digit_images, draw, uci_digits
from mixpo.sources.puzzles import Puzzle


def by_hand(scene: Scene, text: str) -> str | None:
    """The answer, from the question's words and the labels alone."""
    values, words = scene.values, text.lower()
    named = [values[POSITIONS.index(name)] for name in re.findall("|".join(POSITIONS), words)]
    if "\na. " in words:
        return next(str(letter) for letter, option in re.findall(r"^([A-D])\. (\d)$", text, re.M) if int(option) == named[0])
    if "sum" in words or "add up" in words:
        return str(sum(values))
    if "product" in words or "multiply" in words:
        return str(named[0] * named[1])
    if "minus" in words or "how far apart" in words:
        return str(max(values) - min(values))
    if "how many" in words or "count" in words:
        test = {"even": lambda v: v % 2 == 0, "odd": lambda v: v % 2 == 1}.get(words.split()[-1].strip("?."))
        limit = int(found.group()) if (found := re.search(r"\d", words)) else 0
        return str(sum(test(v) if test else v > limit for v in values))
    if words.startswith(("is the", "does the")):
        return "yes" if named[0] > named[1] else "no"
    best = max(values) if "largest" in words else min(values)
    if words.startswith(("where", "at which")):
        return POSITIONS[values.index(best)]
    return str(best) if "digit" in words else None


@pytest.mark.parametrize("family", WORLD.families)
def test_answers_are_right(family: str) -> None:
    made = list(WORLD.puzzles("preference", 5, 150, (family,)))
    assert len(made) == 150
    for scene, puzzle in made:
        assert puzzle.answer == by_hand(scene, puzzle.text), puzzle.text
        assert puzzle.family == family


def test_the_reasoning_leads_to_the_answer() -> None:
    """What the base model learns from must be sound: every sum and product in it holds."""
    for _, puzzle in WORLD.puzzles("start", 1, 300):
        for left, sign, right, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", puzzle.steps):
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign] == int(result)


def test_the_digits_are_those_of_earlier_versions() -> None:
    """And so are all scenes, questions and runs that are made of them."""
    pixels, labels = digit_images()
    assert (pixels.shape, pixels.dtype.name, labels.dtype.name) == ((1797, 28, 28), "uint8", "uint8")
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "e7f0b66c6c781f114e1f65e9c3ffeec187d054119c2c69bc854168dce0c165e2"


def test_the_digits_are_those_of_scikit_learn() -> None:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = uci_digits()
    assert (images == data.images).all()
    assert (labels == data.target).all()


def test_pools_share_no_digit_image() -> None:
    ranges = sorted(POOLS.values())
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(uci_digits()[1])
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))
    for pool, (low, high) in POOLS.items():
        for scene, _ in WORLD.puzzles(pool, 0, 50):
            assert all(low <= index < high for index in scene.images)


def test_a_scene_shows_the_digits_it_names(tmp_path: Path) -> None:
    """Scaled back down, each quarter is nearer to its own UCI digit than to nearly all others, and the label agrees."""
    import random

    images, labels = uci_digits()
    right = 0
    for number in range(10):
        scene = compose(random.Random(number), "test")
        pixels = 255 - np.asarray(draw(scene).convert("L"))
        for position, value in enumerate(scene.values):
            y, x = divmod(position, 2)
            cell = Image.fromarray(pixels[28 * y + 2 : 28 * y + 26, 28 * x + 2 : 28 * x + 26]).resize((8, 8), Image.Resampling.BOX)
            distance = ((images * (255 / 16) - np.asarray(cell, dtype=float)) ** 2).sum(axis=(1, 2))
            right += int(labels[int(distance.argmin())] == value)
    assert right == 40


def test_any_count_is_a_prefix_of_a_larger_one(tmp_path: Path) -> None:
    few = list(WORLD.read(DigitsSource(kind="digits", count=10), tmp_path))
    many = list(WORLD.read(DigitsSource(kind="digits", count=20), tmp_path))
    assert few == many[:10]
    assert len({question.id for question in many}) == 20


def test_open_questions_have_no_answer(tmp_path: Path) -> None:
    made = list(WORLD.read(DigitsSource(kind="digits", count=200, open_share=0.25), tmp_path))
    without = [question for question in made if question.answer is None]
    assert 30 <= len(without) <= 70
    assert all(question.kind == "none" and question.domain == "open" for question in without)


def test_unknown_family() -> None:
    with fails("unknown-family", RecipeError, key="source.families") as failure:
        list(WORLD.puzzles("test", 0, 1, ("prodct",)))
    assert failure.parts[0] == "'prodct', did you mean 'product'?"


def test_the_checker_of_this_test_knows_wrong_from_right() -> None:
    scene = Scene((1, 2, 3, 4), (0, 1, 2, 3))
    assert by_hand(scene, "What is the sum of the four digits?") == "10"
    assert Puzzle("sum", "", "11", "number", "").answer != by_hand(scene, "What is the sum of the four digits?")
