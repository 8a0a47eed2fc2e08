"""Scenes of four handwritten digits with exact questions: the data of the demo. Real images, made-up arrangements.

The digits are 1,797 images of 8 x 8 pixels from the UCI handwritten digits set (`assets/digits/`). Four pools share no digit
image. A scene is a 2 x 2 grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixpo.sources.build import lettered
from mixpo.sources.puzzles import Puzzle, World

POOLS = {"start": (0, 900), "preference": (900, 1350), "validation": (1350, 1500), "test": (1500, 1797)}
"""Half-open ranges of each pool in the fixed shuffle of the 1,797 digit images."""

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
CELL = 28
"""Side of one digit's cell in pixels; a scene is twice that."""
MARGIN = 2
"""Blank pixels around the ink of a cell."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Four digit values in reading order and their source images (indices into the UCI set)."""

    values: tuple[int, int, int, int]
    images: tuple[int, int, int, int]


@cache
def uci_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(1797, 8, 8) pixels from 0 to 16 and (1797,) labels, in the order of the original set."""
    with resources.files("mixpo").joinpath("assets/digits/digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return data["images"], data["labels"]


@cache
def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(1797, 28, 28) pixels and (1797,) labels, in the fixed shuffle that the pools are cut from."""
    images, labels = uci_digits()
    order = np.random.default_rng(20_241_110).permutation(len(labels))
    small = (images[order] * (255 / 16)).round().astype(np.uint8)
    inner = (CELL - 2 * MARGIN, CELL - 2 * MARGIN)
    large = [np.asarray(Image.fromarray(image).resize(inner, Image.Resampling.BICUBIC)) for image in small]
    return np.pad(np.stack(large), ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))), labels[order]


def compose(rng: random.Random, pool: str) -> Scene:
    """Four distinct digit images of a pool, at random."""
    low, high = POOLS[pool]
    picks = rng.sample(range(low, high), 4)
    labels = digit_images()[1]
    a, b, c, d = picks
    return Scene((int(labels[a]), int(labels[b]), int(labels[c]), int(labels[d])), (a, b, c, d))


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of 56 x 56 pixels, dark ink on white."""
    cells = 255 - digit_images()[0][list(scene.images)]
    rows = [np.concatenate(list(cells[i : i + 2]), axis=1) for i in (0, 2)]
    return Image.fromarray(np.concatenate(rows, axis=0)).convert("RGB")


def _until(values: Sequence[int], wanted: int) -> Sequence[int]:
    """The values up to the first wanted one, inclusive."""
    return values[: list(values).index(wanted) + 1]


# --- question families: each returns a Puzzle, or None where the scene does not suit it --------------------------------


def _sum(scene: Scene, rng: random.Random) -> Puzzle | None:
    a, b, c, d = scene.values
    text = rng.choice(["What is the sum of the four digits?", "Add up all digits in the picture. What do you get?"])
    steps = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}, {a + b + c} + {d} = {sum(scene.values)}."
    return Puzzle("sum", text, str(sum(scene.values)), "number", steps)


def _largest(scene: Scene, rng: random.Random) -> Puzzle | None:
    word = rng.choice(["largest", "smallest"])
    best = max(scene.values) if word == "largest" else min(scene.values)
    text = rng.choice([f"Which is the {word} digit?", f"What is the {word} digit in the picture?"])
    return Puzzle("largest", text, str(best), "number", f"The {word} is {best}.")


def _difference(scene: Scene, rng: random.Random) -> Puzzle | None:
    high, low = max(scene.values), min(scene.values)
    text = rng.choice(["What is the largest digit minus the smallest digit?", "How far apart are the largest and the smallest digit?"])
    return Puzzle("difference", text, str(high - low), "number", f"Largest {high}, smallest {low}, {high} - {low} = {high - low}.")


def _product(scene: Scene, rng: random.Random) -> Puzzle | None:
    i, j = sorted(rng.sample(range(4), 2))
    a, b = scene.values[i], scene.values[j]
    p, q = POSITIONS[i], POSITIONS[j]
    text = rng.choice([f"Multiply the {p} digit by the {q} digit.", f"What is the product of the {p} and the {q} digit?"])
    return Puzzle("product", text, str(a * b), "number", f"The {p} is {a}, the {q} is {b}, {a} * {b} = {a * b}.")


def _count(scene: Scene, rng: random.Random) -> Puzzle | None:
    k = rng.randint(2, 6)
    tests: tuple[tuple[str, Callable[[int], bool]], ...]
    tests = (("even", lambda v: v % 2 == 0), ("odd", lambda v: v % 2 == 1), (f"larger than {k}", lambda v: v > k))
    name, test = rng.choice(tests)
    hits = [v for v in scene.values if test(v)]
    text = rng.choice([f"How many digits are {name}?", f"Count the digits that are {name}."])
    judged = ", ".join(f"{v} {'yes' if test(v) else 'no'}" for v in scene.values)
    return Puzzle("count", text, str(len(hits)), "number", f"{name.capitalize()}: {judged}. That makes {len(hits)}.")


def _compare(scene: Scene, rng: random.Random) -> Puzzle | None:
    i, j = rng.sample(range(4), 2)
    a, b = scene.values[i], scene.values[j]
    p, q = POSITIONS[i], POSITIONS[j]
    text = rng.choice([f"Is the {p} digit larger than the {q} digit?", f"Does the {p} digit exceed the {q} digit?"])
    answer = "yes" if a > b else "no"
    relation = "larger than" if a > b else "not larger than"
    return Puzzle("compare", text, answer, "yes_no", f"The {p} is {a}, the {q} is {b}, {a} is {relation} {b}.")


def _choice(scene: Scene, rng: random.Random) -> Puzzle | None:
    i = rng.randrange(4)
    value = scene.values[i]
    options = [value, *rng.sample([v for v in range(10) if v != value], 3)]
    rng.shuffle(options)
    letter = "ABCD"[options.index(value)]
    ask = rng.choice([f"Which digit is at the {POSITIONS[i]}?", f"What stands at the {POSITIONS[i]}?"])
    lines = lettered(list(map(str, options)))
    judged = ", ".join(
        f"{name} {option} {'yes' if option == value else 'no'}" for name, option in zip("ABCD", _until(options, value), strict=False)
    )
    steps = f"The {POSITIONS[i]} is {value}. {judged}."
    return Puzzle("choice", f"{ask}\n{lines}", letter, "choice", steps, tuple(map(str, options)))


def _position(scene: Scene, rng: random.Random) -> Puzzle | None:
    word = rng.choice(["largest", "smallest"])
    best = max(scene.values) if word == "largest" else min(scene.values)
    if scene.values.count(best) > 1:
        return None
    place = POSITIONS[scene.values.index(best)]
    text = rng.choice([f"Where is the {word} digit?", f"At which position is the {word} digit?"])
    judged = ", ".join(
        f"{name} {value} {'yes' if value == best else 'no'}" for name, value in zip(POSITIONS, _until(scene.values, best), strict=False)
    )
    return Puzzle("position", text, place, "text", f"The {word} is {best}: {judged}.")


def _open(scene: Scene, rng: random.Random) -> Puzzle:
    text = rng.choice(["Describe the picture.", "What do you see in this picture?"])
    return Puzzle("open", text, None, "none", f"Their sum is {sum(scene.values)}.")


WORLD = World(
    name="digits",
    compose=compose,
    draw=draw,
    families={
        "sum": _sum,
        "largest": _largest,
        "difference": _difference,
        "product": _product,
        "count": _count,
        "compare": _compare,
        "choice": _choice,
        "position": _position,
    },
    open_family=_open,
)
